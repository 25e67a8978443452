"""Arrays that callers hand in, checked before a compiled loop indexes with them.

A compiled loop does not look where it reads and writes: an id out of range, or one that a cast to
16 or 32 bits wraps, ends the process or changes somebody else's numbers. So ids are checked in the
type in which they come, once, with one pass over the array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int | None, ...]

# Far beyond bytes, seconds and rates that there are; products of two such numbers neither vanish
# nor become infinite, which would let a loop over time stand still.
TINY, HUGE = 1e-100, 1e100


def whole_numbers(
    name: str,
    values: Any,
    *,
    most: int,
    least: int = 0,
    shape: Shape = (None,),
    dtype: npt.DTypeLike = np.int64,
) -> npt.NDArray[Any]:
    """Give whole numbers of `least` to `most` as a contiguous array of `dtype`, which must hold them.

    Parameters
    ----------
    name
        What the message calls it.
    shape
        Its axes; None: of any length.

    Raises
    ------
    TypeError
        Not an array of whole numbers.
    ValueError
        Another shape, or a number out of range; names the first.
    """
    array = _array(name, values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: must be whole numbers, not {array.dtype}")
    _check_shape(name, array, shape)
    if array.size and not least <= int(array.min()) <= int(array.max()) <= most:
        at = tuple(int(i) for i in np.argwhere((array < least) | (array > most))[0])
        raise ValueError(f"{_entry(name, at)} = {int(array[at])}: must be a whole number of {least} to {most}")
    return np.ascontiguousarray(array, dtype)


def numbers(
    name: str,
    values: Any,
    *,
    shape: Shape = (None,),
    positive: bool = False,
) -> npt.NDArray[np.float64]:
    """Give numbers of 0 to `HUGE`, or with `positive` of `TINY` to `HUGE`, as a contiguous array of float64.

    Raises
    ------
    TypeError
        Not an array of numbers.
    ValueError
        Another shape, or a number out of range; names the first.
    """
    array = _array(name, values)
    if array.dtype.kind not in "iuf" and array.size:
        raise TypeError(f"{name}: must be numbers, not {array.dtype}")
    _check_shape(name, array, shape)
    array = np.ascontiguousarray(array, np.float64)
    # not a number is never the least or the most of anything, so what is not within is asked for
    within = (array >= (TINY if positive else 0)) & (array <= HUGE)
    if not within.all():
        at = tuple(int(i) for i in np.argwhere(~within)[0])
        rule = "must be finite and above 0" if positive else "must be finite and at least 0"
        raise ValueError(f"{_entry(name, at)} = {array[at]:g}: {rule} ({TINY:g} to {HUGE:g})")
    return array


def index(name: str, value: Any, *, most: int, least: int = 0) -> int:
    """Give one whole number of `least` to `most`.

    Raises
    ------
    TypeError
        Not a whole number.
    ValueError
        Out of range.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: must be a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} = {value}: must be a whole number of {least} to {most}")
    return int(value)


def _array(name: str, values: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name}: must be an array, {error}") from error


def _check_shape(name: str, array: npt.NDArray[Any], shape: Shape) -> None:
    same = array.ndim == len(shape) and all(
        length is None or length == found for length, found in zip(shape, array.shape, strict=True)
    )
    if not same:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name}: shape {list(array.shape)}, must be [{wanted}]")


def _entry(name: str, at: tuple[int, ...]) -> str:
    return name + "".join(f"[{i}]" for i in at)
