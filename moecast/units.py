"""Quantities with units: "400 Gb/s", "1.5 us" and "80 GiB" in, SI floats inside, short text out."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from pathlib import Path

# A quantity is a number and a unit: pint would also work out "9**9**9 B", and take its time.
_QUANTITY = re.compile(r"\s*[-+]?[0-9][0-9_.]*([eE][-+]?[0-9]{1,3})?\s*[A-Za-zµ][A-Za-zµ/ ]{0,31}")

# What each kind of quantity is converted to, and an example for the error line.
_KINDS = {
    "bandwidth": ("byte/second", "400 Gb/s"),
    "time": ("second", "1.5 us"),
    "size": ("byte", "80 GiB"),
    "rate": ("1/second", "990 TFLOP/s"),
}


@cache
def _registry() -> Any:
    import pint  # 0.3 s: only commands that read files pay it

    registry: Any = pint.UnitRegistry()
    registry.define("FLOP = 1 = flop")
    registry.define("Gb = 1e9 * bit")
    registry.define("Mb = 1e6 * bit")
    registry.define("Tb = 1e12 * bit")
    return registry


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
    unit, example = _KINDS[kind]
    rule = f'give a {kind} with its unit, such as "{example}"'
    if not isinstance(text, str) or not _QUANTITY.fullmatch(text):
        raise MoecastError(rule, file=file, field=field, value=text)
    try:
        quantity = _registry().Quantity(text)
        value = float(quantity.to(unit).magnitude)
    except Exception as error:  # pint raises a dozen types, tokenizer errors among them
        raise MoecastError(rule, file=file, field=field, value=text) from error
    if not 0 <= value < float("inf"):
        raise MoecastError(f"a {kind} is not negative and finite", file=file, field=field, value=text)
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
