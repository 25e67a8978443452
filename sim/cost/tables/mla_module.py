"""Measured times of whole modules of multi-head latent attention: DeepSeek-V3's sizes, with some of its heads.

Layout: `<gpu>/mla/<engine>/<version>/mla_{context,generation}_module_perf.parquet` (TensorRT-LLM,
vLLM) and `wideep_{context,generation}_mla_perf.parquet` (SGLang), milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moecast.errors import MoecastError
from moecast.sim.cost.tables.attention import PHASES, numbers, types_of
from moecast.sim.cost.tables.folder import TableFile, read_rows, table_files
from moecast.sim.cost.tables.grid import interpolate_log

Float = npt.NDArray[np.float64]

GEMM_NAMES = {"bfloat16": "bf16", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
_PATTERNS = ("mla_{}_module_perf.parquet", "wideep_{}_mla_perf.parquet")
# vLLM takes short prompts in the absorbed form, by its kernels of decode.
_ABSORBED = ("FLASHMLA", "FLASH_ATTN_MLA", "FLASHINFER_MLA")
_OTHERS = {"TRTLLM_RAGGED": "ragged", "flashinfer": "flashinfer"}


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaModuleTable:
    """Times of one GPU, engine, version, phase, pair of element types and kernel. Axes: R row.

    `tokens_R` are the new tokens of a sequence, `keys_R` the keys before them (prefill) or in all.
    """

    gpu: str
    engine: str
    version: str
    phase: str
    gemm_type: str
    cache_type: str
    kernel: str
    batch_R: Float
    tokens_R: Float
    keys_R: Float
    heads_R: Float
    seconds_R: Float

    def __post_init__(self) -> None:
        for item in fields(self):
            values = getattr(self, item.name)
            if not item.name.endswith("_R"):
                continue
            least = -1.0 if item.name == "keys_R" else 0.0
            if values.shape != self.seconds_R.shape or not (np.isfinite(values) & (values > least)).all():
                raise ValueError(f"{item.name}: one positive number a row")

    @property
    def kind(self) -> str:
        """Phase, element types and kernel: the kind of its parameters."""
        return f"{self.phase} {self.gemm_type}/{self.cache_type} {self.kernel}".strip()


def read_mla_modules(root: Path) -> Iterator[MlaModuleTable]:
    """The tables under `root`.

    Raises
    ------
    MoecastError
        A file without one of the columns, or with a type or a number that is none.
    """
    for pattern in _PATTERNS:
        for word, phase in PHASES.items():
            for file in table_files(root, "mla", pattern.format(word)):
                rows = read_rows(file.path)
                wanted = ("batch_size", "isl", "step", "num_heads", "latency", "kernel_source", "kv_cache_dtype")
                if missing := [name for name in (*wanted, "mla_dtype") if name not in rows.column_names]:
                    raise MoecastError(f"{file.path}: no column {', '.join(missing)}")
                try:
                    yield from _split(file, rows, phase)
                except ValueError as error:
                    raise MoecastError(f"{file.path}: {error}") from None


def _split(file: TableFile, rows: pa.Table, phase: str) -> Iterator[MlaModuleTable]:
    # Older files have the type of the weights as that of the module.
    gemm_type = "gemm_type" if "gemm_type" in rows.column_names else "mla_dtype"
    gemms = np.array(rows[gemm_type].to_pylist(), str)
    if odd := sorted(set(gemms.tolist()) - set(GEMM_NAMES)):
        raise ValueError(f"{gemm_type} {odd[0]!r}: one of {', '.join(GEMM_NAMES)}")
    caches = types_of(rows, "kv_cache_dtype")
    sources = rows["kernel_source"].to_pylist()
    phases = np.array(["absorbed" if phase == "prefill" and name in _ABSORBED else phase for name in sources], str)
    kernels = np.array([_OTHERS.get(name, "") for name in sources], str)
    tokens, step = numbers(rows, "isl"), numbers(rows, "step")
    # Of decode SGLang's rows have the context where others have the new tokens.
    decode_keys = tokens if file.path.name.startswith("wideep") else step
    keys = decode_keys if phase == "decode" else step
    columns = {
        "batch_R": numbers(rows, "batch_size"),
        "tokens_R": np.ones_like(tokens) if phase == "decode" else tokens,
        "heads_R": numbers(rows, "num_heads"),
        "seconds_R": numbers(rows, "latency") * 1e-3,
    }
    for kind in sorted(set(zip(phases.tolist(), gemms.tolist(), caches.tolist(), kernels.tolist(), strict=True))):
        same = (phases == kind[0]) & (gemms == kind[1]) & (caches == kind[2]) & (kernels == kind[3])
        yield MlaModuleTable(
            gpu=file.gpu,
            engine=file.engine,
            version=file.version,
            phase=kind[0],
            gemm_type=GEMM_NAMES[kind[1]],
            cache_type=kind[2],
            kernel=kind[3],
            keys_R=(keys + tokens if kind[0] == "absorbed" else keys)[same],
            **{name: values[same] for name, values in columns.items()},
        )


def interpolate(
    table: MlaModuleTable, batch: npt.ArrayLike, length: npt.ArrayLike, *, heads: int
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Measured seconds by batch and tokens (prefill) or keys (decode), and which the table covers.

    See `interpolate_log`; the heads must be measured ones.
    """
    same = table.heads_R == heads
    along = table.keys_R if table.phase == "decode" else table.tokens_R
    return interpolate_log((table.batch_R[same], along[same]), table.seconds_R[same], (batch, length))
