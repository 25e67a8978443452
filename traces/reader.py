"""Reading routing traces: whole, or streamed in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.threads import thread_count
from moecast.traces.decoder import Decoder
from moecast.traces.describe import describe_trace
from moecast.traces.format import schema_of
from moecast.traces.hashing import ContentHasher
from moecast.traces.limits import check_memory
from moecast.traces.meta import PHASES
from moecast.traces.shards import Advance, count_tokens, read_meta, shard_paths
from moecast.traces.trace import RoutingTrace

_BATCH_BYTES = 32 << 20


def iter_trace(
    path: str | Path,
    *,
    phase: str | None = None,
    topics: Collection[str] | None = None,
    weights: bool = False,
    batch_tokens: int | None = None,
    progress: Advance | None = None,
) -> Iterator[RoutingTrace]:
    """Yield batches of a trace's tokens in order, in memory bounded by the batch.

    While the caller is at work, `thread_count()` threads read what comes next.

    A topic keeps its index in all batches; each batch's `topics` are those seen so far.

    Parameters
    ----------
    path
        File or folder of shards.
    phase, topics
        Only these tokens.
    weights
        Read the gate weights too.
    batch_tokens
        Most tokens in a batch; by default about 32 MiB.
    progress
        Called after each batch.

    Raises
    ------
    MoecastError
        The file is truncated, foreign or breaks a rule of the format; it has no weights and they
        are asked for; a phase that does not exist.
    ValueError
        `batch_tokens` is not positive.
    """
    _check_phase(phase)
    shards, meta = shard_paths(path), read_meta(path)
    if batch_tokens is None:
        batch_tokens = max(1, _BATCH_BYTES // (2 * meta.layers * meta.choices))
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens = {batch_tokens}: must be at least 1")
    total, done = count_tokens(path) if progress else 0, 0
    decoder = Decoder(meta, schema_of(meta, weights=weights).names)
    for columns in decoder.batches(shards, batch_tokens, threads=thread_count()):
        trace = decoder.trace(columns)
        keep_T = _matching(trace, phase, topics)
        if keep_T.all():
            yield trace
        elif keep_T.any():
            yield trace.select(keep_T)
        done += trace.n_tokens
        if progress:
            progress(done, total)


def read_trace(
    path: str | Path,
    *,
    phase: str | None = None,
    topics: Collection[str] | None = None,
    weights: bool = False,
    progress: Advance | None = None,
) -> RoutingTrace:
    """Read a whole trace, or its tokens of one phase and of some topics.

    The parameters are those of `iter_trace`.

    Raises
    ------
    MoecastError
        The file is truncated, foreign or breaks a rule of the format; it does not fit in memory; no
        token is left; a phase or topic that it does not have.
    """
    meta, total = read_meta(path), count_tokens(path)
    row_bytes = 2 * meta.layers * meta.choices * (2 if weights else 1)
    check_memory(total * row_bytes, path, advice=": read it with iter_trace")
    columns: dict[str, npt.NDArray[Any]] = RoutingTrace.empty(meta).columns()
    filled, seen = 0, ()  # type: int, tuple[str, ...]
    for batch in iter_trace(path, phase=phase, topics=topics, weights=weights, progress=progress):
        for name, array in batch.columns().items():
            if not filled:  # never touched beyond what is kept, so a filter costs address space only
                columns[name] = np.empty((total, *array.shape[1:]), array.dtype)
            columns[name][filled : filled + len(array)] = array
        filled += batch.n_tokens
        seen = batch.topics
    _check_found(path, phase, topics, seen, filled)
    return RoutingTrace(meta=meta, topics=seen, **{name: array[:filled] for name, array in columns.items()})


def hash_trace(path: str | Path, *, progress: Advance | None = None) -> str:
    """Content hash of a trace too large to read whole: what `RoutingTrace.content_hash` gives.

    Raises
    ------
    MoecastError
        The file is truncated, foreign or breaks a rule of the format.
    """
    hasher = ContentHasher(read_meta(path))
    for batch in iter_trace(path, progress=progress):
        hasher.add(batch.columns(), batch.topics)
    return hasher.hexdigest()


def _check_phase(phase: str | None) -> None:
    if phase is not None and phase not in PHASES:
        raise MoecastError(f"must be one of {', '.join(PHASES)}", field="phase", value=phase)


def _check_found(
    path: str | Path, phase: str | None, topics: Collection[str] | None, seen: tuple[str, ...], tokens: int
) -> None:
    missing = sorted(set(topics or ()) - set(seen))
    if not missing and (tokens or (phase is None and topics is None)):
        return
    parts = describe_trace(path).parts
    if missing:
        names = sorted({part.topic for part in parts if part.topic is not None})
        raise MoecastError(
            f"the trace has {', '.join(names) or 'no topics'}", file=path, field="topic", value=missing[0]
        )
    names = sorted({f"{part.phase} of {part.topic}" if topics else part.phase for part in parts})
    rule = f"the trace has {', '.join(names) or 'no tokens'}"
    raise MoecastError(rule, file=path, field="phase", value=phase)


def _matching(trace: RoutingTrace, phase: str | None, topics: Collection[str] | None) -> npt.NDArray[np.bool_]:
    keep_T = np.ones(trace.n_tokens, bool)
    if phase is not None:
        keep_T &= trace.phase_T == PHASES.index(phase)
    if topics is not None:
        wanted = [index for index, name in enumerate(trace.topics) if name in topics]
        keep_T &= np.isin(trace.topic_T, wanted)
    return keep_T
