"""What the families of kernels compute alike: two times that overlap in part, and numbers that must be positive."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


def soft_maximum(first: Float, second: Float, sharpness: float) -> Float:
    """(a^p + b^p)^(1/p) of two times: the longer of them, or a little more where they are alike.

    `sharpness` p: 1 adds them, infinity takes the longer. Neither overflows nor underflows.
    """
    longer, shorter = np.maximum(first, second), np.minimum(first, second)
    ratio = np.divide(shorter, longer, out=np.zeros_like(longer), where=longer > 0)
    joined: Float = longer * (1 + ratio**sharpness) ** (1 / sharpness)
    return joined


def check_positive(parameters: object, *, may_be_zero: tuple[str, ...] = ()) -> None:
    """See that every number of a dataclass of parameters is positive, or 0 where it may be, and finite.

    Text is not.

    Raises
    ------
    ValueError
        One is not.
    """
    for item in fields(parameters):  # type: ignore[arg-type]
        value = getattr(parameters, item.name)
        if isinstance(value, str):
            continue
        zero = item.name in may_be_zero
        if not (0 < value < float("inf") or (zero and value == 0)):
            raise ValueError(f"{item.name} = {value!r} must be {'at least 0' if zero else 'positive'} and finite")
