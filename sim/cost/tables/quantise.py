"""Measured times of quantisation kernels: one row per shape [m, k]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.cost.tables.folder import read_rows, table_files
from moecast.sim.cost.tables.grid import interpolate_log

Float = npt.NDArray[np.float64]

KIND_NAMES = {"compute_scale": "find_scale", "scale_matrix": "scale"}
_COLUMNS = ("op_name", "kernel_source", "m", "k", "latency")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantiseTable:
    """Times of one GPU, engine, version and kind of kernel, sorted by shape. Axes: R row."""

    gpu: str
    engine: str
    version: str
    kind: str
    m_R: Float
    k_R: Float
    seconds_R: Float
    kernels: tuple[str, ...]
    left_out: int = 0  # rows without a time: the difference of two timings that was none

    def __post_init__(self) -> None:
        for name in ("m_R", "k_R", "seconds_R"):
            values = getattr(self, name)
            if values.shape != self.seconds_R.shape or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name}: one positive number a row")


def read_quantise(root: Path) -> Iterator[QuantiseTable]:
    """The tables under `root` (`<gpu>/quantize/<engine>/<version>/*.parquet`, milliseconds).

    Raises
    ------
    MoecastError
        A file without one of the columns, or with an operation or a number that is none.
    """
    for file in table_files(root, "quantize"):
        rows = read_rows(file.path)
        if missing := [name for name in _COLUMNS if name not in rows.column_names]:
            raise MoecastError(f"{file.path}: no column {', '.join(missing)}")
        (operation,) = set(rows["op_name"].to_pylist()) or {""}
        if operation not in KIND_NAMES:
            raise MoecastError(f"{file.path}: op_name {operation!r}: one of {', '.join(KIND_NAMES)}")
        m, k, milliseconds = (rows[name].to_numpy().astype(np.float64) for name in _COLUMNS[2:])
        timed = milliseconds != 0
        order = np.lexsort((k, m))[timed[np.lexsort((k, m))]]
        try:
            yield QuantiseTable(
                gpu=file.gpu,
                engine=file.engine,
                version=file.version,
                kind=KIND_NAMES[operation],
                m_R=m[order],
                k_R=k[order],
                seconds_R=milliseconds[order] * 1e-3,
                kernels=tuple(sorted(set(rows["kernel_source"].to_pylist()))),
                left_out=int((~timed).sum()),
            )
        except ValueError as error:
            raise MoecastError(f"{file.path}: {error}") from None


def interpolate(table: QuantiseTable, m: npt.ArrayLike, k: npt.ArrayLike) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Measured seconds of the asked shapes, and which of them the table covers; see `interpolate_log`."""
    return interpolate_log((table.m_R, table.k_R), table.seconds_R, (m, k))
