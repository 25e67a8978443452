"""The files of a trace, and what their footers say without a row being read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moecast.errors import MoecastError
from moecast.traces.decoder import open_parquet
from moecast.traces.format import decode_meta
from moecast.traces.meta import TraceMeta

Advance = Callable[[int, int], None]
"""Called with (tokens done, tokens of the trace)."""


def shard_paths(path: str | Path) -> list[Path]:
    """Files of a trace: itself, or a folder's shards by name. Hidden files are unfinished and left out.

    Raises
    ------
    MoecastError
        Nothing there, or a folder without shards.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise MoecastError("no such file or folder", file=path)
        return [path]
    shards = sorted(p for p in path.glob("*.parquet") if not p.name.startswith("."))
    if not shards:
        raise MoecastError("the folder holds no .parquet files", file=path)
    return shards


def read_meta(path: str | Path) -> TraceMeta:
    """Read what a trace says about itself, from its first shard and without its rows.

    Raises
    ------
    MoecastError
        Not a routing trace.
    """
    first = shard_paths(path)[0]
    with open_parquet(first) as file:
        return decode_meta(file.schema_arrow.metadata, first)


def count_tokens(path: str | Path) -> int:
    """T, from the footers alone.

    Raises
    ------
    MoecastError
        Not a routing trace.
    """
    total = 0
    for shard in shard_paths(path):
        with open_parquet(shard) as file:
            total += max(file.metadata.num_rows, 0)
    return total
