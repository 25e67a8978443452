"""Measured times of dense matrix products: one row per kernel, element type and shape [m, k] x [k, n]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from moecast.errors import MoecastError
from moecast.sim.cost.tables.folder import ANY, Owner, read_rows, table_files
from moecast.sim.cost.tables.grid import interpolate_log

Float = npt.NDArray[np.float64]

# The tables' names of element types. "sq" is SmoothQuant, int8 by int8.
TYPE_NAMES = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int8_wo": "int8_wo",
    "int4_wo": "int4_wo",
    "sq": "w8a8_int8",
}
HOST_TIMED_S = 30e-6  # no GPU takes this long to launch: a smallest time above it is the host's
_COLUMNS = ("gemm_dtype", "kernel_source", "m", "n", "k", "latency")


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmTable:
    """Times of one GPU, engine, version and element type, sorted by shape so that a draw does not hang on file order.

    Axes: R row.
    """

    gpu: str
    engine: str
    version: str
    element_type: str
    m_R: Float
    n_R: Float
    k_R: Float
    seconds_R: Float
    kernels: tuple[str, ...]  # every kernel that the rows name

    @property
    def host_timed(self) -> bool:
        """Whether the smallest products took the time of the host that launched them, not of a kernel."""
        return float(np.quantile(self.seconds_R, 0.01)) > HOST_TIMED_S

    def __post_init__(self) -> None:
        for name in ("m_R", "n_R", "k_R", "seconds_R"):
            values = getattr(self, name)
            if values.shape != self.seconds_R.shape or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name}: one positive number a row")


def read_gemm(root: Path, *, owner: Owner = ANY) -> Iterator[GemmTable]:
    """The tables under `root` (`<gpu>/gemm/<engine>/<version>/*.parquet`, milliseconds), one for each element type.

    Raises
    ------
    MoecastError
        A file without one of the columns, or with a type or a number that is none.
    """
    for file in table_files(root, "gemm", owner=owner):
        rows = read_rows(file.path, list(_COLUMNS))
        for name in sorted(pc.unique(rows["gemm_dtype"]).to_pylist()):
            if name not in TYPE_NAMES:
                raise MoecastError(f"{file.path}: gemm_dtype {name!r}: one of {', '.join(TYPE_NAMES)}")
            part = rows.filter(pc.equal(rows["gemm_dtype"], name))
            m, n, k, milliseconds = (part[column].to_numpy().astype(np.float64) for column in _COLUMNS[2:])
            order = np.lexsort((k, n, m))
            try:
                yield GemmTable(
                    gpu=file.gpu,
                    engine=file.engine,
                    version=file.version,
                    element_type=TYPE_NAMES[name],
                    m_R=m[order],
                    n_R=n[order],
                    k_R=k[order],
                    seconds_R=milliseconds[order] * 1e-3,
                    kernels=tuple(sorted(pc.unique(part["kernel_source"]).to_pylist())),
                )
            except ValueError as error:
                raise MoecastError(f"{file.path}: {name}: {error}") from None


def interpolate(
    table: GemmTable, m: npt.ArrayLike, n: npt.ArrayLike, k: npt.ArrayLike
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Measured seconds of the asked shapes, and which of them the table covers; see `interpolate_log`."""
    return interpolate_log((table.m_R, table.n_R, table.k_R), table.seconds_R, (m, n, k))
