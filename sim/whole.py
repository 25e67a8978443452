"""Single whole numbers and lists of them that callers hand in, checked: degrees, ids and counts of a plan."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np


def whole(name: str, value: Any, *, least: int = 1, most: int = 2**31 - 1) -> int:
    """Give one whole number of `least` to `most`.

    Raises
    ------
    ValueError
        Anything else; `name` is what the message calls it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} = {short(value)}: must be a whole number of {least} to {most}")
    return int(value)


def whole_list(name: str, values: Any, *, rising: bool = False, least_long: int = 1) -> tuple[int, ...]:
    """Give a tuple of whole numbers, none negative; `rising`: each above the one before.

    Raises
    ------
    ValueError
        Names the first that is not.
    """
    if not isinstance(values, (tuple, list)) or len(values) < least_long:
        raise ValueError(f"{name} = {short(values)}: must be a list of whole numbers, at least one")
    ids = tuple(whole(f"{name}[{index}]", value, least=0) for index, value in enumerate(values))
    if rising and any(b <= a for a, b in pairwise(ids)):
        raise ValueError(f"{name} = {short(ids)}: must rise")
    return ids


def short(value: object) -> str:
    """Write a value so that it fits into a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
