"""What is in a trace apart from its choices: tokens, sequences, topics, phases, and the files that hold them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.traces.decoder import Decoder, open_parquet
from moecast.traces.meta import PHASES, TraceMeta
from moecast.traces.shards import Advance, count_tokens, read_meta, shard_paths

_COLUMNS = ("step", "sequence", "position", "phase", "topic", "source_rank", "token_id")
_BATCH_TOKENS = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Tokens of one phase and topic; the topic is None where not known."""

    phase: str
    topic: str | None
    tokens: int
    sequences: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TraceInfo:
    """A trace at a glance.

    Parameters
    ----------
    meta
        Sizes and provenance.
    tokens, sequences
        T, and how many requests they come from.
    parts
        The same by phase and topic.
    steps, source_ranks
        How many distinct ones were recorded; None where they were not.
    columns
        Optional columns that the trace has: `step`, `source_rank`, `token_id`, `weights`.
    shards, unfinished_shards
        Files; and those that a killed writer left behind, which are not read.
    file_bytes, choice_bytes
        Size on disk; size of the choices in memory.
    """

    meta: TraceMeta
    tokens: int
    sequences: int
    parts: tuple[Part, ...]
    steps: int | None
    source_ranks: int | None
    columns: tuple[str, ...]
    shards: int
    unfinished_shards: int
    file_bytes: int
    choice_bytes: int


def describe_trace(path: str | Path, *, progress: Advance | None = None) -> TraceInfo:
    """Read everything but the choices, in bounded memory.

    Raises
    ------
    MoecastError
        Not a routing trace, or a damaged one.
    """
    path, meta = Path(path), read_meta(path)
    shards, total = shard_paths(path), count_tokens(path)
    decoder = Decoder(meta, _COLUMNS)
    groups: dict[tuple[int, int], _Group] = {}
    distinct: dict[str, npt.NDArray[np.uint32]] = {}
    columns: set[str] = set()
    done = 0
    for batch in decoder.batches(shards, _BATCH_TOKENS):
        _group(batch, groups)
        for name in {"step_T", "source_rank_T", "sequence_T"} & set(batch):
            distinct[name] = np.union1d(distinct.get(name, np.empty(0, np.uint32)), _runs(batch[name]))
        columns |= {name.removesuffix("_T") for name in ("step_T", "source_rank_T", "token_id_T") if name in batch}
        done += len(batch["phase_T"])
        if progress:
            progress(done, total)
    with open_parquet(shards[0]) as file:
        columns |= {"weights"} & set(file.schema_arrow.names)
    return TraceInfo(
        meta=meta,
        tokens=done,
        sequences=len(distinct.get("sequence_T", ())),
        parts=_parts(groups, decoder.topics),
        steps=len(distinct["step_T"]) if "step_T" in distinct else None,
        source_ranks=len(distinct["source_rank_T"]) if "source_rank_T" in distinct else None,
        columns=tuple(sorted(columns)),
        shards=len(shards),
        unfinished_shards=len(list(path.glob(".*.part"))) if path.is_dir() else 0,
        file_bytes=sum(shard.stat().st_size for shard in shards),
        choice_bytes=2 * done * meta.layers * meta.choices,
    )


@dataclasses.dataclass
class _Group:
    tokens: int
    sequences: npt.NDArray[np.uint32]


def _group(batch: dict[str, npt.NDArray[np.uint32]], groups: dict[tuple[int, int], _Group]) -> None:
    key_T = batch["phase_T"].astype(np.int64) << 32 | (batch["topic_T"].astype(np.int64) + 1)
    for key in np.unique(_runs(key_T)):
        members_T = key_T == key
        group = groups.setdefault((int(key) >> 32, (int(key) & 0xFFFF) - 1), _Group(0, np.empty(0, np.uint32)))
        group.tokens += int(members_T.sum())
        group.sequences = np.union1d(group.sequences, _runs(batch["sequence_T"][members_T]))


def _runs(values_T: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """First value of each run of equal ones: far fewer to sort, since tokens of a sequence stand together."""
    return values_T[np.concatenate([[True], values_T[1:] != values_T[:-1]])[: len(values_T)]]


def _parts(groups: dict[tuple[int, int], _Group], topics: tuple[str, ...]) -> tuple[Part, ...]:
    return tuple(
        Part(
            phase=PHASES[phase],
            topic=topics[topic] if topic >= 0 else None,
            tokens=group.tokens,
            sequences=len(group.sequences),
        )
        for (phase, topic), group in sorted(groups.items())
    )
