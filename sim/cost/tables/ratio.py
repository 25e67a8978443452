"""How much longer a kernel was measured to take than a model says, over a grid of sizes.

A model knows how times follow sizes: waves, tiles, launches. A table knows what they are where
somebody measured. So it is not times that are interpolated but their ratios to the model's, linear
in the logarithms of all axes: exact at measured points, between them as the model goes, and beyond
the grid the nearest measured ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.tables.grid import LogGrid

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MeasuredRatio:
    """Measured over modelled seconds on a grid without holes."""

    grid: LogGrid

    @classmethod
    def of(
        cls, points: tuple[npt.ArrayLike, ...], measured_R: npt.ArrayLike, modelled_R: npt.ArrayLike
    ) -> MeasuredRatio:
        """The ratios at measured points, and in the holes of their grid those of the nearest point along an axis.

        Raises
        ------
        ValueError
            There are no points.
        """
        grid = LogGrid.of(points, np.asarray(measured_R, np.float64) / np.asarray(modelled_R, np.float64))
        if not grid.logarithms.size:
            raise ValueError("points: at least one")
        return cls(grid=replace(grid, logarithms=_filled(grid.logarithms)))

    @property
    def least(self) -> float:
        """The smallest ratio of all."""
        return float(np.exp(self.grid.logarithms.min()))

    def at(self, *asked: npt.ArrayLike) -> Float:
        """Ratios at sizes that broadcast together; beyond the grid those of its edge."""
        pairs = zip(self.grid.axes, asked, strict=True)
        return self.grid.at(tuple(np.clip(np.asarray(sizes, np.float64), axis[0], axis[-1]) for axis, sizes in pairs))[
            0
        ]

    def reaches(self, axis: int, size: float) -> bool:
        """Whether a size lies between measured ones of an axis."""
        return bool(self.grid.axes[axis][0] <= size <= self.grid.axes[axis][-1])


def _filled(grid: Float) -> Float:
    """Holes take the last value before them, else the first after them; along the last axis first."""
    for axis in reversed(range(grid.ndim)):
        lines = np.moveaxis(grid, axis, -1)
        known = np.isfinite(lines)
        before = np.maximum.accumulate(np.where(known, np.arange(lines.shape[-1]), -1), axis=-1)
        first = np.argmax(known, axis=-1)[..., None]
        grid = np.moveaxis(np.take_along_axis(lines, np.where(before < 0, first, before), axis=-1), -1, axis)
    return grid
