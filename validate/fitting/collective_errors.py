"""How far off collectives inside a domain are on rows that nobody fitted: the simulator, the model, and a relative's.

Axes: R row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.collectives.choice import Choice, candidates, pick
from moecast.sim.cost.collectives import all_parameters
from moecast.sim.cost.entries import Entry
from moecast.sim.plan import Plan
from moecast.sim.sites import Sites
from moecast.topology import load_cluster
from moecast.validate.fitting.collectives import Cut, fit, predict, read_cuts
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]

PRESETS = {
    "h100_sxm": "dgx-h100",
    "h200_sxm": "dgx-h200",
    "b200_sxm": "dgx-b200",
    "b300_sxm": "dgx-b300",
    "gb200": "gb200-nvl72",
}


def compare(root: Path) -> Iterator[tuple[tuple[str, str, str, str], Errors, Errors, Errors]]:
    """Give GPU, engine, version and what was run, and the errors of the three, table by table.

    The model is judged with the parameters that ship; a relative's are fitted on the other GPUs'
    drawn rows.
    """
    cuts = read_cuts(root)
    entries = all_parameters()
    for gpu in sorted({cut.table.gpu for cut in cuts}):
        others = fit(cuts, without=gpu)
        for cut in (cut for cut in cuts if cut.table.gpu == gpu):
            forecasts = simulated_rows(cut), predict(entries, cut.table), _by_relatives(others, cut)
            what_R = _what(cut)
            for what in np.unique(what_R).tolist():
                rows = cut.unseen_R & (what_R == what)
                measured_R = cut.table.seconds_R[rows]
                first, second, third = (Errors.of(forecast_R[rows], measured_R) for forecast_R in forecasts)
                yield (gpu, cut.table.engine, cut.table.version, what), first, second, third


def _by_relatives(others: Sequence[Entry[Any]], cut: Cut) -> Float:
    """Predict by what was fitted on other GPUs; nan where there are none [R]."""
    try:
        return predict(others, cut.table)
    except (MoecastError, ValueError):
        return np.full(len(cut.table.seconds_R), np.nan)


def _what(cut: Cut) -> npt.NDArray[np.str_]:
    if cut.table.engine == "nccl":
        return cut.table.operation_R
    return np.where(cut.table.eager_R, "eager", "graph")


def simulated_rows(cut: Cut) -> Float:
    """What the simulator takes NCCL's choice to need, by its own reckoning; nan where no preset has the GPU [R]."""
    table = cut.table
    seconds_R = np.full(len(table.seconds_R), np.nan)
    if table.gpu not in PRESETS:
        return seconds_R
    for row in np.flatnonzero(cut.unseen_R):
        sites, choices = _laid_out(PRESETS[table.gpu], int(table.ranks_R[row]), str(table.operation_R[row]))
        seconds_R[row] = _reckoned(choices, sites, float(table.bytes_R[row]))
    return seconds_R


def _reckoned(choices: tuple[Choice, ...], sites: Sites, size_bytes: float) -> float:
    return pick(list(choices), sites, [size_bytes]).estimate_s(sites, [size_bytes])


@cache
def _laid_out(preset: str, ranks: int, operation: str) -> tuple[Sites, tuple[Choice, ...]]:
    cluster = load_cluster(preset, nodes=1)
    sites = Sites.of(cluster, Plan.contiguous(layers=1, experts=ranks, choices=1, ep=ranks), seed=0)
    return sites, tuple(candidates(sites, np.arange(ranks)[None, :], operation=operation))
