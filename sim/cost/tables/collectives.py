"""Measured collectives inside one domain: NCCL's and engines' all-reduces, as `<gpu>/comm/<engine>/<version>/`.

Sizes are elements in the files and bytes here. Operations are called as in
`moecast.sim.collectives`.

Axes: R row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.cost.tables.folder import TableFile, read_rows, table_files
from moecast.sim.cost.tables.grid import interpolate_log

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Str = npt.NDArray[np.str_]

OPERATIONS = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "alltoall": "all-to-all",
}
ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "int8": 1}
FILES = ("nccl_perf.parquet", "custom_allreduce_perf.parquet")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CollectiveTable:
    """The rows of one file.

    Parameters
    ----------
    gpu, engine, version
        The folders that it stands in; engine "nccl" for NCCL's.
    misplaced
        Whether its rows are another engine's than its folder's.
    operation_R, ranks_R, bytes_R, eager_R
        What was run; `eager_R`: without a CUDA graph.
    seconds_R
        How long it took.

    Raises
    ------
    ValueError
        Columns of different lengths, or a number that is not above 0 and finite.
    """

    gpu: str
    engine: str
    version: str
    misplaced: bool
    operation_R: Str
    ranks_R: Int
    bytes_R: Float
    eager_R: Bool
    seconds_R: Float

    def __post_init__(self) -> None:
        n = len(self.seconds_R)
        for name in ("operation_R", "ranks_R", "bytes_R", "eager_R"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name}: {len(getattr(self, name))} rows, must be {n}")
        for name in ("ranks_R", "bytes_R", "seconds_R"):
            column = getattr(self, name)
            if not (np.isfinite(column) & (column > 0)).all():
                raise ValueError(f"{name}: must be above 0 and finite")


def read_tables(root: Path) -> tuple[CollectiveTable, ...]:
    """Read every table of collectives below a root, NCCL's first, by GPU, engine and version.

    Raises
    ------
    MoecastError
        A file without a column that it must have, or with an operation or element type that nobody
        knows.
    """
    return tuple(_read(file) for name in FILES for file in table_files(root, "comm", name))


def _read(file: TableFile) -> CollectiveTable:
    path, engine, version = file.path, file.engine, file.version
    table = read_rows(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    nccl = path.name == FILES[0]
    type_column = "nccl_dtype" if nccl else "allreduce_dtype"
    for name in ("op_name", "num_gpus", "message_size", "latency", type_column):
        if name not in columns:
            raise MoecastError("a column that the table must have", file=str(path), field=name)
    sources = columns.get("kernel_source", [""] * table.num_rows)
    try:
        operations = [OPERATIONS[name] for name in columns["op_name"]]
        element_bytes = np.array([ELEMENT_BYTES[name] for name in columns[type_column]], np.float64)
    except KeyError as unknown:
        raise MoecastError(
            "an operation or element type that is known", file=str(path), value=unknown.args[0]
        ) from None
    if nccl and engine != "nccl":  # the folder's version is the engine's
        version = str(columns.get("version", [version])[0])
    return CollectiveTable(
        gpu=file.gpu,
        engine="nccl" if nccl else engine,
        version=version,
        misplaced=engine == "sglang" and "TRTLLM" in sources,
        operation_R=np.array(operations),
        ranks_R=np.array(columns["num_gpus"], np.int64),
        bytes_R=np.array(columns["message_size"], np.float64) * element_bytes,
        eager_R=np.array([str(name).endswith("_eager") for name in sources], bool),
        seconds_R=np.array(columns["latency"], np.float64) * 1e-3,
    )


def interpolate(
    table: CollectiveTable, operation: str, ranks: int, size_bytes: npt.ArrayLike, *, eager: bool = False
) -> tuple[Float, Bool]:
    """Seconds at sizes between measured ones, and which sizes are covered (see `interpolate_log`)."""
    rows = (table.operation_R == operation) & (table.ranks_R == ranks) & (table.eager_R == eager)
    if not rows.any():
        asked = np.asarray(size_bytes, np.float64)
        return np.full(asked.shape, np.nan), np.zeros(asked.shape, bool)
    return interpolate_log((table.bytes_R[rows],), table.seconds_R[rows], (size_bytes,))
