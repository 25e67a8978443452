"""What a health check says, and the facts that it looks at.

Axes: T token, L MoE layer, E expert, K choice, R run (consecutive positions of one sequence), C
topic.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from moecast.traces.meta import TraceMeta
from moecast.traces.statistics.rows import RowFacts
from moecast.traces.statistics.sample import TokenSample
from moecast.traces.statistics.summary import Counts

SHORT = 16
"""Rows below which nothing is said of a sequence or a sample."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that would mislead, in one sentence.

    Parameters
    ----------
    code
        A name for machines.
    severity
        `warning`: numbers from this trace are likely wrong; `note`: know it when reading them.
    message
        What was found where, the rule, and what to do.
    """

    code: str
    severity: Literal["warning", "note"]
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TraceFacts:
    """What the checks look at.

    Parameters
    ----------
    rows, load_LE
        Of all tokens.
    topics, tokens_C
        Names and tokens of the topics.
    sample
        Tokens in the order of their sequences.
    repeat_T
        Tokens of the sample whose choices are those of the one before in their run.
    rows_differ
        Two tokens hardly make the same choices at all layers by chance, so equal rows mean
        something.
    """

    meta: TraceMeta
    rows: RowFacts
    load_LE: Counts
    topics: tuple[str, ...]
    tokens_C: Counts
    sample: TokenSample
    repeat_T: npt.NDArray[np.bool_]
    rows_differ: bool


def percent(part: int, whole: int) -> str:
    """Say a share so that a little less than all does not read as all."""
    share = 100 * part / max(whole, 1)
    return f"{share:.1f} %" if share < 99.95 or part == whole else "over 99.9 %"


def layer_list(layers: npt.NDArray[np.int64]) -> str:
    """Name layers, the first eight of many."""
    names = ", ".join(str(int(layer)) for layer in layers[:8]) + (" …" if len(layers) > 8 else "")
    return f"layer{'s' if len(layers) > 1 else ''} {names}"
