"""Measured times of absorbed MLA's batched products: one row per operation, element type, tokens and heads.

The rows do not say the widths; they are DeepSeek-V3's: 128 to 512 before attention and 512 to 128
after it.
"""

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

WIDTHS = {"mla_gen_pre": (128, 512), "mla_gen_post": (512, 128)}  # inner, outer
TYPE_NAMES = {"bfloat16": "bf16", "fp8": "fp8"}
_COLUMNS = ("op_name", "bmm_dtype", "kernel_source", "num_tokens", "num_heads", "latency")


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaBmmTable:
    """Times of one GPU, engine, version and element type, sorted by shape. Axes: R row."""

    gpu: str
    engine: str
    version: str
    element_type: str
    tokens_R: Float
    heads_R: Float
    inner_R: Float
    outer_R: Float
    seconds_R: Float
    kernels: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("tokens_R", "heads_R", "inner_R", "outer_R", "seconds_R"):
            values = getattr(self, name)
            if values.shape != self.seconds_R.shape or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name}: one positive number a row")


def read_mla_bmm(root: Path) -> Iterator[MlaBmmTable]:
    """The tables under `root` (`<gpu>/mla_bmm/<engine>/<version>/*.parquet`, milliseconds). A repeated row is averaged.

    Raises
    ------
    MoecastError
        A file without one of the columns, or with an operation, a type or a number that is none.
    """
    for file in table_files(root, "mla_bmm"):
        rows = read_rows(file.path)
        if missing := [name for name in _COLUMNS if name not in rows.column_names]:
            raise MoecastError(f"{file.path}: no column {', '.join(missing)}")
        operations, types, kernels = (np.array(rows[name].to_pylist(), str) for name in _COLUMNS[:3])
        for name, values, known in (("op_name", operations, WIDTHS), ("bmm_dtype", types, TYPE_NAMES)):
            if odd := sorted(set(values.tolist()) - set(known)):
                raise MoecastError(f"{file.path}: {name} {odd[0]!r}: one of {', '.join(known)}")
        tokens, heads, milliseconds = (rows[name].to_numpy().astype(np.float64) for name in _COLUMNS[3:])
        widths = np.array([WIDTHS[operation] for operation in operations], np.float64).reshape(-1, 2)
        for name in sorted(set(types.tolist())):
            shape = np.column_stack([tokens, heads, widths])[types == name]
            shapes, same = np.unique(shape, axis=0, return_inverse=True)
            total = np.bincount(same.ravel(), weights=milliseconds[types == name])
            try:
                yield MlaBmmTable(
                    gpu=file.gpu,
                    engine=file.engine,
                    version=file.version,
                    element_type=TYPE_NAMES[name],
                    tokens_R=shapes[:, 0],
                    heads_R=shapes[:, 1],
                    inner_R=shapes[:, 2],
                    outer_R=shapes[:, 3],
                    seconds_R=total / np.bincount(same.ravel()) * 1e-3,
                    kernels=tuple(sorted(set(kernels[types == name].tolist()))),
                )
            except ValueError as error:
                raise MoecastError(f"{file.path}: {name}: {error}") from None


def interpolate(
    table: MlaBmmTable, tokens: npt.ArrayLike, heads: npt.ArrayLike, *, inner: int, outer: int
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Measured seconds of the asked shapes, and which of them the table covers; see `interpolate_log`."""
    same = (table.inner_R == inner) & (table.outer_R == outer)
    return interpolate_log((table.tokens_R[same], table.heads_R[same]), table.seconds_R[same], (tokens, heads))
