"""The fit of `moecast.sim.cost.gemm`: least squares of the logarithms on at most 2 % of a table's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gemm import TILE_SETS, GemmParameters, gemm_seconds
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.tables.gemm import GemmTable
from moecast.validate.fitting.descent import Range, descend
from moecast.validate.fitting.draw import Bool, draw_rows
from moecast.validate.fitting.entry import entry_of
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]

# Start and bounds of each parameter; all are fitted in logarithms.
_START: dict[str, Range] = {
    "launch_s": (1.8e-6, 2e-7, 5e-5),
    "peak_part": (0.8, 0.2, 1.0),
    "memory_part": (0.9, 0.3, 1.0),
    "operand_Bps": (120e9, 10e9, 1e12),
    "output_Bps": (80e9, 4e9, 4e12),
    "inner_s": (2e-9, 1e-13, 1e-7),
    "wave_s": (5e-7, 1e-8, 2e-5),
    "softness": (2.0, 1.0, 20.0),
    "write_weight": (1.2, 0.5, 5.0),
}
_SPLIT: dict[str, Range] = {"split_s": (2e-6, 5e-7, 2e-5), "partial_Bps": (80e9, 4e9, 4e12)}
_NO_SPLIT = {"split_s": 0.0, "partial_Bps": 80e9}  # of tilings that do not split: not read
_QUANTISE: dict[str, Range] = {
    "quantise_row_s": (1e-7, 1e-10, 1e-5),
    "quantise_element_s": (5e-11, 1e-13, 1e-9),
    "quantise_inner_s": (4e-10, 1e-13, 1e-8),
}
INNER_STARTS_S = (2e-9, 1e-10)  # least squares ends in one of two valleys of this parameter
SHAKES = 3  # more descents from near the best


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Rows of one GPU and type that are fitted together."""

    gpu: str
    element_type: str
    m_R: Float
    n_R: Float
    k_R: Float
    seconds_R: Float

    def forecast(self, parameters: GemmParameters, which: Bool | slice = slice(None)) -> Float:
        shape = (self.m_R[which], self.n_R[which], self.k_R[which])
        return gemm_seconds(parameters, GPUS[self.gpu], *shape, element_type=self.element_type)


def kernel_rows(table: GemmTable) -> Bool:
    """The rows whose time is a kernel's: all, or of a host-timed table those well above the host's time.

    The host's time is taken from the rows of least work; what takes three times as long hides it.
    """
    if not table.host_timed:
        return np.ones(table.seconds_R.size, bool)
    work_R = table.m_R * table.n_R * table.k_R
    least = work_R <= np.quantile(work_R, 0.2)
    return np.asarray(table.seconds_R > 3 * np.median(table.seconds_R[least]))


def fit_gemm(tables: Sequence[GemmTable], *, seed: int = 0) -> Iterator[Entry[GemmParameters]]:
    """One entry for each table, and one for each GPU and type over all engines' newest versions (`neutral`)."""
    for table in tables:
        if not table.host_timed:
            yield _fitted(table, [table], seed=seed, note=f"kernels: {', '.join(table.kernels)}")
    newest = {(table.gpu, table.element_type, table.engine): table for table in tables if not table.host_timed}
    for gpu, element_type in dict.fromkeys(key[:2] for key in newest):
        pool = [table for key, table in newest.items() if key[:2] == (gpu, element_type)]
        note = "pooled: " + ", ".join(f"{table.engine} {table.version}" for table in pool)
        yield _fitted(pool[0], pool, seed=seed, note=note, engine=NEUTRAL)


def _fitted(
    table: GemmTable, pool: Sequence[GemmTable], *, seed: int, note: str, engine: str | None = None
) -> Entry[GemmParameters]:
    rows = _Rows(
        gpu=table.gpu,
        element_type=table.element_type,
        **{name: np.concatenate([getattr(part, name) for part in pool]) for name in ("m_R", "n_R", "k_R", "seconds_R")},
    )
    drawn = draw_rows(rows.seconds_R.size, seed=seed)
    parameters = _fit(rows, drawn, seed=seed)
    errors = Errors.of(rows.forecast(parameters, ~drawn), rows.seconds_R[~drawn])
    return entry_of(
        table,
        parameters,
        errors,
        kind=table.element_type,
        fitted=int(drawn.sum()),
        rows=rows.seconds_R.size,
        seed=seed,
        note=note,
        engine=engine,
    )


def _fit(rows: _Rows, drawn: Bool, *, seed: int) -> GemmParameters:
    """The best of several starts: sets of tiles, and the two valleys of the main loop's latency.

    cuBLAS takes bf16 as it comes and may split; of the other types' kernels neither is known.
    """
    known = rows.element_type == "bf16"
    best: tuple[float, GemmParameters] | None = None
    for tiles, inner_s in product(["split"] if known else TILE_SETS, INNER_STARTS_S):
        start = _ranges(tiles, known=known) | {"inner_s": (inner_s, *_START["inner_s"][1:])}
        found = _descend(rows, drawn, tiles, start)
        best = found if best is None or found[0] < best[0] else best
    assert best is not None
    random = np.random.default_rng(seed)
    for _ in range(SHAKES):
        start = _shaken(best[1], known=known, random=random)
        found = _descend(rows, drawn, best[1].tiles, start)
        best = found if found[0] < best[0] else best
    return best[1]


def _ranges(tiles: str, *, known: bool) -> dict[str, Range]:
    return _START | (_SPLIT if tiles == "split" else {}) | ({} if known else _QUANTISE)


def _shaken(parameters: GemmParameters, *, known: bool, random: np.random.Generator) -> dict[str, Range]:
    """A start near parameters that were found: each off by a factor of about 1.5."""
    ranges = _ranges(parameters.tiles, known=known)
    return {
        name: (max(getattr(parameters, name), low) * float(np.exp(random.normal(0, 0.4))), low, high)
        for name, (_, low, high) in ranges.items()
    }


def _descend(rows: _Rows, drawn: Bool, tiles: str, start: dict[str, Range]) -> tuple[float, GemmParameters]:
    def forecast(values: dict[str, float]) -> Float:
        return rows.forecast(GemmParameters(tiles=tiles, **_NO_SPLIT | values), drawn)

    smallest = 0.9 * float(rows.seconds_R[drawn].min())
    cost, values = descend(forecast, rows.seconds_R[drawn], start | {"launch_s": (smallest, *start["launch_s"][1:])})
    return cost, GemmParameters(tiles=tiles, **_NO_SPLIT | values)
