"""Measured times between the points of a grid: straight lines in the logarithms, and nothing beyond the grid."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LogGrid:
    """Logarithms of values on a grid; nan where nothing was measured."""

    axes: tuple[Float, ...]
    logarithms: Float

    @classmethod
    def of(cls, points: tuple[npt.ArrayLike, ...], values_R: npt.ArrayLike) -> LogGrid:
        """Lay values on the grid of their points; a point measured twice counts as the first."""
        columns = [np.asarray(points_R, np.float64) for points_R in points]
        axes = tuple(np.unique(column) for column in columns)
        grid = np.full([axis.size for axis in axes], np.nan)
        where = tuple(np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True))
        backwards = tuple(cell[::-1] for cell in where)  # so that of two times the first stays
        grid[backwards] = np.log(np.asarray(values_R, np.float64))[::-1]
        return cls(axes=axes, logarithms=grid)

    def at(self, asked: tuple[npt.ArrayLike, ...]) -> tuple[Float, Bool]:
        """Values at the asked points, and which of them the grid covers; see `interpolate_log`."""
        axes, grid = self.axes, self.logarithms
        wanted = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in asked))
        lower, share = zip(*(_bracket(axis, x) for axis, x in zip(axes, wanted, strict=True)), strict=True)
        total, inside = np.zeros(wanted[0].shape), np.ones(wanted[0].shape, bool)
        for corner in product((0, 1), repeat=len(axes)):
            weight = np.prod([part if up else 1 - part for part, up in zip(share, corner, strict=True)], axis=0)
            index = tuple(
                np.minimum(low + up, axis.size - 1) for low, up, axis in zip(lower, corner, axes, strict=True)
            )
            counts = weight > 0
            inside &= ~counts | np.isfinite(grid[index])
            total = total + np.where(counts, weight * np.where(np.isfinite(grid[index]), grid[index], 0), 0)
        for axis, x in zip(axes, wanted, strict=True):
            inside &= (x >= axis[0]) & (x <= axis[-1]) if axis.size else False
        return np.where(inside, np.exp(total), np.nan), inside


def interpolate_log(
    points: tuple[npt.ArrayLike, ...], seconds_R: npt.ArrayLike, asked: tuple[npt.ArrayLike, ...]
) -> tuple[Float, Bool]:
    """Times at the asked points, and which of them the grid covers (elsewhere the time is nan).

    Exact at measured points; between them multilinear in the logarithms of all axes, so that no
    value lies outside those of the corners around it. A point is covered where every corner that
    counts was measured.

    Parameters
    ----------
    points
        For each axis the coordinate of each measured row [R], positive; a point measured twice
        counts as the first.
    seconds_R
        Measured times, positive.
    asked
        For each axis the coordinates wanted; arrays that broadcast together.
    """
    return LogGrid.of(points, seconds_R).at(asked)


def _bracket(axis: Float, x: Float) -> tuple[npt.NDArray[np.int64], Float]:
    """Index of the grid point at or below, and how far x is to the next one, in logarithms."""
    low = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(axis.size - 1, 0))
    high = np.minimum(low + 1, axis.size - 1)
    span = np.log(axis[high] / axis[low])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(span > 0, np.log(np.maximum(x, axis[0]) / axis[low]) / np.where(span > 0, span, 1), 0.0)
    return low, np.clip(share, 0.0, 1.0)
