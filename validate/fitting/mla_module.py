"""The fit of modules of latent attention on top of their parts: five numbers from 2 % of a table's rows.

Rows that show the host's time and not the GPU's set nothing and are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.mla_module import MlaModuleParameters, MlaParts, mla_parts, module_seconds
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.mla_module import MlaModuleTable
from moecast.validate.fitting.descent import Range, descend
from moecast.validate.fitting.draw import Bool, drawn_rows
from moecast.validate.fitting.entry import entry_of
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]

SEED = 9
FEWEST = 4  # drawn rows below which a table sets no parameters
SPREAD = 1.0
HOST_TIMED_S = 300e-6  # no module of one token takes this long on a GPU
_RANGES: dict[str, Range] = {
    "constant_s": (6e-6, 1e-7, 1e-3),
    "gemm_part": (1.0, 0.87, 1.15),
    "core_part": (1.0, 0.6, 1.5),
    "hidden_moves": (2.0, 0.01, 60.0),
    "head_moves": (2.0, 0.01, 300.0),
}


def is_host_timed(table: MlaModuleTable) -> bool:
    """Whether the smallest modules took the time of the host that launched them."""
    return float(np.quantile(table.seconds_R, 0.01)) > HOST_TIMED_S


def kernel_rows(table: MlaModuleTable) -> Bool:
    """The rows whose time is the GPU's: all, or of a host-timed table those of three times the host's time."""
    if not is_host_timed(table):
        return np.ones(table.seconds_R.size, bool)
    work = table.batch_R * table.tokens_R
    return np.asarray(table.seconds_R > 3 * np.median(table.seconds_R[work <= np.quantile(work, 0.2)]))


def parts_of(table: MlaModuleTable, gpu: str) -> MlaParts:
    """The parts of a table's rows on a GPU, with caches warm as a benchmark's are."""
    return mla_parts(
        GPUS[gpu],
        engine=table.engine,
        phase=table.phase,
        gemm_type=table.gemm_type,
        cache_type=table.cache_type,
        batch=table.batch_R,
        tokens=table.tokens_R,
        keys=table.keys_R,
        heads=table.heads_R,
        warm=True,
    )


def forecast(parameters: MlaModuleParameters, gpu: str, table: MlaModuleTable, parts: MlaParts | None = None) -> Float:
    """The model's times of a table's rows on a GPU."""
    parts = parts_of(table, gpu) if parts is None else parts
    sizes = {"batch": table.batch_R, "tokens": table.tokens_R, "heads": table.heads_R}
    return module_seconds(parameters, GPUS[gpu], parts, **sizes)


def draw(table: MlaModuleTable, *, seed: int = SEED) -> Bool:
    """Mark 2 % of a table's rows, at even steps through heads and work; none that shows the host's time."""
    work = table.batch_R * table.tokens_R * (64 + table.tokens_R + table.keys_R)
    name = f"{table.gpu} {table.engine} {table.version} {table.kind}"
    marked = np.zeros(work.size, bool)
    marked[drawn_rows([work, table.heads_R], name=name, seed=seed)] = True
    return marked & kernel_rows(table)


def fit_modules(tables: Sequence[MlaModuleTable], *, seed: int = SEED) -> Iterator[Entry[Any]]:
    """One entry for each table; TensorRT-LLM's stand for those of no engine (`neutral`)."""
    for table in tables:
        drawn = draw(table, seed=seed)
        if drawn.sum() < FEWEST:
            continue
        entry = _fitted(table, drawn, seed=seed)
        yield entry
        if table.engine == "trtllm":
            yield replace(entry, engine=NEUTRAL, version="", note=f"as trtllm {table.version}")


def _fitted(table: MlaModuleTable, drawn: Bool, *, seed: int) -> Entry[Any]:
    rows = rows_of(table, drawn)
    parts = parts_of(rows, table.gpu)

    def said(values: dict[str, float]) -> Float:
        return forecast(MlaModuleParameters(**values), table.gpu, rows, parts)

    _, values = descend(said, rows.seconds_R, _RANGES, spread=SPREAD)
    parameters, counted = MlaModuleParameters(**values), ~drawn & kernel_rows(table)
    rest = rows_of(table, counted)
    errors = Errors.of(forecast(parameters, table.gpu, rest), rest.seconds_R)
    note = f"host-timed: {counted.sum()} of {counted.size} rows" if is_host_timed(table) else ""
    return entry_of(
        table,
        parameters,
        errors,
        kind=table.kind,
        fitted=int(drawn.sum()),
        rows=table.seconds_R.size,
        seed=seed,
        note=note,
    )
