"""The fit of `moecast.sim.cost.gemm`: least squares of the logarithms on at most 2 % of a table's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from moecast.sim.cost.gemm import NEUTRAL, TILE_SETS, GemmEntry, GemmParameters, gemm_seconds
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.tables.gemm import GemmTable
from moecast.validate.fitting.rows import Bool, Errors, draw_rows

Float = npt.NDArray[np.float64]

# Start and bounds of each parameter; all are fitted in logarithms.
_START: dict[str, tuple[float, float, float]] = {
    "launch_s": (1.8e-6, 2e-7, 5e-5),
    "peak_part": (0.8, 0.2, 1.1),
    "memory_part": (0.9, 0.3, 1.1),
    "tile_traffic": (3.0, 0.3, 40.0),
    "epilogue": (2.0, 0.1, 100.0),
    "inner_s": (2e-9, 1e-13, 1e-7),
    "wave_s": (5e-7, 1e-9, 2e-5),
    "split_s": (1e-6, 1e-9, 1e-4),
    "split_traffic": (2.0, 0.1, 100.0),
    "softness": (2.0, 1.0, 20.0),
    "write_weight": (1.2, 0.5, 5.0),
}
_QUANTISE: dict[str, tuple[float, float, float]] = {
    "quantise_row_s": (1e-9, 1e-13, 1e-7),
    "quantise_bytes": (2.0, 1e-3, 40.0),
    "quantise_inner_s": (4e-10, 1e-14, 1e-8),
}
INNER_STARTS_S = (2e-9, 1e-10)  # least squares ends in one of two valleys of this parameter
HOST_TIMED_S = 30e-6  # no GPU takes this long to launch: a smallest time above it is the host's
SCALE = 0.05  # relative errors above this count less than squared


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


def is_host_timed(table: GemmTable) -> bool:
    """Whether the smallest products took the time of the host that launched them, not of a kernel."""
    return float(np.quantile(table.seconds_R, 0.01)) > HOST_TIMED_S


def kernel_rows(table: GemmTable) -> Bool:
    """The rows whose time is a kernel's: all, or of a host-timed table those well above the host's time.

    The host's time is taken from the rows of least work; what takes three times as long hides it.
    """
    if not is_host_timed(table):
        return np.ones(table.seconds_R.size, bool)
    work_R = table.m_R * table.n_R * table.k_R
    least = work_R <= np.quantile(work_R, 0.2)
    return np.asarray(table.seconds_R > 3 * np.median(table.seconds_R[least]))


def fit_gemm(tables: Sequence[GemmTable], *, seed: int = 0) -> Iterator[GemmEntry]:
    """One entry for each table, and one for each GPU and type over all engines' newest versions (`neutral`)."""
    for table in tables:
        if not is_host_timed(table):
            yield _fitted(table, [table], seed=seed, note=f"kernels: {', '.join(table.kernels)}")
    newest = {(table.gpu, table.element_type, table.engine): table for table in tables if not is_host_timed(table)}
    for gpu, element_type in dict.fromkeys(key[:2] for key in newest):
        pool = [table for key, table in newest.items() if key[:2] == (gpu, element_type)]
        note = "pooled: " + ", ".join(f"{table.engine} {table.version}" for table in pool)
        yield _fitted(pool[0], pool, seed=seed, note=note, engine=NEUTRAL)


def _fitted(
    table: GemmTable, pool: Sequence[GemmTable], *, seed: int, note: str, engine: str | None = None
) -> GemmEntry:
    rows = _Rows(
        gpu=table.gpu,
        element_type=table.element_type,
        **{name: np.concatenate([getattr(part, name) for part in pool]) for name in ("m_R", "n_R", "k_R", "seconds_R")},
    )
    drawn = draw_rows(rows.seconds_R.size, seed=seed)
    parameters = _fit(rows, drawn)
    errors = Errors.of(rows.forecast(parameters, ~drawn), rows.seconds_R[~drawn])
    return GemmEntry(
        gpu=table.gpu,
        engine=engine or table.engine,
        version=table.version if engine is None else "",
        element_type=table.element_type,
        parameters=parameters,
        fitted=int(drawn.sum()),
        rows=rows.seconds_R.size,
        seed=seed,
        median=round(errors.median, 4),
        p90=round(errors.p90, 4),
        bias=round(errors.bias, 4),
        note=note,
    )


def _fit(rows: _Rows, drawn: Bool) -> GemmParameters:
    """The best of several starts: sets of tiles, and the two valleys of the main loop's latency.

    cuBLAS takes bf16 as it comes and may split; of the other types' kernels neither is known.
    """
    known = rows.element_type == "bf16"
    best, least = None, np.inf
    for tiles, inner_s in product(["split"] if known else TILE_SETS, INNER_STARTS_S):
        start = _START | ({} if known else _QUANTISE) | {"inner_s": (inner_s, *_START["inner_s"][1:])}
        parameters, cost = _descend(rows, drawn, tiles, start)
        if cost < least:
            best, least = parameters, cost
    assert best is not None
    return best


def _descend(
    rows: _Rows, drawn: Bool, tiles: str, start: dict[str, tuple[float, float, float]]
) -> tuple[GemmParameters, float]:
    first, low, high = (np.log(column) for column in zip(*start.values(), strict=True))
    launch = list(start).index("launch_s")
    first[launch] = np.log(0.9 * rows.seconds_R[drawn].min())
    measured = np.log(rows.seconds_R[drawn])

    def parameters(x: Float) -> GemmParameters:
        return GemmParameters(tiles=tiles, **dict(zip(start, np.exp(x).tolist(), strict=True)))

    def residual(x: Float) -> Float:
        return np.log(rows.forecast(parameters(x), drawn)) - measured

    found = least_squares(
        residual,
        np.clip(first, low + 1e-6, high - 1e-6),
        bounds=(low, high),
        loss="soft_l1",
        f_scale=SCALE,
        diff_step=np.full(first.size, 1e-3),
        max_nfev=60,
    )
    rounded = {name: float(f"{value:.4g}") for name, value in zip(start, np.exp(found.x), strict=True)}
    rounded["softness"] = max(rounded["softness"], 1.0)
    return GemmParameters(tiles=tiles, **rounded), float(found.cost)


def as_json(entry: GemmEntry) -> dict[str, object]:
    """An entry as it stands in `fitted/gemm.json`."""
    item: dict[str, object] = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "transferred"}
    item["parameters"] = {f.name: getattr(entry.parameters, f.name) for f in fields(entry.parameters)}
    return item
