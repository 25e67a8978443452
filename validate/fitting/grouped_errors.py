"""How far off routed experts are on rows that nobody fitted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.expert_roofline import expert_seconds
from moecast.sim.cost.gpus import GPUS, nearest
from moecast.sim.cost.grouped_parameters import GroupedParameters, load_parameters
from moecast.sim.cost.shapes import ExpertBlock
from moecast.sim.cost.tables.moe import MoeTable
from moecast.validate.fitting.draw import draw_rows
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.grouped import MoeRows, judged_rows
from moecast.validate.fitting.moe_loads import loads_of_rank

Float = npt.NDArray[np.float64]

MOST_COMPARED = 1500  # the roofline takes rows one by one

# The simulator's names of the element types that a roofline knows.
_ROOFLINE_TYPES = {
    "bf16": "bf16", "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4", "mxfp4_bf16": "mxfp4",
    "int4_wo": "int4",
}  # fmt: skip


def compare(table: MoeTable) -> tuple[Errors, Errors, Errors]:
    """Errors on unseen rows: of the roofline, of the model, and with the nearest other GPU's parameters."""
    table = table.where(table.known_R)
    entries = load_parameters()
    entry = _entry(table.gpu, table)
    drawn = draw_rows(table.seconds_R.size, seed=0 if entry is None else entry.seed)
    unseen = table.where(judged_rows(~drawn, 0, most=MOST_COMPARED))
    rows = MoeRows.of([unseen], seed=1)
    elsewhere = {gpu for gpu, engine, kind in entries if gpu != table.gpu and kind == table.element_type}
    elsewhere = {gpu for gpu in elsewhere if _entry(gpu, table) is not None}
    try:
        other = _entry(nearest(table.gpu, elsewhere), table)
    except ValueError:
        other = None
    return Errors.of(_roofline(unseen), unseen.seconds_R), _errors(entry, rows), _errors(other, rows)


def _entry(gpu: str, table: MoeTable) -> Entry[GroupedParameters] | None:
    entries = load_parameters()
    own = entries.get((gpu, table.engine, table.element_type))
    return own or entries.get((gpu, NEUTRAL, table.element_type))


def _errors(entry: Entry[GroupedParameters] | None, rows: MoeRows) -> Errors:
    if entry is None:
        return Errors.of(np.zeros(0), np.zeros(0))
    return Errors.of(rows.forecast(entry.parameters), rows.seconds_R)


def _roofline(table: MoeTable) -> Float:
    """What the roofline says of the same loads: of steps up to 256 tokens as decode, of longer ones as prefill."""
    random, seconds = np.random.default_rng(1), np.empty(table.seconds_R.size)
    numbers = (table.tokens_R, table.width_R, table.inner_R, table.choices_R, table.experts_R, table.ep_R)
    whats = (table.law_R, table.gated_R, table.grouped_R)
    rows = zip(*(values.tolist() for values in numbers), *(values.tolist() for values in whats), strict=True)
    for number, (tokens, width, inner, choices, experts, ep, law, gated, grouped) in enumerate(rows):
        load_P = loads_of_rank(
            tokens=tokens, choices=choices, experts=experts, parts=ep, law=law, random=random, grouped=grouped
        )
        block = ExpertBlock(width=width, inner=inner, ups=1 + gated, weight_type=_ROOFLINE_TYPES[table.element_type])
        phase = "decode" if tokens <= 256 else "prefill"
        seconds[number] = expert_seconds(block, GPUS[table.gpu], load_P[None], phase=phase)[0]
    return seconds
