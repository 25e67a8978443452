"""The fit of `moecast.sim.cost.quantise`, and its errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.quantise import QuantiseParameters, quantise_seconds
from moecast.sim.cost.tables.quantise import QuantiseTable
from moecast.validate.fitting.descent import Range, descend
from moecast.validate.fitting.draw import draw_rows
from moecast.validate.fitting.entry import entry_of
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]

_START: dict[str, Range] = {
    "launch_s": (1.5e-6, 1e-7, 5e-5),
    "element_bytes": (3.0, 1.0, 20.0),
    "memory_part": (0.9, 0.4, 1.0),
    "cache_ratio": (1.6, 1.0, 6.0),
    "row_s": (1e-7, 1e-10, 1e-5),
    "element_s": (1e-11, 1e-13, 1e-9),
    "alone_s": (1e-10, 1e-13, 1e-8),
}
STANDS_FOR_ALL = "vllm"
FEWEST = 500  # rows with a time; fewer are rounding of a difference that is none


def fit_quantise(tables: Sequence[QuantiseTable], *, seed: int = 0) -> Iterator[Entry[QuantiseParameters]]:
    """One entry for each table with times; vLLM's stand for those of no engine.

    The engines' kernels differ by more than a pool of their rows could say; vLLM's are one launch
    each.
    """
    used = [table for table in tables if table.seconds_R.size >= FEWEST]
    for table in used:
        yield _fitted(table, seed=seed)
    for table in used:
        if table.engine == STANDS_FOR_ALL:
            yield replace(_fitted(table, seed=seed), engine=NEUTRAL, version="")


def _fitted(table: QuantiseTable, *, seed: int) -> Entry[QuantiseParameters]:
    gpu, kind, m, k, seconds = table.gpu, table.kind, table.m_R, table.k_R, table.seconds_R
    drawn = draw_rows(seconds.size, seed=seed)

    def forecast(values: dict[str, float]) -> Float:
        return quantise_seconds(QuantiseParameters(**values), GPUS[gpu], m[drawn], k[drawn])

    # Bytes and the reached part of the memory cannot be told apart: the one is known of "scale",
    # the other is not.
    known = {"element_bytes": (3.0, 2.999, 3.001)} if kind == "scale" else {"memory_part": (0.9, 0.899, 0.901)}
    starts = [
        _START | known | {"element_s": (element_s, *_START["element_s"][1:]), "row_s": (row_s, *_START["row_s"][1:])}
        for element_s, row_s in product((1e-12, 5e-11), (1e-9, 2e-7))
    ]
    _, best = min((descend(forecast, seconds[drawn], start) for start in starts), key=lambda found: found[0])
    parameters = QuantiseParameters(**best)
    unseen = ~drawn
    errors = Errors.of(quantise_seconds(parameters, GPUS[gpu], m[unseen], k[unseen]), seconds[unseen])
    return entry_of(
        table,
        parameters,
        errors,
        kind=kind,
        fitted=int(drawn.sum()),
        rows=seconds.size,
        seed=seed,
        note=f"kernels: {', '.join(table.kernels)}",
    )
