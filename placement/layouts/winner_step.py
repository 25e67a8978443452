"""A few layers of the winner's decode step, task by task: what its timeline is drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.sim.breakdown import waits_for_peers
from moecast.sim.program import Compute
from moecast.sim.simulate import simulate_step

if TYPE_CHECKING:
    from moecast.placement.layouts.found_serving import FoundServing
    from moecast.placement.layouts.serving_question import ServingQuestion

LAYERS, RANKS = 3, 6


def winner_timeline(question: ServingQuestion, found: FoundServing) -> dict[str, Any]:
    """Spans of some MoE layers in the middle of the step, on ranks evenly spread, by the rung ``bound``.

    Returns
    -------
    "layers", "ranks", "step_s", and "spans": each with "rank", "stream", "kind", "layer", "start_s", "end_s" and, of
    exchanges, "idle_s", which it waits for peers.
    """
    decode, plan = found.winner.decode, found.plan
    step = question.step(decode.dp, decode.batch, "decode")
    program, times = simulate_step(
        question.cluster, question.model, plan, question.trace, step, network="bound", seed=question.seed
    )
    idle_S = waits_for_peers(program, times).idle_S
    first = max((question.model.layers - LAYERS) // 2, 0)
    layers = range(first, min(first + LAYERS, question.model.layers))
    tasks = [(place, task) for place, task in enumerate(program.tasks) if task.layer in layers]
    there = np.unique(np.concatenate([program.ranks_of(task) for _, task in tasks]))
    ranks = there[np.unique(np.linspace(0, len(there) - 1, min(RANKS, len(there))).round().astype(int))].tolist()
    spans = []
    for place, task in tasks:
        row_of = {int(rank): row for row, rank in enumerate(program.ranks_of(task).tolist())}
        for rank in ranks:
            if (row := row_of.get(rank)) is None:
                continue
            idle = 0.0 if isinstance(task, Compute) else float(idle_S[place][row])
            spans.append(
                {
                    "rank": rank,
                    "stream": task.stream or "transfers",
                    "kind": task.kind,
                    "layer": task.layer,
                    "start_s": float(times.enter_S[place][row]),
                    "end_s": float(times.leave_S[place][row]),
                    "idle_s": idle,
                }
            )
    return {"layers": list(layers), "ranks": ranks, "step_s": float(times.step_time_s), "spans": spans}
