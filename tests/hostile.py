"""Arrays as nobody should hand them in: each is a good one with one thing wrong that a compiled loop would not see."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

Array = np.ndarray

# Some wrap to a small number where 8, 16, 32 or 63 bits are kept of them.
BEYOND = (10**9, 60_000, 2**16, 2**31, 2**32, 2**40, 2**63)
BELOW = (-2, -(10**8), -(2**31), -(2**40))


@st.composite
def bad_ids(draw: st.DrawFn, good: Array, *, any_length: bool = False) -> Any:
    """Ids out of range at one place, or an array of another type or shape (with `any_length`: of more axes)."""
    kind = draw(st.sampled_from(["beyond", "below", "type", "shape"]))
    if kind == "type":
        return draw(st.sampled_from([good + 0.5, good.astype(object), good.astype(complex), good.astype(str), "text"]))
    if kind == "shape":
        return draw(other_shape(good, any_length=any_length))
    values = good.astype(object)
    at = draw(st.integers(0, good.size - 1))
    values.ravel()[at] = draw(st.sampled_from(BEYOND if kind == "beyond" else BELOW))
    # as numpy would type the list: int64, or uint64 where a number needs it
    large = int(values.max()) >= 2**63
    return np.array((np.maximum(values, 0) if large else values).tolist(), np.uint64 if large else np.int64)


@st.composite
def bad_numbers(draw: st.DrawFn, good: Array, *, any_length: bool = False, signed: bool = False) -> Any:
    """A number that is none or infinite or, unless `signed`, negative or absurd; or another type or shape."""
    kind = draw(st.sampled_from(["value", "type", "shape"]))
    if kind == "type":
        return draw(st.sampled_from([good.astype(object), good.astype(complex), good.astype(str), "text"]))
    if kind == "shape":
        return draw(other_shape(good, any_length=any_length))
    values = good.astype(np.float64)
    wrong = [np.nan, np.inf, -np.inf, *([-1.0, -1e-300, 1e200, np.finfo(np.float64).max] if not signed else [])]
    values.ravel()[draw(st.integers(0, good.size - 1))] = draw(st.sampled_from(wrong))
    return values


@st.composite
def other_shape(draw: st.DrawFn, good: Array, *, any_length: bool = False) -> Array:
    """An axis more, or one that is shorter or longer."""
    if any_length or draw(st.booleans()):
        return good[None]
    axis = draw(st.integers(0, good.ndim - 1))
    if draw(st.booleans()):
        return np.concatenate([good, good], axis=axis)
    return np.delete(good, -1, axis=axis)
