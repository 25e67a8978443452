"""The fit of dispatch and combine inside a domain, on drawn rows of measured tables.

For each library and phase one set of parameters for each generation, and with that as prior one for
each GPU. Calls from an engine's host rest on the kernels below them and have two parameters more.

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

from moecast.sim.cost.dispatch import (
    HostedParameters,
    LowLatencyParameters,
    NormalParameters,
    SymmetricParameters,
    hosted_seconds,
    low_latency_seconds,
    normal_seconds,
    symmetric_seconds,
)
from moecast.sim.cost.entries import Entry, newest, the_entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.nvlink import GENERATIONS, NOMINAL_Bps
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.dispatch import DispatchTable, read_tables
from moecast.validate.fitting.draw import drawn_rows, unseen_rows
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.pool import Rows, fit_pool, with_errors

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

SEED = 9
SPREAD = 1.0
"""How far a generation's parameters may stray from where they start, in logarithms."""
RANK_SPREAD = {"start_s": 1.0, "rank_s": 0.3, "token_s": 1.0, "near_part": 0.3, "far_part": 0.3}
"""Of kernels in symmetric memory: a few slow rows at one token would ask for much time for each rank."""
GENERATION_SPREAD = 0.5
"""How far a generation's calls from hosts may stray from those of all GPUs."""
GPU_SPREAD = 0.2
"""How far a GPU's may stray from its generation's."""
SINCE = "0"

LOW_LATENCY = "deepep-ll"
NORMAL = "deepep-normal"
_DISPATCH_NORMAL = NormalParameters(start_s=30e-6, wide_s=1e-11, token_s=3e-7, copy_s=6e-8, byte_s=4e-11, part=0.7)
_SYMMETRIC = SymmetricParameters(start_s=11e-6, rank_s=1e-7, token_s=2e-8, near_part=0.7, far_part=0.5)
STARTS: dict[tuple[str, str], Any] = {
    (LOW_LATENCY, "dispatch"): LowLatencyParameters(start_s=8e-6, expert_s=2e-8, token_s=2e-6, part=0.6),
    (LOW_LATENCY, "combine"): LowLatencyParameters(start_s=9e-6, expert_s=1e-8, token_s=1e-7, part=0.5),
    (NORMAL, "dispatch"): _DISPATCH_NORMAL,
    (NORMAL, "combine"): NormalParameters(
        start_s=25e-6, wide_s=1.5e-9, token_s=3e-7, copy_s=6e-8, byte_s=4e-11, part=0.7
    ),
    **{("nvlink-one-sided", phase): _SYMMETRIC for phase in ("dispatch", "combine")},
    **{
        ("nvlink-two-sided", phase): _SYMMETRIC for phase in ("prepare", "dispatch", "combine", "combine_low_precision")
    },
}
BELOW = {"hosted-deepep-ht": NORMAL, "hosted-deepep-ll": LOW_LATENCY}
"""The kernels that engines call."""
_HOSTED = HostedParameters(host_s=80e-6, scale=1.3)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cut:
    """Rows of one table, library and phase inside a domain: those that set parameters, and those of other shapes."""

    table: DispatchTable
    engine: str
    library: str
    phase: str
    drawn_R: npt.NDArray[np.int64]
    unseen_R: Bool

    @property
    def key(self) -> tuple[str, str]:
        """Whose parameters these rows set: engine and kind as `Entry` has them."""
        return self.engine, self.phase


def read_cuts(root: Path) -> list[Cut]:
    """Read tables and draw rows: at most 2 % of a file's, of which both phases count."""
    return [cut for table in read_tables(root) for cut in _cuts(table)]


def _cuts(table: DispatchTable) -> list[Cut]:
    near_R = (table.hosts_R == 1) | np.char.startswith(table.library_R, "nvlink")
    keys = (table.library_R, table.ranks_R, table.sms_R, table.type_R, table.tokens_R, table.experts_R, table.hidden_R)
    sources = drawn_sources(table)
    shapes = np.array(
        list(zip(*[key.tolist() for key in (*keys, table.phase_R, table.choices_R)], strict=True)), object
    )
    found = []
    for library, phase in sorted(set(zip(table.library_R.tolist(), table.phase_R.tolist(), strict=True))):
        rows = np.flatnonzero((table.library_R == library) & (table.phase_R == phase) & near_R)
        if (library, phase) not in STARTS and library not in BELOW:
            continue
        at = np.flatnonzero(np.isin(table.source_R[rows], sources))
        unseen = unseen_rows([tuple(shape) for shape in shapes[rows]], at)
        engine = f"{table.engine}/{library.removeprefix('hosted-')}" if library in BELOW else library
        found.append(
            Cut(table=rows_of(table, rows), engine=engine, library=library, phase=phase, drawn_R=at, unseen_R=unseen)
        )
    return found


_KEYS = ("library_R", "phase_R", "ranks_R", "sms_R", "type_R", "tokens_R", "experts_R", "hidden_R")


def drawn_sources(table: DispatchTable) -> npt.NDArray[np.int64]:
    """The rows of the file that set parameters."""
    whole = rows_of(table, _firsts(table.source_R))
    name = f"{table.gpu}/{table.engine}/{table.version}"
    return whole.source_R[drawn_rows([getattr(whole, key) for key in _KEYS], name=name, seed=SEED)]


def _firsts(source_R: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first row of each row of the file."""
    return np.unique(source_R, return_index=True)[1]


def kernel_rows(parameters: Any, table: DispatchTable) -> Float:
    """Predict every row of a table of one library and phase [R]."""
    shape: dict[str, Any] = {
        "tokens": table.tokens_R, "choices": table.choices_R, "ranks": table.ranks_R,
        "copy_bytes": table.copy_bytes_R, "link_Bps": NOMINAL_Bps[table.gpu],
    }  # fmt: skip
    if isinstance(parameters, LowLatencyParameters):
        return low_latency_seconds(parameters, experts=table.experts_R, sms=GPUS[table.gpu].sms, **shape)
    if isinstance(parameters, NormalParameters):
        return normal_seconds(parameters, communication_sms=table.sms_R, **shape)
    return symmetric_seconds(parameters, **shape)


def predict(entries: Sequence[Entry[Any]], cut: Cut) -> Float:
    """Predict every row of a cut by what was fitted, its own GPU's or a relative's [R]."""
    own = the_entry(newest(entries), cut.table.gpu, cut.engine, cut.phase).parameters
    if cut.library not in BELOW:
        return kernel_rows(own, cut.table)
    kernel = the_entry(newest(entries), cut.table.gpu, BELOW[cut.library], cut.phase).parameters
    return hosted_seconds(own, kernel_rows(kernel, cut.table))


def with_own_errors(entries: Sequence[Entry[Any]], cuts: Sequence[Cut]) -> list[Entry[Any]]:
    """The same entries with their errors on the rows of shapes that nobody drew."""
    return [
        with_errors(
            entry,
            errors_of(entries, [c for c in cuts if (c.table.gpu, *c.key) == (entry.gpu, entry.engine, entry.kind)]),
        )
        for entry in entries
    ]


def errors_of(entries: Sequence[Entry[Any]], cuts: Sequence[Cut]) -> Errors:
    """Errors of what was fitted, on the rows of shapes that were not drawn."""
    nothing = np.empty(0)
    forecast = [predict(entries, cut)[cut.unseen_R] for cut in cuts]
    measured = [cut.table.seconds_R[cut.unseen_R] for cut in cuts]
    return Errors.of(np.concatenate([nothing, *forecast]), np.concatenate([nothing, *measured]))


def fit(cuts: Sequence[Cut], without: str = "") -> list[Entry[Any]]:
    """Fit all parameters on the drawn rows, of all GPUs but one where it is named."""
    entries: list[Entry[Any]] = []
    kept = [cut for cut in cuts if cut.table.gpu != without]
    for key in sorted({cut.key for cut in kept}, key=lambda key: ("/" in key[0], key)):  # kernels, then calls of them
        of_key = [cut for cut in kept if cut.key == key]
        start, spread = _start(of_key, entries)
        for generation in GENERATIONS.values():
            some = [cut for cut in of_key if cut.table.gpu in generation]
            if some:
                entries += _entries(some, entries, fit_pool([_rows(cut, entries) for cut in some], start, spread))
    return entries


def _start(cuts: Sequence[Cut], kernels: Sequence[Entry[Any]]) -> tuple[Any, float | dict[str, float]]:
    """Where a generation's fit starts, and how far it may stray: calls from hosts where those of all GPUs are."""
    first = cuts[0]
    if first.library in BELOW:
        return fit_pool([_rows(cut, kernels) for cut in cuts], _HOSTED, SPREAD), GENERATION_SPREAD
    start = STARTS[first.library, first.phase]
    return start, RANK_SPREAD if isinstance(start, SymmetricParameters) else SPREAD


def _entries(cuts: Sequence[Cut], kernels: Sequence[Entry[Any]], shared: Any) -> list[Entry[Any]]:
    """The entries of one generation, engine and phase."""
    first, found = cuts[0], []
    for gpu in sorted({cut.table.gpu for cut in cuts}):
        own = [cut for cut in cuts if cut.table.gpu == gpu]
        found.append(
            Entry(
                gpu=gpu,
                engine=first.engine,
                version=SINCE,
                kind=first.phase,
                parameters=fit_pool([_rows(cut, kernels) for cut in own], shared, GPU_SPREAD),
                fitted=sum(len(cut.drawn_R) for cut in own),
                rows=sum(len(cut.table.seconds_R) for cut in own),
                seed=SEED,
                median=nan,
                p90=nan,
                bias=nan,
                note=f"prior: {sum(len(cut.drawn_R) for cut in cuts)} drawn rows of {len(cuts)} tables",
            )
        )
    return found


def _rows(cut: Cut, kernels: Sequence[Entry[Any]]) -> Rows:
    table = rows_of(cut.table, cut.drawn_R)
    if cut.library not in BELOW:
        return Rows(seconds_R=table.seconds_R, predict=lambda parameters: kernel_rows(parameters, table))
    kernel = the_entry(newest(kernels), table.gpu, BELOW[cut.library], cut.phase).parameters
    kernel_R = kernel_rows(kernel, table)
    return Rows(seconds_R=table.seconds_R, predict=lambda parameters: hosted_seconds(parameters, kernel_R))
