"""Requests that others recorded: Mooncake's JSONL, Azure's LLM inference CSV, BurstGPT's CSV, or a user's own columns.

Formats (checked 2026-11 against their public descriptions): Mooncake (arXiv 2407.00079) has
`timestamp` in ms, `input_length`, `output_length` and `hash_ids`, one for each 512 tokens of the
prompt; Azure's 2023 and 2024 traces have `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`; BurstGPT
(arXiv 2401.17644) `Timestamp` in s, `Request tokens`, `Response tokens`, where a response of 0
tokens is a failure and no request.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_text
from moecast.sim.serving.request import MOST_TOKENS, Request

Row = Mapping[str, Any]

HASHED_TOKENS = 512
MOST_ROWS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a file say what.

    Parameters
    ----------
    arrival, prompt, output
        Names of columns.
    per_s
        Units of the arrival time in a second: 1,000 where it is in ms. Dates are read whatever it
        says.
    hashes
        A column of hashes, one for each `HASHED_TOKENS` of the prompt.
    drops_empty
        Rows without output tokens are failures, which are left out, instead of mistakes.
    """

    name: str
    arrival: str
    prompt: str
    output: str
    per_s: float = 1.0
    hashes: str = ""
    drops_empty: bool = False

    @property
    def needed(self) -> tuple[str, str, str]:
        """The columns that no file can do without."""
        return self.arrival, self.prompt, self.output


FORMATS = (
    Columns(
        name="Mooncake",
        arrival="timestamp",
        prompt="input_length",
        output="output_length",
        per_s=1000.0,
        hashes="hash_ids",
    ),
    Columns(name="Azure LLM inference", arrival="TIMESTAMP", prompt="ContextTokens", output="GeneratedTokens"),
    Columns(name="BurstGPT", arrival="Timestamp", prompt="Request tokens", output="Response tokens", drops_empty=True),
    Columns(name="moecast", arrival="arrival_s", prompt="prompt_tokens", output="output_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Requests of a file, in the order of their arrival, the first at 0; and how many rows were failures."""

    requests: tuple[Request, ...]
    format: str
    left_out: int = 0


def parse_columns(text: str) -> Columns:
    """Read a user's own columns: ``arrival=t,prompt=in,output=out``, and ``per_s=1000`` where times are in ms.

    Raises
    ------
    MoecastError
        One of the three is missing, or another is named.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        name, _, column = part.partition("=")
        if name.strip() not in ("arrival", "prompt", "output", "per_s") or not column:
            rule = "names of columns, as in arrival=t,prompt=in,output=out, and per_s=1000 for times in ms"
            raise MoecastError(rule, field="--columns", value=part)
        given[name.strip()] = column.strip()
    missing = [name for name in ("arrival", "prompt", "output") if name not in given]
    if missing:
        raise MoecastError(f"says no {missing[0]}", field="--columns", value=text)
    try:
        per_s = float(given.pop("per_s", "1"))
    except ValueError as error:
        raise MoecastError("units of the arrival time in a second", field="--columns per_s", value=text) from error
    if not (math.isfinite(per_s) and per_s > 0):
        raise MoecastError("units of the arrival time in a second", field="--columns per_s", value=per_s)
    return Columns(
        name="own columns", per_s=per_s, arrival=given["arrival"], prompt=given["prompt"], output=given["output"]
    )


def read_requests(path: Path, *, columns: Columns | None = None, most: int | None = None) -> Recorded:
    """Read a file of requests.

    Parameters
    ----------
    columns
        Which columns say what; None: those of a known format.
    most
        Take the first ones only.

    Raises
    ------
    MoecastError
        No such file, columns that no format has, or a row without a length: names the row.
    """
    rows = _json_rows(path) if path.suffix in (".jsonl", ".json") else _csv_rows(path)
    if not rows:
        raise MoecastError("holds no request", file=path)
    known = columns or _format_of(rows[0], path)
    for name in known.needed:
        if name not in rows[0]:
            raise MoecastError(
                f"the file has no such column; it has {', '.join(map(str, rows[0]))}", file=path, field=name
            )
    found = [(number, row) for number, row in enumerate(rows, 1) if not _failed(row, known)]
    if not found:
        raise MoecastError("every request in it failed", file=path)
    timed = sorted(((_seconds(row, known, path, number), number, row) for number, row in found), key=lambda t: t[:2])
    timed = timed[:most]
    groups = _prefixes([_chain(row, known, path, number) for _, number, row in timed])
    requests = tuple(
        Request(
            id=place,
            arrival_s=time_s - timed[0][0],
            prompt_tokens=_tokens(row, known.prompt, path, number),
            output_tokens=_tokens(row, known.output, path, number),
            prefix_group=group,
            prefix_tokens=min(shared, _tokens(row, known.prompt, path, number)),
        )
        for place, ((time_s, number, row), (group, shared)) in enumerate(zip(timed, groups, strict=True))
    )
    return Recorded(requests=requests, format=known.name, left_out=len(rows) - len(found))


def _json_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise MoecastError("not a line of JSON", file=path, field=f"line {number}") from error
        if not isinstance(row, dict):
            rule = "a line is an object with a request's fields"
            raise MoecastError(rule, file=path, field=f"line {number}")
        rows.append(row)
        _check_count(rows, path)
    return rows


def _csv_rows(path: Path) -> list[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path)), restval="", strict=True)
    rows: list[Row] = []
    try:
        for row in reader:
            rows.append({(name or "").strip(): value for name, value in row.items()})
            _check_count(rows, path)
    except csv.Error as error:
        raise MoecastError(f"row {len(rows) + 1}: {error}", file=path) from error
    return rows


def _check_count(rows: Sequence[Row], path: Path) -> None:
    if len(rows) > MOST_ROWS:
        raise MoecastError(f"at most {MOST_ROWS:,} requests", file=path)


def _format_of(row: Row, path: Path) -> Columns:
    for known in FORMATS:
        if all(name in row for name in known.needed):
            return known
    nearest = max(FORMATS, key=lambda known: sum(name in row for name in known.needed))
    missing = [name for name in nearest.needed if name not in row]
    if len(missing) == 1:
        rule = f"the file has no such column, which {nearest.name}'s have; it has {', '.join(map(str, row))}"
        raise MoecastError(rule, file=path, field=missing[0])
    wanted = "; ".join(f"{known.name}: {', '.join(known.needed)}" for known in FORMATS)
    raise MoecastError(f"has none of the known columns ({wanted}): name yours with --columns", file=path)


def _failed(row: Row, known: Columns) -> bool:
    return known.drops_empty and str(row.get(known.output, "")).strip() in ("0", "0.0")


def _seconds(row: Row, known: Columns, path: Path, number: int) -> float:
    value = row.get(known.arrival)
    try:
        seconds = float(value) / known.per_s  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = _date_s(str(value))
    if not math.isfinite(seconds):
        rule = "must be a time, in seconds or as a date"
        raise MoecastError(rule, file=path, field=f"row {number}, {known.arrival}", value=value)
    return seconds


def _date_s(text: str) -> float:
    """Seconds of a date; of digits behind the second, six are read."""
    head, dot, rest = text.strip().partition(".")
    digits = "".join(char for char in rest if char.isdigit())[:6]
    try:
        return datetime.fromisoformat(head + (dot + digits.ljust(6, "0") if dot else "")).timestamp()
    except (ValueError, OverflowError, OSError):
        return math.nan


def _tokens(row: Row, column: str, path: Path, number: int) -> int:
    value = row.get(column)
    try:
        tokens = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        tokens = math.nan
    if not (math.isfinite(tokens) and 1 <= tokens <= MOST_TOKENS and tokens == int(tokens)):
        rule = f"a request has a length here: a whole number of tokens, 1 to {MOST_TOKENS}"
        raise MoecastError(rule, file=path, field=f"row {number}, {column}", value=value)
    return int(tokens)


def _chain(row: Row, known: Columns, path: Path, number: int) -> tuple[int | str, ...]:
    """Hashes of a prompt's blocks, in order; of most formats none."""
    value = row.get(known.hashes) or () if known.hashes else ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, (int, str)) for one in value):
        rule = "a list of hashes, one for each block of the prompt"
        raise MoecastError(rule, file=path, field=f"row {number}, {known.hashes}", value=value)
    return tuple(value)


def _prefixes(chains: Sequence[tuple[int | str, ...]]) -> list[tuple[int, int]]:
    """Group and common tokens of each request: those that begin alike, as far as anybody else goes along.

    Requests that begin alike may part at different places. One group holds them all, so that what
    two of them have in common is taken to be the shorter of what each has in common with somebody.
    """
    counts: Counter[tuple[int | str, ...]] = Counter(
        chain[:end] for chain in chains for end in range(1, len(chain) + 1)
    )
    groups: dict[Any, int] = {}
    found = []
    for chain in chains:
        alike = sum(counts[chain[:end]] > 1 for end in range(1, len(chain) + 1))
        group = groups.setdefault(chain[0], len(groups)) if alike else -1
        found.append((group, alike * HASHED_TOKENS))
    return found
