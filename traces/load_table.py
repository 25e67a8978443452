"""Counts of choices per layer and expert, without the tokens: all that some solvers and engines know.

Axes: L MoE layer, E expert.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from moecast.traces.trace import TraceMeta


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoadTable:
    """How often each expert of each layer was chosen.

    Parameters
    ----------
    load_LE
        int64, not negative.
    meta
        The model and its sizes.

    Raises
    ------
    ValueError
        Not [L, E] whole numbers, or one is negative.
    """

    load_LE: npt.NDArray[np.int64]
    meta: TraceMeta

    def __post_init__(self) -> None:
        load_LE = np.ascontiguousarray(self.load_LE)
        if load_LE.shape != (self.meta.layers, self.meta.experts) or load_LE.dtype.kind not in "iu":
            raise ValueError(f"load_LE: must be whole numbers [{self.meta.layers}, {self.meta.experts}]")
        load_LE = load_LE.astype(np.int64)
        if load_LE.min() < 0:
            raise ValueError("load_LE: a negative count")
        load_LE.flags.writeable = False
        object.__setattr__(self, "load_LE", load_LE)
