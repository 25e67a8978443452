"""Why a layout wins: what more of each resource would save it, and where it stands beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moecast.sim.simulate import simulate
from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.layouts.found_serving import FoundServing
    from moecast.placement.layouts.serving_question import ServingQuestion

LISTED = 3


def why_it_wins(question: ServingQuestion, found: FoundServing) -> list[dict[str, Any]]:
    """What its decode step is made of and what limits it, and the same of the runner-up: by the rung ``bound``.

    Each is {"what", "told"} in words, with the numbers beside.
    """
    told = [_one(question, found, "the winner's decode step")]
    if found.runner_up is not None:
        told.append(_one(question, found, "the runner-up's decode step", runner_up=True))
    return told


def _one(question: ServingQuestion, found: FoundServing, what: str, *, runner_up: bool = False) -> dict[str, Any]:
    steady = found.runner_up.steady if runner_up and found.runner_up else found.winner
    layout = steady.decode
    plan = layout.plan(question.model) if runner_up else found.plan
    prediction = simulate(
        question.cluster,
        question.model,
        plan,
        question.trace,
        question.workload(layout.batch, "decode"),
        network="bound",
        seed=question.seed,
        memory_fraction=question.memory_fraction,
    )
    parts = sorted(prediction.breakdown_s.items(), key=lambda part: -part[1])[:LISTED]
    gains = sorted(prediction.gains.items(), key=lambda gain: -gain[1])[:LISTED] if prediction.gains else []
    made_of = ", ".join(f"{name} {format_s(seconds)}" for name, seconds in parts)
    saves = ", ".join(f"twice {name} saves {format_percent(gain)}" for name, gain in gains)
    return {
        "what": what,
        "told": f"{made_of} of {format_s(sum(prediction.breakdown_s.values()))}; {saves or 'no resource saves 1 %'}",
        "breakdown_s": dict(prediction.breakdown_s),
        "gains": dict(prediction.gains or {}),
        "bottleneck": prediction.bottleneck,
        "memory_bytes": None if prediction.memory_bytes is None else dict(prediction.memory_bytes),
    }
