"""What in a trace would mislead whoever plans by it.

Each check is a function from the facts of a trace to findings. Axes: T token, L MoE layer, E
expert, C topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics import health_counts, health_rows
from moecast.traces.statistics._rows import repeats_T
from moecast.traces.statistics.equal_runs import row_hashes_T
from moecast.traces.statistics.findings import Finding, TraceFacts
from moecast.traces.statistics.rows import RowFacts
from moecast.traces.statistics.sample import TokenSample
from moecast.traces.statistics.summary import Counts

Check = Callable[[TraceFacts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    health_rows.dummy_rows,
    health_rows.padding,
    health_rows.repeated_prompts,
    health_rows.token_ids,
    health_rows.numbering,
    health_counts.few_choices,
    health_counts.layers,
    health_counts.empty_choices,
    health_counts.expert_ids,
    health_counts.variety,
)


def check_health(
    meta: TraceMeta, rows: RowFacts, load_LE: Counts, topics: tuple[str, ...], tokens_C: Counts, sample: TokenSample
) -> tuple[Finding, ...]:
    """Name what would mislead, warnings first."""
    repeat_T = np.zeros(sample.tokens, np.bool_)
    repeats_T(sample.experts_TLK, repeat_T)
    repeat_T[sample.run_R1[:-1]] = False
    facts = TraceFacts(
        meta=meta,
        rows=rows,
        load_LE=load_LE,
        topics=topics,
        tokens_C=tokens_C,
        sample=sample,
        repeat_T=repeat_T,
        rows_differ=_rows_differ(load_LE) or _singles_differ(sample, repeat_T),
    )
    found = [finding for check in CHECKS for finding in check(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "warning"))


_MOST_SINGLES = 1 << 16


def _singles_differ(sample: TokenSample, repeat_T: npt.NDArray[np.bool_]) -> bool:
    """Rows unlike the one before and after agree at all layers in less than one in 10,000 pairs.

    Counted over rows that dummies and padding are not among, however many these are.
    """
    single_T = np.flatnonzero(~(repeat_T | np.append(repeat_T[1:], False)))
    single_T = single_T[:: -(-len(single_T) // _MOST_SINGLES) or 1]
    _, count_H = np.unique(row_hashes_T(sample.experts_TLK[single_T]), return_counts=True)
    alike, pairs = (int((count * (count - 1)).sum()) // 2 for count in (count_H, np.array([len(single_T)])))
    return alike + 3 < 1e-4 * pairs  # 3: the most that 95 % of samples without any would hide


def _rows_differ(load_LE: Counts) -> bool:
    """The first choices of two random tokens agree at all layers less than once in 10,000 pairs."""
    share_LE = load_LE / np.maximum(load_LE.sum(axis=1, keepdims=True), 1)
    return float((share_LE**2).sum(axis=1).prod()) < 1e-4
