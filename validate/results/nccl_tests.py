"""The text that nccl-tests print: which collective ran, over how many ranks, and the time of each size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from moecast.errors import MoecastError
from moecast.files import read_text

OPERATIONS = {
    "all_reduce_perf": "all-reduce",
    "all_gather_perf": "all-gather",
    "reduce_scatter_perf": "reduce-scatter",
    "alltoall_perf": "all-to-all",
    "sendrecv_perf": "send-recv",
}
_STARTS = re.compile(r"\b(" + "|".join(OPERATIONS) + r")\b")
_RANK = re.compile(r"^#\s+Rank\s+(\d+)\b.*?\bPid\b", re.MULTILINE)
_ROW = re.compile(r"^\s*(\d+)\s+\d+\s+\w+\s+\S+\s+-?\d+\s+(\S+)\s+(\S+)\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclResult:
    """Out-of-place times of a collective.

    Parameters
    ----------
    operation
        As `moecast collective --op` has it.
    ranks
        None where the text lists none.
    rows
        Bytes as nccl-tests count them, and seconds.
    """

    operation: str
    ranks: int | None
    rows: tuple[tuple[int, float], ...]


def is_nccl_tests(text: str) -> bool:
    """Whether a text has the table that nccl-tests print."""
    return "algbw" in text and "busbw" in text


def read_nccl_tests(path: Path, *, operation: str | None = None) -> NcclResult:
    """Read what an nccl-test printed.

    `operation`: which one it was, where its first lines are lost.

    Raises
    ------
    MoecastError
        No such table, no time in it, or no word of which collective it is of.
    """
    text = read_text(path)
    if not is_nccl_tests(text):
        raise MoecastError("no table of nccl-tests (algbw, busbw)", file=path)
    named = sorted(set(_STARTS.findall(text)))
    if operation is None and len(named) != 1:
        rule = (
            "says of no single collective which it is: name it with --op" if not named else "holds several collectives"
        )
        raise MoecastError(rule, file=path, value=", ".join(named) or None)
    rows = {}
    for size, time_us, *_ in _ROW.findall(text):
        seconds = _seconds(time_us, path)
        if int(size) and seconds:
            rows[int(size)] = seconds
    if not rows:
        raise MoecastError("no size with a time", file=path)
    ranks = {int(rank) for rank in _RANK.findall(text)}
    return NcclResult(
        operation=operation or OPERATIONS[named[0]],
        ranks=len(ranks) or None,
        rows=tuple(sorted(rows.items())),
    )


def _seconds(text: str, path: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        raise MoecastError("a time in microseconds", file=path, field="time", value=text) from None
    if not 0 <= value < float("inf"):
        raise MoecastError("a time in microseconds", file=path, field="time", value=text)
    return value / 1e6
