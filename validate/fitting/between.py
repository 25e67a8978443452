"""The fit of what DeepEP's kernels cost between nodes beside the bytes on NICs.

Low latency: the four rows of DeepEP's own page over RDMA that may set parameters (8 and 256 ranks
of H800, 128 tokens, hidden 7168, top-8 of 256; deepseek-ai/DeepEP at 77bb07a). Normal: the drawn
rows of measured tables on several nodes.

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
    FarLowLatencyParameters,
    FarNormalParameters,
    distinct_ranks,
    sm_seconds_of_copy,
)
from moecast.sim.cost.entries import Entry, newest, the_entry
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.dispatch import DispatchTable, read_tables
from moecast.validate.fitting.dispatch import SEED, drawn_sources
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.pool import Rows, fit_pool, with_errors

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

NIC_Bps = 48.5e9
"""One 400 Gb/s NIC a GPU, as presets have it (`moecast.topology.presets.hopper`)."""
NODE_RANKS = 8
MOST_NODES = 4
LOW_LATENCY, NORMAL = "deepep-ll-far", "deepep-normal-far"

# Ranks, bytes of a copy, seconds: dispatch and combine of both rows.
RDMA_ROWS = ((8, 7392, 163e-6), (8, 14336, 318e-6), (256, 7392, 194e-6), (256, 14336, 360e-6))
RDMA_CHOICES = 128 * 8

_LOW_START = FarLowLatencyParameters(start_s=20e-6, copy_s=10e-9)
_LOW_SPREAD = {"start_s": 0.5, "copy_s": 1.0}
_NORMAL_START = FarNormalParameters(start_s=40e-6, host_s=10e-6, relay=1.2)
_NORMAL_SPREAD = {"start_s": 1.0, "host_s": 0.7, "relay": 0.7}


def fit_low_latency() -> FarLowLatencyParameters:
    """Fit start and cost of a copy; a rank's own share does not leave."""
    ranks_R, bytes_R, seconds_R = (np.array(column, np.float64) for column in zip(*RDMA_ROWS, strict=True))

    def predict(p: FarLowLatencyParameters) -> Float:
        copies_R = RDMA_CHOICES * (ranks_R - 1) / ranks_R
        found: Float = p.start_s + copies_R * (p.copy_s + bytes_R / NIC_Bps)
        return found

    return fit_pool([Rows(seconds_R=seconds_R, predict=predict)], _LOW_START, _LOW_SPREAD)


def normal_rows(p: FarNormalParameters, near: Any, table: DispatchTable) -> Float:
    """Predict every row of a table of several nodes [R]: the longer of NICs and SMs, as the network has it.

    `near`: the normal kernels' parameters inside a node.
    """
    hosts_R, choices_R = table.hosts_R.astype(np.float64), table.choices_R.astype(np.float64)
    here_R = choices_R / hosts_R
    far_R = table.tokens_R * (hosts_R - 1) * (1 - (1 - 1 / hosts_R) ** choices_R)
    near_R = table.tokens_R * hosts_R * distinct_ranks(NODE_RANKS, here_R) * (NODE_RANKS - 1) / NODE_RANKS
    each_R = sm_seconds_of_copy(near, choices=here_R, ranks=NODE_RANKS, copy_bytes=table.copy_bytes_R)
    sms_s = near_R * p.relay * each_R / table.sms_R
    seconds: Float = p.start_s + hosts_R * p.host_s + np.maximum(far_R * table.copy_bytes_R / NIC_Bps, sms_s)
    return seconds


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FarCut:
    """Rows of normal kernels on two and four nodes, of one file and phase, and which of them were drawn.

    With eight nodes NICs carry half of what they do with four, which is those machines' network.
    """

    table: DispatchTable
    phase: str
    drawn_R: Bool


def read_far_cuts(root: Path) -> list[FarCut]:
    """Read the tables that have rows of several nodes."""
    found = []
    for table in read_tables(root):
        for phase in ("dispatch", "combine"):
            far_R = (table.library_R == "deepep-normal") & (table.phase_R == phase)
            far_R &= (table.hosts_R > 1) & (table.hosts_R <= MOST_NODES)
            if far_R.any():
                some = rows_of(table, far_R)
                found.append(FarCut(table=some, phase=phase, drawn_R=np.isin(some.source_R, drawn_sources(table))))
    return found


def fit_between(entries: Sequence[Entry[Any]], cuts: Sequence[FarCut]) -> list[Entry[Any]]:
    """Fit both kinds of kernels; `entries` are what was fitted inside a node."""
    low = fit_low_latency()
    found = [_entry(LOW_LATENCY, phase, low, [], "rows of DeepEP's page") for phase in ("dispatch", "combine")]
    for phase in ("dispatch", "combine"):
        some = [cut for cut in cuts if cut.phase == phase]
        near = the_entry(newest(entries), "h200_sxm", "deepep-normal", phase).parameters
        fitted = fit_pool([_rows(cut, near) for cut in some], _NORMAL_START, _NORMAL_SPREAD)
        found.append(_entry(NORMAL, phase, fitted, some, "H100 and H200 on 2 and 4 nodes, exchange of counts included"))
    return found


def with_far_errors(
    entries: Sequence[Entry[Any]], near: Sequence[Entry[Any]], cuts: Sequence[FarCut]
) -> list[Entry[Any]]:
    """The same entries, normal kernels' with their errors on rows that were not drawn."""
    found = []
    for entry in entries:
        some = [cut for cut in cuts if entry.engine == NORMAL and cut.phase == entry.kind]
        below = the_entry(newest(near), "h200_sxm", "deepep-normal", entry.kind).parameters
        forecast = [normal_rows(entry.parameters, below, cut.table)[~cut.drawn_R] for cut in some]
        measured = [cut.table.seconds_R[~cut.drawn_R] for cut in some]
        nothing = np.empty(0)
        errors = Errors.of(np.concatenate([nothing, *forecast]), np.concatenate([nothing, *measured]))
        found.append(with_errors(entry, errors))
    return found


def _rows(cut: FarCut, near: Any) -> Rows:
    table = rows_of(cut.table, cut.drawn_R)
    return Rows(seconds_R=table.seconds_R, predict=lambda p: normal_rows(p, near, table))


def _entry(engine: str, phase: str, parameters: object, cuts: Sequence[FarCut], note: str) -> Entry[Any]:
    return Entry(
        gpu="h200_sxm",
        engine=engine,
        version="0",
        kind=phase,
        parameters=parameters,
        fitted=sum(int(cut.drawn_R.sum()) for cut in cuts) or len(RDMA_ROWS),
        rows=sum(len(cut.drawn_R) for cut in cuts) or len(RDMA_ROWS),
        seed=SEED,
        median=nan,
        p90=nan,
        bias=nan,
        note=note,
    )
