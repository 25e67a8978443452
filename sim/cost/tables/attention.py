"""Measured times of attention kernels by shape: over prompts (`context_…`) and over caches (`generation_…`), and MLA's.

Layout: `<gpu>/attention/<engine>/<version>/{context,generation}_attention_perf.parquet` and
`<gpu>/mla/<engine>/<version>/{context,generation}_mla_perf.parquet`, milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moecast.errors import MoecastError
from moecast.sim.cost.attention_kinds import kernel_class
from moecast.sim.cost.tables.folder import ANY, Owner, TableFile, read_rows, table_files
from moecast.sim.cost.tables.grid import interpolate_log

Float = npt.NDArray[np.float64]
Text = npt.NDArray[np.str_]

TYPE_NAMES = {"bfloat16": "bf16", "fp8": "fp8"}
PHASES = {"context": "prefill", "generation": "decode"}
# Kernels that stand beside an engine's main one, each width of heads apart; vLLM sends prompts of
# one token to the kernel of decode.
_OTHERS = {"triton": "triton", "vllm_triton_attn": "triton", "vllm_flash_attn_fa4": "fa4"}
_OTHERS |= {"flashinfer": "flashinfer", "torch_flow_flashinfer": "flashinfer"}
_ONE_TOKEN = {("prefill", "vllm_flashinfer_trtllmdecode"): "one token"}
_COLUMNS = ("batch_size", "isl", "step", "num_heads", "latency")


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTable:
    """Times of one GPU, engine, version, phase, pair of element types and kernel. Axes: R row.

    `tokens_R` are the new tokens of a sequence and `keys_R` the keys before (prefill) or in all
    (decode). MLA (`latent`): heads of 192 and 128 in prefill; in decode one key head, the latent
    vector and rotary key of 576.
    """

    gpu: str
    engine: str
    version: str
    phase: str
    types: str
    kernel: str
    latent: bool
    batch_R: Float
    tokens_R: Float
    keys_R: Float
    heads_R: Float
    kv_heads_R: Float
    head_dim_R: Float
    window_R: Float
    seconds_R: Float

    def __post_init__(self) -> None:
        for item in fields(self):
            values = getattr(self, item.name)
            if not item.name.endswith("_R"):
                continue
            least = -1.0 if item.name in ("keys_R", "window_R") else 0.0
            if values.shape != self.seconds_R.shape or not (np.isfinite(values) & (values > least)).all():
                raise ValueError(f"{item.name}: one positive number a row")

    @property
    def kind(self) -> str:
        """Phase, element types and kernel: the kind of its parameters."""
        return f"{self.phase} {self.types} {self.kernel}".strip()


def read_attention(root: Path, *, owner: Owner = ANY) -> Iterator[AttentionTable]:
    """Tables of multi-head and grouped-query attention under `root`.

    Raises
    ------
    MoecastError
        A file without one of the columns, or with a type or a number that is none.
    """
    yield from _read(root, owner, "attention", "_attention_perf", ("num_key_value_heads", "head_dim"))


def read_mla(root: Path, *, owner: Owner = ANY) -> Iterator[AttentionTable]:
    """Tables of multi-head latent attention's kernels under `root`; as `read_attention`."""
    yield from _read(root, owner, "mla", "_mla_perf", ())


def _read(root: Path, owner: Owner, family: str, ending: str, more: tuple[str, ...]) -> Iterator[AttentionTable]:
    for word, phase in PHASES.items():
        for file in table_files(root, family, f"{word}{ending}.parquet", owner=owner):
            rows = read_rows(file.path)
            wanted = (*_COLUMNS, *more, "kernel_source", "kv_cache_dtype")
            if missing := [name for name in wanted if name not in rows.column_names]:
                raise MoecastError(f"{file.path}: no column {', '.join(missing)}")
            try:
                yield from _split(file, rows, phase, latent=family == "mla")
            except ValueError as error:
                raise MoecastError(f"{file.path}: {error}") from None


def numbers(rows: pa.Table, name: str) -> Float:
    """A column of numbers."""
    return np.asarray(rows[name].to_numpy(), np.float64)


def types_of(rows: pa.Table, name: str) -> Text:
    """A column of element types, by this project's names.

    Raises
    ------
    ValueError
        An unknown type.
    """
    values = np.array(rows[name].to_pylist(), str)
    if odd := sorted(set(values.tolist()) - set(TYPE_NAMES)):
        raise ValueError(f"{name} {odd[0]!r}: one of {', '.join(TYPE_NAMES)}")
    return np.array([TYPE_NAMES[value] for value in values.tolist()], str)


def _split(file: TableFile, rows: pa.Table, phase: str, *, latent: bool) -> Iterator[AttentionTable]:
    columns = _columns(rows, phase, latent=latent)
    types = types_of(rows, "kv_cache_dtype")
    if not latent and phase == "prefill":
        types = np.char.add(np.char.add(types_of(rows, "attn_dtype"), "/"), types)
    group = columns["heads_R"] / columns["kv_heads_R"]
    kernels = np.full(types.shape, "", "U40")
    if not latent:
        kernels = kernel_class(file.engine, phase, group=group, head_dim=columns["head_dim_R"])
        for place, source in enumerate(rows["kernel_source"].to_pylist()):
            if source in _OTHERS:
                kernels[place] = f"{_OTHERS[source]} {columns['head_dim_R'][place]:.0f}"
            kernels[place] = _ONE_TOKEN.get((phase, source), kernels[place])
    for kind in sorted(set(zip(types.tolist(), kernels.tolist(), strict=True))):
        same = (types == kind[0]) & (kernels == kind[1])
        cut: Mapping[str, Float] = {name: values[same] for name, values in columns.items()}
        yield AttentionTable(
            gpu=file.gpu,
            engine=file.engine,
            version=file.version,
            phase=phase,
            types=kind[0],
            kernel=kind[1],
            latent=latent,
            **cut,
        )


def _columns(rows: pa.Table, phase: str, *, latent: bool) -> dict[str, Float]:
    tokens, heads = numbers(rows, "isl"), numbers(rows, "num_heads")
    before = numbers(rows, "step")
    absorbed = latent and phase == "decode"
    columns = {
        "batch_R": numbers(rows, "batch_size"),
        "tokens_R": tokens,
        "keys_R": before + (tokens if phase == "decode" else 0),
        "heads_R": heads,
        "kv_heads_R": np.ones_like(heads) if absorbed else heads,
        "head_dim_R": np.full_like(heads, 576.0 if absorbed else 192.0),
        "window_R": np.zeros_like(heads),
        "seconds_R": numbers(rows, "latency") * 1e-3,
    }
    if not latent:
        columns["kv_heads_R"] = numbers(rows, "num_key_value_heads")
        columns["head_dim_R"] = numbers(rows, "head_dim")
        if "window_size" in rows.column_names:
            columns["window_R"] = numbers(rows, "window_size")
    return columns


def interpolate(
    table: AttentionTable,
    batch: npt.ArrayLike,
    length: npt.ArrayLike,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int = 0,
) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Measured seconds by batch and tokens (prefill) or keys (decode), and which the table covers.

    See `interpolate_log`; heads and widths must be measured ones.
    """
    same = (table.heads_R == heads) & (table.kv_heads_R == kv_heads)
    same &= (table.head_dim_R == head_dim) & (table.window_R == window)
    along = table.tokens_R if table.phase == "prefill" else table.keys_R
    return interpolate_log((table.batch_R[same], along[same]), table.seconds_R[same], (batch, length))
