"""What a user's tables say of kernels, as ratios to what the fitted model says of the same benchmark rows.

The model's side is always that of the tables' own GPU, so that a question about another memory or
another peak moves what is forecast. None: the tables do not cover the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import attention, gemm
from moecast.sim.cost.attention_benchmark import benchmark_seconds
from moecast.sim.cost.attention_kinds import kernel_class, type_names
from moecast.sim.cost.entries import NEUTRAL
from moecast.sim.cost.fitted_costs import expert_kind
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.grouped import grouped_seconds
from moecast.sim.cost.grouped_parameters import LOW_LATENCY, GroupedParameters, find_parameters
from moecast.sim.cost.shapes import AttentionCore, ExpertBlock
from moecast.sim.cost.tables.attention import AttentionTable
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.installed import InstalledTables
from moecast.sim.cost.tables.moe import MoeTable, even_loads, grouped_loads
from moecast.sim.cost.tables.ratio import MeasuredRatio
from moecast.sim.element_types import cache_bytes
from moecast.topology import Hardware

Bool = npt.NDArray[np.bool_]

FEW_TOKENS, SPECIAL = ("min_latency",), ("situ",)
"""Words in the names of experts' kernels: of the second one that an engine has for few tokens, and of those for some
models only."""
MOST_SLOTS = 1.5
"""Times as many slots as a measured rank has: with more redundant ones it is another rank."""
DEEPSEEK = (512, 64, 192, 128)
"""Latent, rotary, query and value widths of the measured latent attention."""


def modelled_on(tables: InstalledTables) -> Hardware:
    """The hardware of the tables' GPU, its kernels by fitted parameters."""
    return replace(GPUS[tables.gpu], kernels="fitted", engine=tables.engine)


@lru_cache(maxsize=64)
def gemm_ratio(tables: InstalledTables, kind: str) -> MeasuredRatio | None:
    """Of dense products, over rows, outer and inner width; `kind`: one of `moecast.sim.cost.gemm.TYPES`."""
    table = tables.gemm_of(kind)
    if table is None:
        return None
    hardware = modelled_on(tables)
    parameters = gemm.find_parameters(hardware, engine=tables.engine, element_type=kind).parameters
    sizes = (table.m_R, table.n_R, table.k_R)
    modelled_R = gemm.gemm_seconds(parameters, hardware, *sizes, element_type=kind)
    return MeasuredRatio.of(sizes, table.seconds_R, modelled_R)


@lru_cache(maxsize=128)
def core_ratio(tables: InstalledTables, core: AttentionCore, phase: str) -> MeasuredRatio | None:
    """Of an attention core, over sequences, and tokens of each (prefill) or keys (decode).

    Of the very heads and widths of the core. Rows without a window stand for one that reads as many
    keys.
    """
    cache_type = "fp8" if cache_bytes(core.kv_type, 1000) <= 1100 else "bf16"
    rows = core_rows(tables, core, phase, cache_type)
    if rows is None:
        return None
    hardware, engine = modelled_on(tables), tables.engine
    if core.latent:
        entry = attention.find_latent(hardware, engine=engine, phase=phase, cache_type=cache_type)
        if entry.engine == NEUTRAL:  # the engine's own rows are of another form of the kernel
            return None
    else:
        entry = attention.find_parameters(
            hardware,
            engine=engine,
            phase=phase,
            cache_type=cache_type,
            heads=core.heads,
            kv_heads=core.kv_heads,
            head_dim=core.head_dim,
        )
    along_R = rows.tokens_R if phase == "prefill" else rows.keys_R
    modelled_R = benchmark_seconds(entry.parameters, hardware, rows)
    return MeasuredRatio.of((rows.batch_R, along_R), rows.seconds_R, modelled_R)


def core_rows(tables: InstalledTables, core: AttentionCore, phase: str, cache_type: str) -> AttentionTable | None:
    """The rows of a core's heads and widths, of the engine's usual kernel for it if it has some, else of another."""
    if core.latent and (core.kv_rank, core.rope_dim, core.head_dim, core.value_dim) != DEEPSEEK:
        return None
    usual = str(kernel_class(tables.engine, phase, group=core.heads / core.kv_heads, head_dim=core.head_dim))
    names = type_names(phase, cache_type)
    wanted = [name.split("/")[-1] if core.latent else name for name in names]
    some = [
        table
        for table in tables.attention
        if table.latent == core.latent and table.phase == phase and table.types in wanted
    ]
    for table in sorted(some, key=lambda table: (wanted.index(table.types), table.kernel != usual)):
        same = _same_core(table, core)
        if same.any():
            return rows_of(table, same)
    return None


def _same_core(table: AttentionTable, core: AttentionCore) -> Bool:
    same: Bool = (table.heads_R == core.heads) & (table.window_R == 0)
    if table.phase == "prefill":
        same &= table.keys_R == 0
    return same if core.latent else same & (table.kv_heads_R == core.kv_heads) & (table.head_dim_R == core.head_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertKernel:
    """One of the kernels of routed experts that an engine chooses among; `ratio` None: no table has it."""

    parameters: GroupedParameters
    ratio: MeasuredRatio | None


@lru_cache(maxsize=256)
def expert_kernels(tables: InstalledTables, block: ExpertBlock, slots: int) -> tuple[ExpertKernel, ...]:
    """An engine's kernels for a rank with some slots, its usual one first.

    Their ratios are over the rows that a rank serves, measured at even loads on ranks with about as
    many slots. A kernel that the engine has from elsewhere is in none of its own tables.

    Raises
    ------
    ValueError
        Experts of a type that no kernel was measured for.
    """
    hardware = modelled_on(tables)
    kind = expert_kind(hardware, block.weight_type)
    if kind is None:
        raise ValueError(f"experts in {block.weight_type}: none was measured")
    found: list[ExpertKernel] = []
    for entry in find_parameters(hardware, engine=tables.engine, element_type=kind, whole=slots == block.experts):
        few_tokens = entry.kind.endswith(LOW_LATENCY)
        own = few_tokens or not found
        measured = _even_seconds(tables, block, kind, slots, few_tokens=few_tokens) if own else None
        ratio = None if measured is None else _even_ratio(entry.parameters, hardware, block, kind, *measured)
        found.append(ExpertKernel(parameters=entry.parameters, ratio=ratio))
    return tuple(found)


@lru_cache(maxsize=64)
def least_expert_ratio(tables: InstalledTables, block: ExpertBlock) -> float:
    """The smallest of all ratios of a block's kernels, and 1 for ranks that no table covers."""
    ranks = {parts for table in tables.moe for parts in table.ep_R[_same_block(table, block)].tolist()}
    # With a redundant slot a rank that holds all experts has another kernel.
    slots = [block.experts // parts + more for parts in sorted(ranks) for more in (0, 1)]
    kernels = [one for count in slots for one in expert_kernels(tables, block, count)]
    return min([1.0, *(one.ratio.least for one in kernels if one.ratio is not None)])


def _even_seconds(
    tables: InstalledTables, block: ExpertBlock, kind: str, slots: int, *, few_tokens: bool
) -> tuple[int, dict[int, tuple[float, bool]]] | None:
    """Ranks that shared the experts.

    By tokens of all of them seconds, and whether the kernel chose from groups.

    Of the newest version that has the block at so many slots; of several kernels the fastest.
    `few_tokens`: of the kernel that an engine has for these, else of all others.
    """
    newest: dict[int, list[MoeTable]] = {}
    for table in tables.moe:
        named = any(word in table.kernel for word in FEW_TOKENS)
        if table.element_type != kind or named != few_tokens or any(word in table.kernel for word in SPECIAL):
            continue
        rows = rows_of(table, _same_block(table, block))
        for parts in np.unique(rows.ep_R).tolist():
            if block.experts // parts <= slots <= MOST_SLOTS * (block.experts // parts):
                held = newest.setdefault(parts, [])
                if held and held[0].version != table.version:
                    held.clear()
                held.append(rows_of(rows, rows.ep_R == parts))
    if not newest:
        return None
    measured: dict[int, tuple[float, bool]] = {}
    for table in newest[min(newest)]:
        timed_R = zip(table.seconds_R.tolist(), table.grouped_R.tolist(), strict=True)
        for tokens, timed in zip(table.tokens_R.tolist(), timed_R, strict=True):
            measured[tokens] = min(timed, measured.get(tokens, (np.inf, False)))
    return min(newest), measured


def _same_block(table: MoeTable, block: ExpertBlock) -> Bool:
    same: Bool = (table.width_R == block.width) & (table.inner_R == block.inner) & (table.experts_R == block.experts)
    return same & (table.choices_R == block.choices) & (table.law_R == "balanced") & (table.gated_R == (block.ups == 2))


def _even_ratio(
    parameters: GroupedParameters,
    hardware: Hardware,
    block: ExpertBlock,
    kind: str,
    parts: int,
    measured: dict[int, tuple[float, bool]],
) -> MeasuredRatio:
    modelled, rows = [], []
    for tokens, (_, grouped) in measured.items():
        load_P = even_loads(tokens=tokens, choices=block.choices, experts=block.experts, parts=parts)
        if grouped:
            load_P = grouped_loads(tokens=tokens, experts=block.experts, parts=parts)
        rows.append(float(load_P.sum()))
        seen = [tokens * block.choices]
        seconds = grouped_seconds(parameters, hardware, block, load_P[None], element_type=kind, seen_G=seen)
        modelled.append(float(seconds[0]))
    return MeasuredRatio.of((rows,), [seconds for seconds, _ in measured.values()], modelled)
