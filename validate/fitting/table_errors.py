"""How far off installed tables are on rows that were taken out of them, beside plain interpolation and the fit.

Whole coordinates are taken out, not single rows: a seeded part of the sizes inside each axis of a
grid, so that every row that is asked lies between others. Of routed experts the rows of uneven
loads are asked as well, of which a forecast by tables uses none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import attention, gemm
from moecast.sim.cost.attention_benchmark import benchmark_seconds
from moecast.sim.cost.grouped import grouped_seconds
from moecast.sim.cost.shapes import AttentionCore, ExpertBlock
from moecast.sim.cost.table_ratios import FEW_TOKENS, SPECIAL, core_ratio, expert_kernels, gemm_ratio, modelled_on
from moecast.sim.cost.tables.attention import AttentionTable
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.gemm import GemmTable
from moecast.sim.cost.tables.grid import interpolate_log
from moecast.sim.cost.tables.installed import InstalledTables
from moecast.sim.cost.tables.moe import MoeTable
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.moe_loads import BALANCED, loads_of_rank

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

WEIGHT_TYPES = {"bf16": "bf16", "fp8_block": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4", "mxfp4_bf16": "mxfp4"}
"""The simulator's names of the element types of experts that forecasts ask for."""
MOST_SHAPES = 40  # of a table, drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class TableLine:
    """Errors on rows that were left out: straight lines between measured times, tables as forecasts use them, the fit.

    Straight lines of uneven loads are those of even ones with as many tokens.
    """

    part: str
    kind: str
    straight: Errors
    tables: Errors
    fitted: Errors


def table_lines(tables: InstalledTables, *, seed: int = 0) -> Iterator[TableLine]:
    """A line for each kind of kernel that a forecast takes from some tables."""
    for table in tables.gemm:
        if not table.host_timed:
            yield _gemm_line(tables, table, seed)
    for core_table in tables.attention:
        if not core_table.kernel and (line := _core_line(tables, core_table, seed)) is not None:
            yield line
    for kind in dict.fromkeys(table.element_type for table in tables.moe):
        if kind in WEIGHT_TYPES:
            yield from _expert_lines(tables, kind, seed)


def left_out(axes: Sequence[Float], *, seed: int, one_in: int) -> Bool:
    """Mark the rows at a drawn part of the sizes of each axis; never at the smallest or the largest."""
    random = np.random.default_rng(seed)
    marked = np.zeros(axes[0].shape, bool)
    for sizes_R in axes:
        inner = np.unique(sizes_R)[1:-1]
        drawn = random.choice(inner, -(-inner.size // one_in), replace=False) if inner.size else inner
        marked |= np.isin(sizes_R, drawn)
    return marked


def _gemm_line(tables: InstalledTables, table: GemmTable, seed: int) -> TableLine:
    kind, hardware = table.element_type, modelled_on(tables)
    out = left_out((table.m_R, table.n_R, table.k_R), seed=seed, one_in=8)
    kept, asked = rows_of(table, ~out), rows_of(table, out)
    ratio = gemm_ratio(replace(tables, gemm=(kept,)), kind)
    assert ratio is not None
    sizes = (asked.m_R, asked.n_R, asked.k_R)
    parameters = gemm.find_parameters(hardware, engine=tables.engine, element_type=kind).parameters
    modelled = gemm.gemm_seconds(parameters, hardware, *sizes, element_type=kind)
    straight, inside = interpolate_log((kept.m_R, kept.n_R, kept.k_R), kept.seconds_R, sizes)
    return _line("dense products", kind, asked.seconds_R, straight, inside, modelled, ratio.at(*sizes))


def _core_line(tables: InstalledTables, table: AttentionTable, seed: int) -> TableLine | None:
    whole = rows_of(table, (table.window_R == 0) & ((table.keys_R == 0) | (table.phase == "decode")))
    shapes = np.unique(np.stack([whole.heads_R, whole.kv_heads_R, whole.head_dim_R], 1), axis=0)
    random, found = np.random.default_rng(seed), []
    for place in random.permutation(len(shapes))[:MOST_SHAPES]:
        same = (np.stack([whole.heads_R, whole.kv_heads_R, whole.head_dim_R], 1) == shapes[place]).all(axis=1)
        if (one := _core_errors(tables, rows_of(whole, same), shapes[place], seed)) is not None:
            found.append(one)
    if not found:
        return None
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    name = f"{'latent ' if table.latent else ''}attention"
    return _line(name, table.kind, columns[0], columns[1], columns[2].astype(bool), columns[3], columns[4])


def _core_errors(
    tables: InstalledTables, rows: AttentionTable, shape: Float, seed: int
) -> tuple[Float, Float, Float, Float, Float] | None:
    """Of the rows left out of one shape: measured, straight lines and where they reach, modelled, ratio."""
    along = "tokens_R" if rows.phase == "prefill" else "keys_R"
    out = left_out((rows.batch_R, getattr(rows, along)), seed=seed, one_in=4)
    kept, asked = rows_of(rows, ~out), rows_of(rows, out)
    cache, (heads, kv_heads, head_dim) = rows.types.split("/")[-1], (int(size) for size in shape)
    core = AttentionCore(
        latent=rows.latent,
        heads=heads,
        kv_heads=heads if rows.latent else kv_heads,
        head_dim=192 if rows.latent else head_dim,
        value_dim=128 if rows.latent else head_dim,
        cached_width=2 * head_dim,
        kv_type=cache,
        kv_rank=512 if rows.latent else 0,
        rope_dim=64 if rows.latent else 0,
    )
    hardware, alone = modelled_on(tables), replace(tables, attention=(kept,))
    if not kept.seconds_R.size or not asked.seconds_R.size or (ratio := core_ratio(alone, core, rows.phase)) is None:
        return None
    told = {"engine": tables.engine, "phase": rows.phase, "cache_type": cache}
    if rows.latent:
        entry = attention.find_latent(hardware, **told)
    else:
        entry = attention.find_parameters(hardware, **told, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    modelled = benchmark_seconds(entry.parameters, hardware, asked)
    sizes = (asked.batch_R, getattr(asked, along))
    straight, inside = interpolate_log((kept.batch_R, getattr(kept, along)), kept.seconds_R, sizes)
    return asked.seconds_R, straight, inside.astype(float), modelled, ratio.at(*sizes)


def _expert_lines(tables: InstalledTables, kind: str, seed: int) -> Iterator[TableLine]:
    """Even loads at numbers of tokens that were left out; then all uneven ones, by even ones alone."""
    apart = (*FEW_TOKENS, *SPECIAL)
    some = [one for one in tables.moe if one.element_type == kind and not any(word in one.kernel for word in apart)]
    shapes = sorted({shape for table in some for shape in _shapes(table)})
    drawn = np.random.default_rng(seed).permutation(len(shapes))[:MOST_SHAPES]
    found: dict[bool, list[tuple[Float, Float, Float, Float]]] = {True: [], False: []}
    for place in drawn:
        for even in found:
            found[even] += _expert_errors(tables, some, kind, shapes[place], even=even, seed=seed)
    for even, parts in found.items():
        if parts:
            measured, straight, modelled, ratio = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            name = "routed experts" if even else "routed experts, uneven"
            yield _line(name, kind, measured, straight, np.isfinite(straight), modelled, ratio)


def _shapes(table: MoeTable) -> set[tuple[int, ...]]:
    columns = (table.width_R, table.inner_R, table.choices_R, table.experts_R, table.ep_R, table.gated_R)
    return set(zip(*(column.tolist() for column in columns), strict=True))


def _expert_errors(
    tables: InstalledTables, some: Sequence[MoeTable], kind: str, shape: tuple[int, ...], *, even: bool, seed: int
) -> list[tuple[Float, Float, Float, Float]]:
    width, inner, choices, experts, parts, gated = shape
    block = ExpertBlock(
        width=width, inner=inner, ups=1 + gated, weight_type=WEIGHT_TYPES[kind], choices=choices, experts=experts
    )
    having = [table for table in some if shape in _shapes(table)]
    newest = [table for table in having if table.version == having[-1].version]
    if len(newest) > 1:  # which of several kernels an engine takes is not judged here
        return []
    (table,) = newest
    same = np.stack([table.width_R, table.inner_R, table.choices_R, table.experts_R, table.ep_R], 1)
    rows = rows_of(table, (same == np.array(shape[:5])).all(axis=1))
    out = left_out((rows.tokens_R.astype(np.float64),), seed=seed, one_in=4)
    balanced = rows.law_R == BALANCED
    kept, asked = rows_of(rows, ~out if even else balanced), rows_of(rows, out & balanced if even else ~balanced)
    usual = expert_kernels(replace(tables, moe=(kept,)), block, experts // parts)[0]
    if usual.ratio is None or not asked.seconds_R.size:
        return []
    random = np.random.default_rng(seed)
    loads = [
        loads_of_rank(
            tokens=tokens, choices=choices, experts=experts, parts=parts, law=law, random=random, grouped=grouped
        )
        for tokens, law, grouped in zip(
            asked.tokens_R.tolist(), asked.law_R.tolist(), asked.grouped_R.tolist(), strict=True
        )
    ]
    load_RP, seen_R = np.stack(loads), asked.tokens_R * choices
    modelled = grouped_seconds(usual.parameters, modelled_on(tables), block, load_RP, element_type=kind, seen_G=seen_R)
    straight, _ = interpolate_log((kept.tokens_R,), kept.seconds_R, (asked.tokens_R,))
    return [(asked.seconds_R, straight, modelled, usual.ratio.at(load_RP.sum(axis=1)))]


def _line(
    part: str, kind: str, measured: Float, straight: Float, inside: Bool, modelled: Float, ratio: Float
) -> TableLine:
    return TableLine(
        part=part,
        kind=kind,
        straight=Errors.of(straight[inside], measured[inside]),
        tables=Errors.of(modelled * ratio, measured),
        fitted=Errors.of(modelled, measured),
    )
