"""The winner's pipeline pass by pass: what its timeline is drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moecast.placement.layouts.training.layer_times import LayerTimes
from moecast.placement.layouts.training.step_floor import PAIRED, TrainingFloors, cells_of
from moecast.sim.schedules.pipeline import CellSeconds, Pair, Pipeline, find_pipeline_schedule, make_order, time_order

if TYPE_CHECKING:
    from moecast.placement.layouts.training.found import FoundTraining
    from moecast.placement.layouts.training.question import TrainingQuestion

ROUNDS = 4
"""Microbatches that are shown for each pipeline rank at the most: a full pipeline repeats itself."""
TOLD = {"F": "forward", "B": "gradients of inputs", "W": "gradients of weights", "BW": "backward"}


def winner_passes(question: TrainingQuestion, found: FoundTraining) -> dict[str, Any]:
    """Passes of the pipeline's ranks by the schedule's order, each as long as its layers take by themselves.

    Returns
    -------
    "microbatches" that are shown, "of" so many in the step; "ranks"; and "spans": each with "rank", "kind", "chunk",
    "microbatch", "start_s" and "end_s". What follows the last pass (gradients, optimizer) is not among them.
    """
    layout, floors = found.winner.layout, TrainingFloors(question)
    own = question.trace.meta.layers > 1
    layers = LayerTimes(question, floors.layers, every_layer=own).of(layout, beside=layout.schedule in PAIRED)
    computed_3C, chained_3C, travels_2C = cells_of(layers, layout, question.model.n_layers)
    every = layout.pipeline(question.recipe.batch)
    shown = min(every.microbatches, ROUNDS * layout.pp * max(layout.virtual, 1))
    order = make_order(
        find_pipeline_schedule(layout.schedule), Pipeline(pp=every.pp, virtual=every.virtual, microbatches=shown)
    )
    seconds_C = [
        CellSeconds(
            forward_s=float(chained_3C[0, c]),
            inputs_s=float(chained_3C[1, c]),
            weights_s=float(chained_3C[2, c]),
            pair_s=float(max(computed_3C[:, c].sum(), travels_2C[:, c].sum())),
        )
        for c in range(len(order.chunks.rank_C))
    ]
    spans = []
    for timed in time_order(order, seconds_C, send_s=floors.send_s(layout)):
        block = timed.block
        one = block.forward if isinstance(block, Pair) else block
        kind = "forward beside backward" if isinstance(block, Pair) else TOLD[one.kind]
        spans.append(
            {
                "rank": timed.rank,
                "kind": kind,
                "chunk": one.chunk,
                "microbatch": one.microbatch,
                "start_s": timed.start_s,
                "end_s": timed.end_s,
            }
        )
    return {"microbatches": shown, "of": every.microbatches, "ranks": order.chunks.n_ranks, "spans": spans}
