"""How far off dense matrix products are on rows that nobody fitted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import roofline
from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gemm import GemmParameters, all_parameters, gemm_seconds, load_parameters
from moecast.sim.cost.gpus import GPUS, nearest
from moecast.sim.cost.tables.gemm import GemmTable
from moecast.validate.fitting.draw import draw_rows
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.gemm import kernel_rows

Float = npt.NDArray[np.float64]

# The simulator's names of the element types that a roofline knows.
_ROOFLINE_TYPES = {"bf16": "bf16", "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "nvfp4", "int8_wo": "int8"}
_ROOFLINE_TYPES |= {"int4_wo": "int4", "w8a8_int8": "int8"}


def compare(table: GemmTable) -> tuple[Errors, Errors, Errors, str]:
    """Errors of the roofline, of the model, and of the model with the nearest other GPU's parameters.

    And a note.

    Only rows that are a kernel's time and that did not fit the parameters count. The other GPU's
    are those of the same engine and type, or the neutral ones.
    """
    entry = _entry(table.gpu, table)
    counted = kernel_rows(table)
    if entry is not None and not table.host_timed:
        counted &= ~draw_rows(table.seconds_R.size, seed=entry.seed)
    measured = table.seconds_R[counted]
    elsewhere = {gpu for gpu in GPUS if gpu != table.gpu and _entry(gpu, table) is not None}
    try:
        other = _entry(nearest_other(table.gpu, elsewhere), table)
    except ValueError:
        other = None
    note = f"host-timed: {measured.size} of {table.seconds_R.size} rows" if table.host_timed else ""
    return (
        Errors.of(_roofline(table, counted), measured),
        _errors(entry, table, counted),
        _errors(other, table, counted),
        note,
    )


def nearest_other(gpu: str, among: set[str]) -> str:
    """The nearest relative of a GPU that is not itself."""
    return nearest(gpu, among - {gpu})


def _entry(gpu: str, table: GemmTable) -> Entry[GemmParameters] | None:
    entries = load_parameters()
    if gpu == table.gpu:
        for entry in all_parameters():
            if (entry.gpu, entry.engine, entry.version, entry.kind) == (
                gpu,
                table.engine,
                table.version,
                table.element_type,
            ):
                return entry
    own = entries.get((gpu, table.engine, table.element_type))
    return own or entries.get((gpu, NEUTRAL, table.element_type))


def _errors(entry: Entry[GemmParameters] | None, table: GemmTable, counted: npt.NDArray[np.bool_]) -> Errors:
    if entry is None:
        return Errors.of(np.zeros(0), np.zeros(0))
    shape = (table.m_R[counted], table.n_R[counted], table.k_R[counted])
    seconds = gemm_seconds(entry.parameters, GPUS[table.gpu], *shape, element_type=table.element_type)
    return Errors.of(seconds, table.seconds_R[counted])


def _roofline(table: GemmTable, counted: npt.NDArray[np.bool_]) -> Float:
    """What `moecast.sim.cost.roofline` says, width by width: it takes one at a time."""
    seconds, widths = np.empty(int(counted.sum())), np.stack([table.n_R[counted], table.k_R[counted]], 1)
    rows = table.m_R[counted]
    for outer, inner in np.unique(widths, axis=0):
        same = (widths == (outer, inner)).all(1)
        seconds[same] = roofline.gemm_seconds(
            GPUS[table.gpu],
            rows[same],
            inner=int(inner),
            outer=int(outer),
            element_type=_ROOFLINE_TYPES[table.element_type],
        )
    return seconds
