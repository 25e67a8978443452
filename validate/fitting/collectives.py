"""The fit of collectives inside a domain, on drawn rows of measured tables.

NCCL: one set of parameters for each generation of NVLink, on the rows of all its GPUs and versions.
Engines' all-reduces, of which a table yields one or two rows: one for a generation, with that as
prior one for each engine and range of versions, with that as prior each GPU's host time.

Axes: R row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.collectives import (
    AllReduceParameters,
    NcclParameters,
    engine_all_reduce_seconds,
    nccl_seconds,
)
from moecast.sim.cost.entries import ANY, NEUTRAL, Entry, newest, the_entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.nvlink import GENERATIONS, NOMINAL_Bps
from moecast.sim.cost.tables.collectives import CollectiveTable, read_tables
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.folder import version_key
from moecast.validate.fitting.draw import drawn_rows, unseen_rows
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.pool import Rows, fit_pool, with_errors

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

SEED = 9
SPREAD = 1.0
"""How far a generation's parameters may stray from where they start, in logarithms."""
NARROW = {"ampere": 0.4}
"""The same where one GPU's rows are all there is, and the fit starts from another generation's."""
ENGINE_SPREAD = {"start_s": 0.5, "rank_s": 0.3, "one_part": 0.5, "two_part": 1.0, "host_s": 1.0}
GPU_SPREAD = {"host_s": 1.0}

# First versions of the ranges that have parameters of their own: SGLang 0.5.14 came with other
# kernels.
RANGES = {"nccl": ("2.23",), "vllm": ("0.14.0",), "sglang": ("0.5.6", "0.5.14"), "trtllm": ("1.0.0",)}

# Where fits start: a launch of a few us, hops of about 1 us, links' usable part; Simple and NVLS
# start later.
NCCL_START = NcclParameters(
    low_start_s=5e-6,
    low_hop_s=0.9e-6,
    low_part=0.15,
    mid_start_s=7e-6,
    mid_hop_s=1e-6,
    mid_part=0.35,
    high_start_s=20e-6,
    high_hop_s=0.3e-6,
    high_part=0.8,
    switch_start_s=50e-6,
    switch_part=0.6,
    own=0.3,
    pair_start_s=6.5e-6,
    pair_part=0.02,
    pairs_start_s=13e-6,
    pairs_part=0.7,
    pairs_own=0.1,
    pairs_ramp_bytes=1e6,
)
ALL_REDUCE_START = AllReduceParameters(start_s=4e-6, rank_s=0.05e-6, one_part=0.8, two_part=0.8, host_s=25e-6)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cut:
    """A table, the rows that set parameters, and those of other shapes."""

    table: CollectiveTable
    drawn_R: Int
    unseen_R: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, table: CollectiveTable, seed: int = SEED) -> Cut:
        """Draw rows of a table."""
        columns = (table.eager_R, table.operation_R, table.ranks_R, table.bytes_R)
        drawn_R = drawn_rows(columns, name=f"{table.gpu}/{table.engine}/{table.version}", seed=seed)
        shapes = list(zip(*[column.tolist() for column in columns], strict=True))
        return cls(table=table, drawn_R=drawn_R, unseen_R=unseen_rows(shapes, drawn_R))

    @property
    def since(self) -> str:
        """The first version of the range that the table's is in."""
        at = version_key(self.table.version)
        ranges = RANGES[self.table.engine]
        return [first for first in ranges if version_key(first) <= at or first == ranges[0]][-1]


def read_cuts(root: Path) -> list[Cut]:
    """Read tables and draw their rows; a TensorRT-LLM table that stands among SGLang's is left out."""
    return [Cut.of(table) for table in read_tables(root) if not table.misplaced]


def nccl_rows(parameters: NcclParameters, table: CollectiveTable) -> Float:
    """Predict every row of a table of NCCL's [R]."""
    seconds_R = np.empty(len(table.seconds_R))
    for operation in np.unique(table.operation_R).tolist():
        rows = table.operation_R == operation
        seconds_R[rows] = nccl_seconds(
            parameters, operation, table.ranks_R[rows], table.bytes_R[rows], link_Bps=NOMINAL_Bps[table.gpu]
        )
    return seconds_R


def engine_rows(parameters: AllReduceParameters, nccl: NcclParameters, table: CollectiveTable) -> Float:
    """Predict every row of a table of an engine's all-reduce [R]."""
    return engine_all_reduce_seconds(
        parameters,
        nccl,
        table.ranks_R,
        table.bytes_R,
        link_Bps=NOMINAL_Bps[table.gpu],
        memory_Bps=GPUS[table.gpu].memory_Bps,
        eager=table.eager_R,
    )


def predict(entries: Sequence[Entry[Any]], table: CollectiveTable) -> Float:
    """Predict every row of a table by what was fitted, its own GPU's or a relative's [R]."""
    nccl = the_entry(newest(entries), table.gpu, "nccl").parameters
    if table.engine == "nccl":
        return nccl_rows(nccl, table)
    return engine_rows(the_entry(newest(entries, table.version), table.gpu, table.engine).parameters, nccl, table)


def with_own_errors(entries: Sequence[Entry[Any]], cuts: Sequence[Cut]) -> list[Entry[Any]]:
    """The same entries with their errors on the rows of shapes that nobody drew."""
    found = []
    for entry in entries:
        own = [cut for cut in cuts if (cut.table.gpu, cut.table.engine, cut.since) == entry_key(entry)]
        if entry.engine == NEUTRAL:
            own = [cut for cut in cuts if cut.table.gpu == entry.gpu and cut.table.engine != "nccl"]
        found.append(with_errors(entry, errors_of(entries, own)))
    return found


def entry_key(entry: Entry[Any]) -> tuple[str, str, str]:
    """Whose an entry is."""
    return entry.gpu, entry.engine, entry.version


def errors_of(entries: Sequence[Entry[Any]], cuts: Sequence[Cut]) -> Errors:
    """Errors of what was fitted, on the rows of shapes that were not drawn."""
    nothing = np.empty(0)
    forecast = [predict(entries, cut.table)[cut.unseen_R] for cut in cuts]
    measured = [cut.table.seconds_R[cut.unseen_R] for cut in cuts]
    return Errors.of(np.concatenate([nothing, *forecast]), np.concatenate([nothing, *measured]))


def fit(cuts: Sequence[Cut], without: str = "") -> list[Entry[Any]]:
    """Fit all parameters on the drawn rows, of all GPUs but one where it is named."""
    entries: list[Entry[Any]] = []
    nccl, engines = NCCL_START, ALL_REDUCE_START
    for generation, gpus in GENERATIONS.items():
        some = [cut for cut in cuts if cut.table.gpu in gpus and cut.table.gpu != without]
        if not some:
            continue
        spread = NARROW.get(generation, SPREAD)
        own_nccl = fit_pool([_nccl(cut) for cut in some if cut.table.engine == "nccl"], nccl, spread)
        base = fit_pool([_engine(cut, own_nccl) for cut in some if cut.table.engine != "nccl"], engines, SPREAD)
        if generation == "hopper":  # the best measured: others start there
            nccl, engines = own_nccl, base
        entries += _entries(some, own_nccl, base)
    return entries


def _nccl(cut: Cut) -> Rows:
    table = rows_of(cut.table, cut.drawn_R)
    return Rows(seconds_R=table.seconds_R, predict=lambda parameters: nccl_rows(parameters, table))


def _engine(cut: Cut, nccl: NcclParameters) -> Rows:
    table = rows_of(cut.table, cut.drawn_R)
    return Rows(seconds_R=table.seconds_R, predict=lambda parameters: engine_rows(parameters, nccl, table))


def _entries(cuts: Sequence[Cut], nccl: NcclParameters, base: AllReduceParameters) -> list[Entry[Any]]:
    """The entries of one generation."""
    found = []
    for gpu in sorted({cut.table.gpu for cut in cuts}):
        found.append(_entry(gpu, "nccl", "2.23", nccl, [c for c in cuts if c.table.engine == "nccl"]))
        found.append(_entry(gpu, NEUTRAL, "0", base, [c for c in cuts if c.table.engine != "nccl"]))
    for engine, since in sorted({(cut.table.engine, cut.since) for cut in cuts if cut.table.engine != "nccl"}):
        some = [cut for cut in cuts if (cut.table.engine, cut.since) == (engine, since)]
        shared = fit_pool([_engine(cut, nccl) for cut in some], base, ENGINE_SPREAD)
        for gpu in sorted({cut.table.gpu for cut in some}):
            own = [_engine(cut, nccl) for cut in some if cut.table.gpu == gpu]
            found.append(_entry(gpu, engine, since, fit_pool(own, shared, GPU_SPREAD), some))
    return found


def _entry(gpu: str, engine: str, version: str, parameters: object, cuts: Sequence[Cut]) -> Entry[Any]:
    own = [cut for cut in cuts if cut.table.gpu == gpu]
    return Entry(
        gpu=gpu,
        engine=engine,
        version=version,
        kind=ANY,
        parameters=parameters,
        fitted=sum(len(cut.drawn_R) for cut in own),
        rows=sum(len(cut.table.seconds_R) for cut in own),
        seed=SEED,
        median=nan,
        p90=nan,
        bias=nan,
        note=f"pooled with {sum(len(cut.drawn_R) for cut in cuts)} drawn rows of {len(cuts)} tables",
    )
