"""Measured phases of dispatch and combine: DeepEP's kernels, TensorRT-LLM's over NVLink, and engines' calls of them.

A file of DeepEP has both phases in a row; here they are two, with the same `source_R`.
Normal kernels between nodes exchange counts first, which is in their times.

Axes: R row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.cost.tables.folder import TableFile, read_rows, table_files
from moecast.sim.cost.tables.grid import interpolate_log

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Str = npt.NDArray[np.str_]

FILES = {
    "wideep_deepep_ll_perf.parquet": "deepep-ll",
    "wideep_deepep_normal_perf.parquet": "deepep-normal",
    "trtllm_alltoall_perf.parquet": "nvlink",
    "moe_a2a_perf.parquet": "hosted",
}
HOST_GPUS = {"gb200": 4}
"""GPUs of a host; elsewhere 8."""
DEFAULT_SMS = 20
"""SMs of DeepEP's normal kernels where a row does not say (deepseek-ai/DeepEP, `Buffer.num_sms`)."""
_COLUMNS = [
    "library_R",
    "phase_R",
    "type_R",
    "tokens_R",
    "choices_R",
    "experts_R",
    "hidden_R",
    "ranks_R",
    "hosts_R",
    "sms_R",
    "copy_bytes_R",
    "seconds_R",
    "source_R",
]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DispatchTable:
    """The rows of one file.

    Parameters
    ----------
    gpu, engine, version
        The folders that it stands in.
    library_R, phase_R, type_R
        What carried it, "dispatch", "combine" or another phase, and the element type of the copies.
    tokens_R, choices_R, experts_R, hidden_R, ranks_R, hosts_R, sms_R
        Tokens of a rank, choices of a token, experts, width, ranks and hosts of the group, SMs
        given to it.
    copy_bytes_R
        Of one copy.
    seconds_R
        How long it took.
    source_R
        Row of the file.

    Raises
    ------
    ValueError
        Columns of different lengths, or a time that is not above 0 and finite.
    """

    gpu: str
    engine: str
    version: str
    library_R: Str
    phase_R: Str
    type_R: Str
    tokens_R: Int
    choices_R: Int
    experts_R: Int
    hidden_R: Int
    ranks_R: Int
    hosts_R: Int
    sms_R: Int
    copy_bytes_R: Float
    seconds_R: Float
    source_R: Int

    def __post_init__(self) -> None:
        for name in _COLUMNS:
            if len(getattr(self, name)) != len(self.seconds_R):
                raise ValueError(f"{name}: {len(getattr(self, name))} rows, must be {len(self.seconds_R)}")
        if not (np.isfinite(self.seconds_R) & (self.seconds_R > 0)).all():
            raise ValueError("seconds_R: must be above 0 and finite")


def read_tables(root: Path) -> tuple[DispatchTable, ...]:
    """Read every table of dispatch below a root, by kind of file, GPU, engine and version.

    Raises
    ------
    MoecastError
        A file without a column that it must have.
    """
    return tuple(_read(file) for name in FILES for file in table_files(root, "comm", name))


def copy_bytes(hidden: int, element_type: str) -> float:
    """Bytes of a copy: elements, and the scales of 128 of them (FP8) or 16 (NVFP4); a type nobody knows is bf16."""
    per_element = {"fp8": 1 + 4 / 128, "nvfp4": 0.5 + 1 / 16, "fp4": 0.5 + 1 / 16}
    return hidden * per_element.get(element_type, 2.0)


def _read(file: TableFile) -> DispatchTable:
    path, lines_of = file.path, _LINES[FILES[file.path.name]]
    try:
        rows = enumerate(read_rows(path).to_pylist())
        lines = [line for source, row in rows for line in lines_of(file.gpu, source, row)]
    except KeyError as missing:
        rule = "a column that the table must have"
        raise MoecastError(rule, file=path, field=str(missing.args[0])) from None
    columns: dict[str, Any] = {name: np.array([line[at] for line in lines]) for at, name in enumerate(_COLUMNS)}
    return DispatchTable(gpu=file.gpu, engine=file.engine, version=file.version, **columns)


def _low_latency(gpu: str, source: int, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        _deepep("deepep-ll", gpu, source, row, phase, row[f"{phase}_avg_t_us"], 0) for phase in ("dispatch", "combine")
    ]


def _normal(gpu: str, source: int, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        _deepep(
            "deepep-normal",
            gpu,
            source,
            row,
            phase,
            row[f"{phase}_transmit_us"] + row[f"{phase}_notify_us"],
            row[f"{phase}_sms"],
        )
        for phase in ("dispatch", "combine")
    ]


def _deepep(library: str, gpu: str, source: int, row: dict[str, Any], phase: str, us: float, sms: int) -> Any:
    element_type, hosts = "fp8" if phase == "dispatch" else "bfloat16", row["node_num"]
    return (
        library,
        phase,
        element_type,
        row["num_token"],
        row["num_topk"],
        row["num_experts"],
        row["hidden_size"],
        hosts * HOST_GPUS.get(gpu, 8),
        hosts,
        sms,
        copy_bytes(row["hidden_size"], element_type),
        us * 1e-6,
        source,
    )


def _nvlink(gpu: str, source: int, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    phase, element_type = row["op_name"].removeprefix("alltoall_"), row["moe_dtype"]
    library = {"NVLinkOneSided": "nvlink-one-sided"}.get(row["kernel_source"], "nvlink-two-sided")
    moved = copy_bytes(row["hidden_size"], element_type if phase == "dispatch" else "bfloat16")
    return [
        (
            library,
            phase,
            element_type,
            row["num_tokens"],
            row["topk"],
            row["num_experts"],
            row["hidden_size"],
            row["moe_ep_size"],
            max(1, row["moe_ep_size"] // HOST_GPUS.get(gpu, 8)),
            0,
            4.0 * row["topk"] if phase == "prepare" else moved,
            row["latency"] * 1e-3,
            source,
        )
    ]


def _hosted(gpu: str, source: int, row: dict[str, Any]) -> list[tuple[Any, ...]]:  # noqa: ARG001
    library = row["comm_backend"].removeprefix("trtllm_").replace("_", "-")
    moved = copy_bytes(row["hidden_size"], row["comm_dtype"] if row["phase"] == "dispatch" else "bfloat16")
    return [(
        f"hosted-{library}", row["phase"], row["comm_dtype"], row["num_tokens"], row["topk"], row["num_experts"],
        row["hidden_size"], row["ep_size"], row["node_num"], row["sms"] or DEFAULT_SMS, moved, row["latency"] * 1e-6,
        source,
    )]  # fmt: skip


_LINES = {"deepep-ll": _low_latency, "deepep-normal": _normal, "nvlink": _nvlink, "hosted": _hosted}


def interpolate(table: DispatchTable, rows: Bool, tokens: npt.ArrayLike) -> tuple[Float, Bool]:
    """Seconds at numbers of tokens between measured ones of some rows, and which numbers they cover.

    `rows`: those of one library, phase, type, group and width; see `interpolate_log`.
    """
    if not rows.any():
        asked = np.asarray(tokens, np.float64)
        return np.full(asked.shape, np.nan), np.zeros(asked.shape, bool)
    return interpolate_log((table.tokens_R[rows],), table.seconds_R[rows], (tokens,))
