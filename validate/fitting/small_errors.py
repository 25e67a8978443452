"""How far off quantisation and absorbed MLA's batched products are on rows that nobody fitted."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import mla_bmm, quantise, roofline
from moecast.sim.cost.entries import NEUTRAL, Entry, newest
from moecast.sim.cost.gpus import GPUS, nearest
from moecast.sim.cost.tables.mla_bmm import MlaBmmTable
from moecast.sim.cost.tables.quantise import QuantiseTable
from moecast.validate.fitting.draw import draw_rows
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.mla_bmm import draw_spread, forecast

Float = npt.NDArray[np.float64]
P = TypeVar("P")
Compared = tuple[Errors, Errors, Errors]


def compare_mla_bmm(table: MlaBmmTable) -> Compared:
    """Errors of the roofline, of the model, and of the model with the nearest other GPU's parameters."""
    own, other = _own_and_other(mla_bmm.all_parameters(), table.gpu, table.engine, table.element_type)
    if own is None:
        return _none()
    unseen = ~draw_spread(table, seed=own.seed)
    measured = table.seconds_R[unseen]

    def errors(entry: Entry[mla_bmm.MlaBmmParameters] | None) -> Errors:
        if entry is None:
            return _none()[0]
        return Errors.of(forecast(entry.parameters, table.gpu, table.engine, table, unseen), measured)

    return Errors.of(_roofline_bmm(table)[unseen], measured), errors(own), errors(other)


def compare_quantise(table: QuantiseTable) -> Compared:
    """As `compare_mla_bmm`; the roofline moves three bytes an element."""
    own, other = _own_and_other(quantise.all_parameters(), table.gpu, table.engine, table.kind)
    if own is None or own.rows != table.seconds_R.size:
        return _none()
    unseen = ~draw_rows(table.seconds_R.size, seed=own.seed)
    m, k, measured = table.m_R[unseen], table.k_R[unseen], table.seconds_R[unseen]

    def errors(entry: Entry[quantise.QuantiseParameters] | None) -> Errors:
        if entry is None:
            return _none()[0]
        return Errors.of(quantise.quantise_seconds(entry.parameters, GPUS[table.gpu], m, k), measured)

    lines = roofline.elementwise_seconds(GPUS[table.gpu], m * k, row_bytes=3.0)
    return Errors.of(lines, measured), errors(own), errors(other)


def _own_and_other(
    entries: tuple[Entry[P], ...], gpu: str, engine: str, kind: str
) -> tuple[Entry[P] | None, Entry[P] | None]:
    """The entry of a table, and what it would get if its GPU had no table."""
    found = newest(entries)

    def entry(name: str) -> Entry[P] | None:
        return found.get((name, engine, kind)) or found.get((name, NEUTRAL, kind))

    elsewhere = {name for name in GPUS if name != gpu and entry(name) is not None}
    try:
        other = entry(nearest(gpu, elsewhere))
    except ValueError:
        other = None
    return found.get((gpu, engine, kind)), other


def _roofline_bmm(table: MlaBmmTable) -> Float:
    """What `moecast.sim.cost.roofline` says of the product, its weights read once for each head."""
    hardware, heads = GPUS[table.gpu], table.heads_R
    bytes_of = {"bf16": 2.0, "fp8": 1.0}[table.element_type]
    traffic = heads * (
        table.inner_R * table.outer_R * bytes_of + table.tokens_R * (2 * table.inner_R + 2 * table.outer_R)
    )
    flop = 2.0 * heads * table.tokens_R * table.inner_R * table.outer_R
    seconds = roofline.kernel_seconds(
        hardware, flop=flop, traffic_bytes=traffic, element_type=table.element_type, kernel="gemm"
    )
    return roofline.launched(hardware, seconds, table.tokens_R, 1)


def _none() -> Compared:
    empty = Errors.of(np.zeros(0), np.zeros(0))
    return empty, empty, empty
