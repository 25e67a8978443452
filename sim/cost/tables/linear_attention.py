"""Measured times of linear attention's kernels: short convolution and recurrence, over prompts and in decode.

Layout: `<gpu>/linear_attention/<engine>/<version>/{gdn,mamba2}_perf.parquet`, milliseconds. Of
Mamba-2 only the convolution was measured. TensorRT-LLM's convolutions do not grow with the value
heads: they are taken for those of the keys alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moecast.errors import MoecastError
from moecast.sim.cost.tables.attention import numbers
from moecast.sim.cost.tables.folder import TableFile, read_rows, table_files
from moecast.sim.cost.tables.grid import interpolate_log

Float = npt.NDArray[np.float64]

# Operator and kernel to kind; Mamba-2's convolution apart, whose channels are known.
_KERNELS = {
    "causal_conv1d_fn": "conv prefill",
    "causal_conv1d_update": "conv decode",
    "chunk_gated_delta_rule": "state prefill",
    "chunk_gated_delta_rule_flashinfer": "state prefill",
    "fused_recurrent_gated_delta_rule": "state decode",
    "fused_recurrent_gated_delta_rule_packed_decode": "state decode",
}
_COLUMNS = ("kernel_source", "batch_size", "seq_len", "latency")
_WIDTHS = {
    "gdn": ("num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim"),
    "mamba2": ("nheads", "head_dim", "n_groups", "d_state"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearTable:
    """Times of one GPU, engine, version, operator and kernel, a repeated shape once. Axes: R row."""

    gpu: str
    engine: str
    version: str
    kind: str
    batch_R: Float
    length_R: Float
    channels_R: Float
    heads_R: Float
    key_dim_R: Float
    value_dim_R: Float
    seconds_R: Float

    def __post_init__(self) -> None:
        for item in fields(self):
            values = getattr(self, item.name)
            if not item.name.endswith("_R"):
                continue
            if values.shape != self.seconds_R.shape or not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{item.name}: one positive number a row")


def read_linear(root: Path) -> Iterator[LinearTable]:
    """The tables under `root`.

    Raises
    ------
    MoecastError
        A file without one of the columns, or with a kernel or a number that is none.
    """
    for operator, widths in _WIDTHS.items():
        for file in table_files(root, "linear_attention", f"{operator}_perf.parquet"):
            rows = read_rows(file.path)
            if missing := [name for name in (*_COLUMNS, *widths) if name not in rows.column_names]:
                raise MoecastError(f"{file.path}: no column {', '.join(missing)}")
            kernels = rows["kernel_source"].to_pylist()
            if odd := sorted(set(kernels) - set(_KERNELS)):
                raise MoecastError(f"{file.path}: kernel_source {odd[0]!r}: one of {', '.join(_KERNELS)}")
            try:
                yield from _split(file, rows, operator, np.array([_KERNELS[name] for name in kernels], str))
            except ValueError as error:
                raise MoecastError(f"{file.path}: {error}") from None


def _split(file: TableFile, rows: pa.Table, operator: str, kinds: npt.NDArray[np.str_]) -> Iterator[LinearTable]:
    first, first_dim, second, second_dim = (numbers(rows, name) for name in _WIDTHS[operator])
    if operator == "gdn":
        values = 0 if file.engine == "trtllm" else second * second_dim
        channels = (1 if file.engine == "trtllm" else 2) * first * first_dim + values
        shape = {"channels_R": channels, "heads_R": second, "key_dim_R": first_dim, "value_dim_R": second_dim}
    else:
        channels = first * first_dim + 2 * second * second_dim
        shape = {"channels_R": channels, "heads_R": first, "key_dim_R": second_dim, "value_dim_R": first_dim}
    shape |= {"batch_R": numbers(rows, "batch_size"), "length_R": numbers(rows, "seq_len")}
    for kind in sorted(set(kinds.tolist())):
        same = kinds == kind
        columns = np.stack([values[same] for values in shape.values()], 1)
        shapes, place = np.unique(columns, axis=0, return_inverse=True)
        total = np.bincount(place.ravel(), weights=numbers(rows, "latency")[same] * 1e-3)
        yield LinearTable(
            gpu=file.gpu,
            engine=file.engine,
            version=file.version,
            kind=kind if operator == "gdn" else f"{kind} mamba2",
            seconds_R=total / np.bincount(place.ravel()),
            **dict(zip(shape, shapes.T.copy(), strict=True)),
        )


def interpolate(
    table: LinearTable, batch: npt.ArrayLike, length: npt.ArrayLike, *, heads: int, channels: int
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Measured seconds by batch and tokens, and which the table covers; see `interpolate_log`."""
    same = (table.heads_R == heads) & (table.channels_R == channels)
    return interpolate_log((table.batch_R[same], table.length_R[same]), table.seconds_R[same], (batch, length))
