"""The fit of linear attention's kernels: 2 % of a table's rows, with a weak prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.linear_attention import ConvParameters, StateParameters, conv_seconds, state_seconds
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.linear_attention import LinearTable
from moecast.validate.fitting.descent import Range, descend
from moecast.validate.fitting.draw import Bool, drawn_rows
from moecast.validate.fitting.entry import entry_of
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]
Parameters = ConvParameters | StateParameters

SEED = 9
FEWEST = 3  # drawn rows below which tables set no parameters
SPREAD = 1.5
_CONV: dict[str, Range] = {
    "launch_s": (3e-6, 1e-6, 5e-5),
    "moves": (1.5, 0.3, 20.0),
    "cache_ratio": (2.0, 1.0, 8.0),
    "sequence_s": (1e-6, 1e-9, 1e-3),
    "softness": (2.0, 1.0, 10.0),
}
_STATE: dict[str, Range] = {
    "launch_s": (1e-5, 1e-6, 1e-4),
    "chain_s": (3e-6, 1e-8, 1e-4),
    "chunk_s": (4e-6, 1e-8, 1e-4),
    "sequence_s": (4e-6, 1e-9, 1e-3),
    "memory_part": (0.85, 0.1, 1.0),
    "cache_ratio": (2.0, 1.0, 8.0),
    "softness": (2.0, 1.0, 10.0),
}


def forecast(parameters: Parameters, gpu: str, table: LinearTable) -> Float:
    """The model's times of a table's rows on a GPU, warm as a benchmark's."""
    hardware, shape = GPUS[gpu], (table.batch_R, table.length_R)
    if isinstance(parameters, ConvParameters):
        return conv_seconds(parameters, hardware, *shape, channels=table.channels_R, warm=True)
    return state_seconds(
        parameters,
        hardware,
        *shape,
        phase=table.kind.split()[1],
        heads=table.heads_R,
        key_dim=table.key_dim_R,
        value_dim=table.value_dim_R,
        warm=True,
    )


def draw(table: LinearTable, *, seed: int = SEED) -> Bool:
    """Mark 2 % of a table's rows, at even steps through their work."""
    work = table.batch_R * table.length_R * table.channels_R
    marked = np.zeros(work.size, bool)
    name = f"{table.gpu} {table.engine} {table.version} {table.kind}"
    marked[drawn_rows([work, table.batch_R], name=name, seed=seed)] = True
    return marked


def fit_linear(tables: Sequence[LinearTable], *, seed: int = SEED) -> Iterator[Entry[Any]]:
    """One entry for each table; those of the last engine by name, vLLM, stand for no engine (`neutral`)."""
    newest = {(table.gpu, table.kind, table.engine): table for table in tables}
    entries = {key: _fitted(table, seed=seed) for key, table in newest.items() if draw(table).sum() >= FEWEST}
    yield from entries.values()
    for gpu, kind in dict.fromkeys(key[:2] for key in entries):
        last = [entry for key, entry in entries.items() if key[:2] == (gpu, kind)][-1]
        yield replace(last, engine=NEUTRAL, version="", note=f"as {last.engine} {last.version}")


def _fitted(table: LinearTable, *, seed: int) -> Entry[Any]:
    drawn = draw(table, seed=seed)
    rows = rows_of(table, drawn)
    kind: type[Any] = ConvParameters if table.kind.startswith("conv") else StateParameters

    def said(values: dict[str, float]) -> Float:
        return forecast(kind(**values), table.gpu, rows)

    _, values = descend(said, rows.seconds_R, _CONV if kind is ConvParameters else _STATE, spread=SPREAD)
    rest = rows_of(table, ~drawn)
    errors = Errors.of(forecast(kind(**values), table.gpu, rest), rest.seconds_R)
    return entry_of(
        table, kind(**values), errors, kind=table.kind, fitted=int(drawn.sum()), rows=table.seconds_R.size, seed=seed
    )
