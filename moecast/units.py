"""Quantities with units: "400 Gb/s", "1.5 us" and "80 GiB" in, SI floats inside, short text out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from pathlib import Path

_NUMBER = re.compile(
    r"\s*([-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?)\s*([A-Za-zµμ][A-Za-zµμ/ ]{0,31})"
)

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0,
}  # fmt: skip


def _multiples(units: dict[str, float], *prefixes: dict[str, float]) -> dict[str, float]:
    return {
        prefix + unit: size * scale
        for unit, size in units.items()
        for all_ in prefixes
        for prefix, scale in all_.items()
    }


# The units that each kind of quantity takes, in SI: listed, so that none of another dimension
# passes; and an example.
_KINDS: dict[str, tuple[dict[str, float], str]] = {
    "bandwidth": (
        _multiples({"B/s": 1.0, "Bps": 1.0, "b/s": 0.125, "bit/s": 0.125, "bps": 0.125}, _DECIMAL, _BINARY),
        "400 Gb/s",
    ),
    "time": (_SECONDS, "1.5 us"),
    "size": (_multiples({"B": 1.0, "byte": 1.0, "bytes": 1.0}, _DECIMAL, _BINARY), "80 GiB"),
    "rate": (_multiples({"FLOP/s": 1.0, "FLOPS": 1.0, "FLOPs": 1.0, "flop/s": 1.0}, _DECIMAL), "990 TFLOP/s"),
}


def parse(text: object, kind: str, *, file: str | Path | None = None, field: str | None = None) -> float:
    """Read a quantity such as "400 Gb/s" as an SI float.

    Parameters
    ----------
    text
        The string; a bare number is refused, since its unit would be a guess.
    kind
        "bandwidth" (bytes/s), "time" (s), "size" (bytes) or "rate" (FLOP/s).
    file, field
        Named in the error.

    Raises
    ------
    MoecastError
        No unit, a unit of another kind, or a value that is negative or not finite.
    """
    units, example = _KINDS[kind]
    found = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    scale = None if found is None else units.get(found[2].replace(" ", ""))
    if found is None or scale is None:
        raise MoecastError(f'give a {kind} with its unit, such as "{example}"', file=file, field=field, value=text)
    value = float(found[1]) * scale
    if not 0 <= value < float("inf"):
        rule = f"a {kind} is not negative and finite"
        raise MoecastError(rule, file=file, field=field, value=text)
    return value


def _scaled(
    value: float, unit: str, steps: tuple[tuple[float, str], ...], *, digits: int = 3, zeros: bool = True
) -> str:
    """The value in the largest of the steps that it reaches, with `digits` significant digits, or without end zeros."""
    size, prefix = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    number = f"{value / size:#.{digits}g}".rstrip(".") if zeros else f"{value / size:.{digits}g}"
    return f"{number} {prefix}{unit}"


def format_s(value: float) -> str:
    """Seconds as text with three digits: "1.23 ms"."""
    return _scaled(value, "s", ((1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")))


def format_bytes(value: float) -> str:
    """Bytes as text in binary multiples: "3.2 GiB"."""
    return _scaled(value, "B", ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"), (1, "")), digits=4)


def format_Bps(value: float) -> str:
    """Bytes per second as text in decimal multiples: "50 GB/s"."""
    return _scaled(value, "B/s", ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")), zeros=False)


def format_count(value: float) -> str:
    """A large count as text: "1.2 M"."""
    return _scaled(value, "", ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))).strip()


def format_percent(part: float) -> str:
    """Write a part of a whole in percent: "12.3 %"."""
    return f"{100 * part:.1f} %"


_PLAIN = {
    "·": "*", "×": "x", "…": "...", "÷": "/", "–": "-", "−": "-", "µ": "u", "μ": "u", "ρ": "rho", "α": "alpha",
    "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")", "│": "|", "─": "-", "‖": "|", "Σ": "sum ", "±": "+-", "φ": "phi",
    "├": "+", "┤": "+", "└": "+", "┘": "+", "┌": "+", "┐": "+", "┴": "+", "┬": "+", "┼": "+",
    "≥": ">=", "≤": "<=", "½": "1/2", "√": "sqrt ", "→": "->", "↓": "down", "↑": "up", "²": "^2", "³": "^3", "•": "*",
    "━": "-", "╸": "-", "╺": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip


def plain(text: str) -> str:
    """Spell in ASCII what terminals without such letters are to show: "us" for "µs", and "?" for what nobody listed."""
    return "".join(letter if letter.isascii() else _PLAIN.get(letter, "?") for letter in text)
