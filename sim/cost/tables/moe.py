"""Measured times of a layer's routed experts on one rank, by shape, tokens, layout and law of their loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from moecast.errors import MoecastError
from moecast.sim.cost.tables.folder import ANY, Owner, TableFile, read_rows, table_files, version_key

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

TYPE_NAMES = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
    "w4a16_mxfp4": "mxfp4_bf16",
    "int4_wo": "int4_wo",
}
UNGATED = (22, 512)
"""Choices and experts of Nemotron-3's larger models, whose experts square a ReLU and have no gate."""
UNGATED_FROM = "0.24"
"""The version of vLLM from which they were timed so."""
BY_GROUPS = {"flashinfer_trtllm": (7168, 256), "min_latency": None}
"""Words in the names of kernels that choose experts by themselves, and (width, experts) of what they chose by groups.

None: whatever chooses 8. SGLang and vLLM show them the routers of models, of which DeepSeek-V3's
has groups.
"""
GROUPS, CHOSEN_GROUPS = 8, 4
_NUMBERS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
_COLUMNS = ("kernel_source", "moe_dtype", *_NUMBERS, "distribution", "latency")


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeTable:
    """Times of one GPU, engine, version, kernel and element type, sorted by shape.

    Axes: R row. `tokens_R` are those of all `ep_R` ranks together; a time is one rank's.
    """

    gpu: str
    engine: str
    version: str
    kernel: str
    element_type: str
    tokens_R: Int
    width_R: Int
    inner_R: Int  # of one expert on this rank: cut by moe_tp
    choices_R: Int
    experts_R: Int
    ep_R: Int
    law_R: npt.NDArray[np.str_]  # balanced, or power_law_A
    gated_R: npt.NDArray[np.bool_]  # whether the kernel multiplies a gate, too
    grouped_R: npt.NDArray[np.bool_]  # whether it chose by groups of experts, whatever was meant
    seconds_R: Float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.seconds_R) & (self.seconds_R > 0)).all():
            raise ValueError("latency: one positive number a row")
        for name in ("tokens_R", "width_R", "inner_R", "choices_R", "experts_R", "ep_R"):
            if (getattr(self, name) < 1).any():
                raise ValueError(f"{name}: at least 1")
        if (self.experts_R % self.ep_R).any():
            raise ValueError("moe_ep_size: must divide num_experts")

    @property
    def known_R(self) -> npt.NDArray[np.bool_]:
        """Rows whose loads can be told: of a router by groups the even ones, not what it makes of a law."""
        return ~self.grouped_R | (self.law_R == "balanced")

    def where(self, which_R: npt.NDArray[np.bool_]) -> MoeTable:
        """The same table with some of its rows."""
        arrays = {name: getattr(self, name)[which_R] for name in self.__slots__ if name.endswith("_R")}
        rest = {name: getattr(self, name) for name in ("gpu", "engine", "version", "kernel", "element_type")}
        return MoeTable(**rest, **arrays)


def read_moe(root: Path, *, owner: Owner = ANY) -> Iterator[MoeTable]:
    """The tables under `root` (`<gpu>/moe/<engine>/<version>/moe_perf.parquet`, milliseconds), one a kernel and type.

    Rows whose experts do not divide by their ranks are left out.

    Raises
    ------
    MoecastError
        A file without one of the columns, or with a type or a number that is none.
    """
    for file in table_files(root, "moe", "moe_perf.parquet", owner=owner):
        rows = read_rows(file.path, list(_COLUMNS))
        pairs = rows.group_by(["kernel_source", "moe_dtype"], use_threads=False).aggregate([]).to_pylist()
        for kernel, name in sorted((pair["kernel_source"], pair["moe_dtype"]) for pair in pairs):
            if name not in TYPE_NAMES:
                raise MoecastError(f"{file.path}: moe_dtype {name!r}: one of {', '.join(TYPE_NAMES)}")
            part = rows.filter(pc.and_(pc.equal(rows["kernel_source"], kernel), pc.equal(rows["moe_dtype"], name)))
            numbers = {column: part[column].to_numpy().astype(np.int64) for column in _NUMBERS}
            law = np.asarray(part["distribution"].to_pylist(), np.str_)
            seconds = part["latency"].to_numpy().astype(np.float64) * 1e-3
            kept = np.flatnonzero(numbers["num_experts"] % np.maximum(numbers["moe_ep_size"], 1) == 0)
            order = kept[np.lexsort((law[kept], *(numbers[column][kept] for column in _NUMBERS)))]
            numbers = {column: values[order] for column, values in numbers.items()}
            try:
                yield MoeTable(
                    gpu=file.gpu,
                    engine=file.engine,
                    version=file.version,
                    kernel=kernel,
                    element_type=TYPE_NAMES[name],
                    tokens_R=numbers["num_tokens"],
                    width_R=numbers["hidden_size"],
                    inner_R=-(-numbers["inter_size"] // np.maximum(numbers["moe_tp_size"], 1)),
                    choices_R=numbers["topk"],
                    experts_R=numbers["num_experts"],
                    ep_R=numbers["moe_ep_size"],
                    law_R=law[order],
                    seconds_R=seconds[order],
                    gated_R=_gated(file, kernel, numbers["topk"], numbers["num_experts"]),
                    grouped_R=_grouped(kernel, numbers["hidden_size"], numbers["topk"], numbers["num_experts"]),
                )
            except ValueError as error:
                raise MoecastError(f"{file.path}: {kernel}, {name}: {error}") from None


def _gated(file: TableFile, kernel: str, choices_R: Int, experts_R: Int) -> npt.NDArray[np.bool_]:
    """Whether rows have a gate: TensorRT-LLM's kernels say it by name, vLLM's do not, where the model's shape does.

    Older versions of vLLM were timed with a gate at these shapes, too: their times are those of
    three matrices.
    """
    bare_R = (choices_R == UNGATED[0]) & (experts_R == UNGATED[1])
    told = file.engine == "vllm" and version_key(file.version) >= version_key(UNGATED_FROM)
    return np.full(choices_R.shape, "nongated" not in kernel) & ~(bare_R & told)


def _grouped(kernel: str, width_R: Int, choices_R: Int, experts_R: Int) -> npt.NDArray[np.bool_]:
    """Whether rows are of a kernel that routes by itself, by groups.

    At 32 even tokens such a row reads half of the experts' weights, by its time: all would be
    beyond the memory's rate.
    """
    for word, only in BY_GROUPS.items():
        if word in kernel:
            eight_R = (choices_R == GROUPS) & (experts_R % GROUPS == 0) & (experts_R > GROUPS)
            return eight_R if only is None else eight_R & (width_R == only[0]) & (experts_R == only[1])
    return np.zeros(choices_R.shape, np.bool_)


def grouped_loads(*, tokens: int, experts: int, parts: int) -> Int:
    """Choices that each slot of the first of `parts` ranks serves where even ones meet a router by groups.

    Meant was one expert of each of 8 groups for every token. The router takes 4 groups, of equal
    ones the first, so that half of the experts that were meant are chosen; what is missing to 8 are
    always the first experts. Meant ones go over the ranks of a group by turns, and come to the
    first experts last: rows of 1 to 32 tokens read 4 experts' weights more than they have tokens,
    on ranks with a whole group.
    """
    in_group, more = experts // GROUPS, GROUPS - CHOSEN_GROUPS
    place_E = np.arange(experts)
    slots = min(experts // parts, in_group)
    turn_E = in_group - 1 - (place_E % slots * (in_group // slots) + place_E % in_group // slots)
    meant_E = tokens // in_group + (turn_E < tokens % in_group)
    load_E = np.where(place_E < CHOSEN_GROUPS * in_group, meant_E, 0)
    # A token for which one of the first was meant already takes the one behind them.
    load_E[:more] = tokens
    load_E[more] += int(meant_E[:more].sum())
    return np.asarray(load_E[: experts // parts], np.int64)


def even_loads(*, tokens: int, choices: int, experts: int, parts: int) -> Int:
    """Choices that each slot of the first of `parts` ranks serves where every expert serves as many as any other."""
    pairs = tokens * choices
    # What does not divide goes one to each rank by turns, so that the first has its share of it
    # first.
    turn_P = np.arange(experts // parts) * parts
    return np.asarray(pairs // experts + (turn_P < pairs % experts), np.int64)
