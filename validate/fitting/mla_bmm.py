"""The fit of `moecast.sim.cost.mla_bmm`: eight rows of a table's four hundred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import gemm
from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.mla_bmm import MlaBmmParameters, mla_bmm_seconds
from moecast.sim.cost.tables.mla_bmm import MlaBmmTable
from moecast.validate.fitting.descent import Range, descend
from moecast.validate.fitting.draw import MOST_SHARE, Bool
from moecast.validate.fitting.entry import entry_of
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]

_START: dict[str, Range] = {
    "launch_s": (3e-6, 1e-6, 5e-5),
    "memory_part": (0.85, 0.5, 1.0),
    "cache_ratio": (2.0, 1.0, 6.0),
}
_QUANTISE: dict[str, Range] = {"input_s": (1e-11, 1e-14, 1e-9), "output_s": (1e-11, 1e-14, 1e-9)}


def forecast(
    parameters: MlaBmmParameters, gpu: str, engine: str, table: MlaBmmTable, which: Bool | slice = slice(None)
) -> Float:
    """The model's times of a table's rows on a GPU."""
    tiles = gemm.find_parameters(GPUS[gpu], engine=engine, element_type="bf16").parameters
    tokens, heads, inner, outer = (
        values[which] for values in (table.tokens_R, table.heads_R, table.inner_R, table.outer_R)
    )
    return mla_bmm_seconds(parameters, tiles, GPUS[gpu], tokens, heads, inner=inner, outer=outer)


def draw_spread(table: MlaBmmTable, *, seed: int) -> Bool:
    """Mark 2 % of the rows: in the order of their work every fiftieth from a drawn one on.

    So few rows drawn freely would miss whole regions.
    """
    order = np.argsort(table.tokens_R * table.heads_R * 1e3 + table.inner_R, kind="stable")
    step = round(1 / MOST_SHARE)
    first = int(np.random.default_rng(seed).integers(step))
    marked = np.zeros(order.size, bool)
    marked[order[first::step][: int(order.size * MOST_SHARE)]] = True
    return marked


def fit_mla_bmm(tables: Sequence[MlaBmmTable], *, seed: int = 0) -> Iterator[Entry[MlaBmmParameters]]:
    """One entry for each table; the last engine's stands for those of no engine: vLLM's bf16, TensorRT-LLM's FP8."""
    for table in tables:
        yield _fitted(table, seed=seed)
    for gpu, element_type in dict.fromkeys((table.gpu, table.element_type) for table in tables):
        alike = [table for table in tables if (table.gpu, table.element_type) == (gpu, element_type)]
        entry = _fitted(alike[-1], seed=seed)
        yield replace(entry, engine=NEUTRAL, version="", note=f"as {entry.engine} {entry.version}; {entry.note}")


def _fitted(table: MlaBmmTable, *, seed: int) -> Entry[MlaBmmParameters]:
    widened = table.element_type == "bf16" or "dequant" in "".join(table.kernels)
    multiplies = "bf16" if widened else "fp8"
    drawn = draw_spread(table, seed=seed)

    def of(values: dict[str, float]) -> Float:
        return forecast(MlaBmmParameters(multiplies=multiplies, **values), table.gpu, table.engine, table, drawn)

    ranges = _START | ({} if widened else _QUANTISE)
    _, best = descend(of, table.seconds_R[drawn], ranges)
    parameters = MlaBmmParameters(multiplies=multiplies, **best)
    errors = Errors.of(forecast(parameters, table.gpu, table.engine, table, ~drawn), table.seconds_R[~drawn])
    return entry_of(
        table,
        parameters,
        errors,
        kind=table.element_type,
        fitted=int(drawn.sum()),
        rows=table.seconds_R.size,
        seed=seed,
        note=f"kernels: {', '.join(table.kernels)}",
    )
