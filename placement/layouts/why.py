"""Why a layout wins: what more of each resource would save it, and where it stands beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moecast.placement.layouts.layout_answers import LayoutAnswers
from moecast.processes import Workers
from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.layouts.found_serving import FoundServing
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim import Prediction

LISTED = 3


def why_it_wins(
    question: ServingQuestion, found: FoundServing, workers: Workers[LayoutAnswers] | None = None
) -> list[dict[str, Any]]:
    """What its decode step is made of and what limits it, and the same of the runner-up: by the rung ``bound``.

    Each is {"what", "told"} in words, with the numbers beside. `workers`: as of `find_serving`.
    """
    asked = [("the winner's decode step", found.winner.decode, found.plan)]
    if found.runner_up is not None:
        layout = found.runner_up.steady.decode
        asked.append(("the runner-up's decode step", layout, layout.plan(question.model)))
    workers = Workers(LayoutAnswers(question)) if workers is None else workers
    predictions = workers.map(LayoutAnswers.decoding, [(layout, plan) for _, layout, plan in asked])
    return [_told(what, prediction) for (what, *_), prediction in zip(asked, predictions, strict=True)]


def _told(what: str, prediction: Prediction) -> dict[str, Any]:
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
