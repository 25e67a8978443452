"""The planning or the measuring part of a trace on disk, batch by batch: what `RoutingTrace.split` gives in memory.

Axes: T token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.describe import describe_trace
from moecast.traces.meta import PHASES
from moecast.traces.reader import iter_trace
from moecast.traces.shards import Advance
from moecast.traces.trace import RoutingTrace

PARTS = ("all", "planning", "measuring")


def iter_part(
    path: str | Path,
    *,
    part: str = "all",
    fraction: float = 0.5,
    phase: str | None = None,
    topics: Collection[str] | None = None,
    progress: Advance | None = None,
) -> Iterator[RoutingTrace]:
    """Yield batches of a trace, of its planning part or of its measuring part, in bounded memory.

    Within each (phase, topic), the first floor(n · `fraction`) tokens are for planning, the rest
    for measuring.

    Parameters
    ----------
    part
        `all`, `planning` or `measuring`.
    phase, topics, progress
        As in `iter_trace`.

    Raises
    ------
    MoecastError
        The file is truncated, foreign or breaks a rule of the format; no token is left; a phase or
        topic that it does not have.
    ValueError
        `part` is none of the three, or `fraction` is not between 0 and 1.
    """
    if part not in PARTS:
        raise ValueError(f"part = {part!r}: one of {', '.join(PARTS)}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction = {fraction!r}: must be between 0 and 1")
    if part == "all" and phase is None and topics is None:
        yield from iter_trace(path, progress=progress)
        return
    counts = _counts(path, phase, topics)
    exact = Fraction(float(fraction)).limit_denominator(10**6)  # as RoutingTrace.split
    first = {group: count if part == "all" else int(count * exact) for group, count in counts.items()}
    seen = dict.fromkeys(first, 0)
    for batch in iter_trace(path, phase=phase, topics=topics, progress=progress):
        planning_T = _planning(batch, first, seen)
        keep_T = ~planning_T if part == "measuring" else planning_T
        if keep_T.all():
            yield batch
        elif keep_T.any():
            yield batch.select(keep_T)


Group = tuple[str, str | None]


def _counts(path: str | Path, phase: str | None, topics: Collection[str] | None) -> dict[Group, int]:
    """Tokens of each (phase, topic) that is asked for."""
    parts = describe_trace(path).parts
    names = sorted({part.topic for part in parts if part.topic is not None})
    missing = sorted(set(topics or ()) - set(names))
    if missing:
        has = ", ".join(names) or "no topics"
        raise MoecastError(f"the trace has {has}", file=path, field="topic", value=missing[0])
    if phase is not None and phase not in PHASES:
        raise MoecastError(f"must be one of {', '.join(PHASES)}", field="phase", value=phase)
    wanted = [part for part in parts if topics is None or part.topic in topics]
    found = {(part.phase, part.topic): part.tokens for part in wanted if phase is None or part.phase == phase}
    if not found:
        has = ", ".join(sorted({f"{p.phase} of {p.topic}" if topics else p.phase for p in wanted})) or "no tokens"
        raise MoecastError(f"the trace has {has}", file=path, field="phase", value=phase)
    return found


def _planning(batch: RoutingTrace, first: dict[Group, int], seen: dict[Group, int]) -> npt.NDArray[np.bool_]:
    """The batch's tokens among the first of their group; counts them as seen."""
    planning_T = np.zeros(batch.n_tokens, bool)
    group_T = batch.phase_T.astype(np.int64) * (len(batch.topics) + 1) + batch.topic_T + 1
    for key in np.unique(group_T):
        phase, topic = divmod(int(key), len(batch.topics) + 1)
        group = (PHASES[phase], batch.topics[topic - 1] if topic else None)
        members = np.flatnonzero(group_T == key)
        planning_T[members[: max(first[group] - seen[group], 0)]] = True
        seen[group] += len(members)
    return planning_T
