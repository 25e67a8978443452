"""What in a trace would mislead whoever plans by it.

Each check is a function from the facts of a trace to findings. Axes: T token, L MoE layer, E expert, C topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics import health_counts, health_rows
from moecast.traces.statistics._rows import repeats_T
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
        rows_differ=_rows_differ(load_LE),
    )
    found = [finding for check in CHECKS for finding in check(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "warning"))


def _rows_differ(load_LE: Counts) -> bool:
    """The first choices of two random tokens agree at all layers less than once in 10,000 pairs."""
    share_LE = load_LE / np.maximum(load_LE.sum(axis=1, keepdims=True), 1)
    return float((share_LE**2).sum(axis=1).prod()) < 1e-4
