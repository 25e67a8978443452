"""The fit of attention kernels: `moecast.sim.cost.attention_prefill`, `attention_decode`.

MLA's by the same two.

Least squares of the logarithms on 2 % of each table's rows, with a weak prior that keeps a few
dozen rows from running away with a dozen parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.attention_benchmark import benchmark_seconds
from moecast.sim.cost.attention_decode import DecodeParameters
from moecast.sim.cost.attention_prefill import PrefillParameters
from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.tables.attention import AttentionTable
from moecast.sim.cost.tables.columns import rows_of
from moecast.validate.fitting.descent import Range, descend
from moecast.validate.fitting.draw import MOST_SHARE, Bool, drawn_rows
from moecast.validate.fitting.entry import entry_of
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]
Parameters = PrefillParameters | DecodeParameters

SEED = 9
FEWEST = 8  # drawn rows below which a table sets no parameters
SPREAD = 1.5  # of the prior, in logarithms
ENOUGH = 120  # drawn rows from which a table stands alone
LEAST_HEADS = 8
OWN_SPREAD = 0.1  # of one GPU about its generation
UNCUT_S = 1e-2  # another start of `cut_s`: a kernel that never cuts its items
_PREFILL: dict[str, Range] = {
    "launch_s": (1e-5, 2e-6, 1e-4),
    "peak_part": (0.7, 0.03, 1.0),
    "softmax_s": (2e-11, 1e-13, 1e-9),
    "tile_s": (1.5e-6, 1e-8, 1e-4),
    "chain": (1.0, 0.1, 3.0),
    "query_moves": (1.5, 0.01, 30.0),
    "key_moves": (1.5, 0.01, 60.0),
    "softness": (1.5, 1.0, 10.0),
    "window_keys": (128.0, 1.0, 512.0),
    "odd_width": (1.15, 1.0, 2.0),
}
_DECODE: dict[str, Range] = {
    "launch_s": (8e-6, 2e-6, 1e-4),
    "peak_part": (0.5, 0.02, 1.0),
    "sm_Bps": (8e10, 2e9, 1e12),
    "item_s": (1e-6, 1e-9, 1e-4),
    "element_s": (3e-9, 1e-11, 1e-7),
    "cut_s": (3e-6, 1e-8, 1.0),
    "memory_part": (0.88, 0.05, 1.0),
    "cache_ratio": (2.5, 1.0, 8.0),
    "moves": (2.0, 0.01, 30.0),
    "softness": (1.5, 1.0, 10.0),
    "traffic_softness": (3.0, 1.0, 10.0),
    "window_keys": (64.0, 1.0, 512.0),
    "odd_width": (1.15, 1.0, 2.0),
}


def forecast(parameters: Parameters, gpu: str, table: AttentionTable) -> Float:
    """The model's times of a table's rows on a GPU, its caches warm as a benchmark's are."""
    return benchmark_seconds(parameters, GPUS[gpu], table)


def draw(table: AttentionTable, *, seed: int = SEED) -> Bool:
    """Mark at most 2 % of a table's rows, at even steps through head widths, windows and work.

    Of latent attention's decode only rows of `LEAST_HEADS` heads and more: few layouts leave a rank
    fewer.
    """
    work = table.batch_R * table.tokens_R * (table.tokens_R + table.keys_R) * table.heads_R
    name = f"{table.gpu} {table.engine} {table.version} {table.kind}"
    marked, asked = np.zeros(work.size, bool), np.arange(work.size)
    if table.latent and table.phase == "decode":
        asked = np.flatnonzero(table.heads_R >= LEAST_HEADS)
    keys = [values[asked] for values in (table.head_dim_R, table.window_R, work, table.batch_R)]
    marked[asked[drawn_rows(keys, name=name, seed=seed, count=int(MOST_SHARE * work.size))]] = True
    return marked


def unseen(table: AttentionTable, drawn: Bool) -> Bool:
    """Mark the rows of other shapes than those that were drawn."""
    names = ("batch_R", "tokens_R", "keys_R", "heads_R", "kv_heads_R", "head_dim_R", "window_R")
    shapes = np.stack([getattr(table, name) for name in names], 1)
    _, shape_R = np.unique(shapes, axis=0, return_inverse=True)
    marked: Bool = ~np.isin(shape_R, shape_R[drawn])
    return marked


def fit_attention(tables: Sequence[AttentionTable], *, seed: int = SEED) -> Iterator[Entry[Any]]:
    """One entry for each table, and one for each GPU and kind over all engines' newest main kernels (`neutral`).

    Tables of few rows are fitted with those of the same kernel on the GPUs of their generation;
    each then moves from there as far as its own rows ask. Prompts of one token are the work of a
    kernel of decode, and set nothing. Of latent attention TensorRT-LLM's kernels stand for those of
    no engine: SGLang's on Hopper expand an FP8 cache and take absorbed heads for prompts.
    """
    tables = [table for table in tables if table.kernel != "one token" and draw(table, seed=seed).sum() >= FEWEST]
    shared = {family: fit_shared(family_of(family, tables), seed=seed) for family in dict.fromkeys(map(kin, tables))}
    entries = {}
    for table in tables:
        entries[table.gpu, table.kind, table.engine] = entry = _entry_of(table, shared[kin(table)], seed=seed)
        yield entry
    newest = {(table.gpu, table.kind, table.engine): table for table in tables}
    for gpu, kind in dict.fromkeys(key[:2] for key in newest):
        pool = [table for key, table in newest.items() if key[:2] == (gpu, kind) and not table.kernel]
        if pool and pool[0].latent:
            if (gpu, kind, "trtllm") in entries:
                as_trtllm = entries[gpu, kind, "trtllm"]
                yield replace(as_trtllm, engine=NEUTRAL, version="", note=f"as trtllm {as_trtllm.version}")
        elif pool:
            note = "pooled: " + ", ".join(f"{table.engine} {table.version}" for table in pool)
            yield replace(_entry(pool, fit_shared(pool, seed=seed), seed=seed), engine=NEUTRAL, version="", note=note)


def kin(table: AttentionTable) -> tuple[str, ...]:
    """What tables share that are fitted together: a generation of GPUs, engine, version and kind; else one table's."""
    own = (table.engine, table.version, table.kind, "latent" if table.latent else "")
    return (table.gpu if draw(table).sum() >= ENOUGH else generation(table.gpu), *own)


def generation(gpu: str) -> str:
    """Which tensor cores a GPU has, by the narrowest type that they multiply: those of one generation run alike."""
    return next(name for name in ("fp4", "fp8", "bf16") if name in GPUS[gpu].peak_flop_per_s)


def family_of(family: tuple[str, ...], tables: Sequence[AttentionTable]) -> list[AttentionTable]:
    """The tables that are fitted together."""
    return [table for table in tables if kin(table) == family]


def _entry_of(table: AttentionTable, shared: Parameters, *, seed: int) -> Entry[Any]:
    family = kin(table)[0]
    if family == table.gpu:
        return _entry([table], shared, seed=seed)
    own = _descended([table], shared, _about(shared), seed=seed, spread=OWN_SPREAD)[1]
    return replace(_entry([table], own, seed=seed), note=f"from a fit on GPUs with {family}")


def fit_shared(tables: Sequence[AttentionTable], *, seed: int = SEED) -> Parameters:
    """One set of parameters for the drawn rows of several tables of a kind."""
    first = tables[0]
    widths = " ".join(str(int(width)) for width in np.unique(np.concatenate([t.head_dim_R for t in tables])))
    best: tuple[float, Parameters | None] = np.inf, None
    for fixed, ranges in product(_choices(first), _ranges(first)):
        numbers: dict[str, Any] = {**fixed, **{name: values[0] for name, values in ranges.items()}}
        start = (PrefillParameters if first.phase == "prefill" else DecodeParameters)(**numbers, head_dims=widths)
        found = _descended(tables, start, ranges, seed=seed, spread=SPREAD)
        best = min(best, found, key=lambda pair: pair[0])
    assert best[1] is not None
    return best[1]


def _descended(
    tables: Sequence[AttentionTable], start: Parameters, ranges: dict[str, Range], *, seed: int, spread: float
) -> tuple[float, Parameters]:
    drawn = [rows_of(table, draw(table, seed=seed)) for table in tables]

    def said(values: dict[str, float]) -> Float:
        parameters = replace(start, **values)  # type: ignore[arg-type]
        return np.concatenate([forecast(parameters, table.gpu, table) for table in drawn])

    cost, values = descend(said, np.concatenate([table.seconds_R for table in drawn]), ranges, spread=spread)
    return cost, replace(start, **values)  # type: ignore[arg-type]


def _about(parameters: Parameters) -> dict[str, Range]:
    """The bounds of all, starting at some parameters."""
    bounds = _PREFILL if isinstance(parameters, PrefillParameters) else _DECODE
    return {name: (getattr(parameters, name), low, high) for name, (_, low, high) in bounds.items()}


def _ranges(table: AttentionTable) -> Iterator[dict[str, Range]]:
    """Starts and bounds: of decode both a kernel that cuts its items along the keys and one that does not."""
    if table.phase == "prefill":
        yield _PREFILL
        return
    yield _DECODE
    if table.kernel or table.latent:
        yield _DECODE | {"cut_s": (UNCUT_S, *_DECODE["cut_s"][1:])}


def _choices(table: AttentionTable) -> Iterator[dict[str, Any]]:
    """What least squares cannot fit: the tile, and at which peak a kernel with an FP8 cache multiplies."""
    peaks = GPUS[table.gpu].peak_flop_per_s
    rates = ("bf16", "fp8") if "fp8" in table.types and "fp8" in peaks else ("bf16",)
    if table.phase == "prefill":
        for rate, packed, rows in product(rates, (False, True), (64.0, 128.0, 256.0)):
            yield {"rate": rate, "packed": packed, "tile_rows": rows, "absorbed": packed and table.latent}
        return
    tiles = (0.0,) if table.kernel == "separate" else (64.0, 128.0) if table.latent else (16.0, 32.0, 64.0, 128.0)
    for rate, rows in product(rates, tiles):
        yield {"rate": rate, "tile_rows": rows}


def _entry(tables: Sequence[AttentionTable], parameters: Parameters, *, seed: int) -> Entry[Any]:
    said, measured, fitted = [], [], 0
    for table in tables:
        drawn = draw(table, seed=seed)
        rest = rows_of(table, unseen(table, drawn))
        said.append(forecast(parameters, table.gpu, rest))
        measured.append(rest.seconds_R)
        fitted += int(drawn.sum())
    errors = Errors.of(np.concatenate(said), np.concatenate(measured))
    first = tables[0]
    return entry_of(
        first,
        parameters,
        errors,
        kind=first.kind,
        fitted=fitted,
        rows=sum(table.seconds_R.size for table in tables),
        seed=seed,
    )
