"""Why a training layout wins: where its step goes, and where the runner-up's goes more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moecast.sim.quantities import path_text
from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.layouts.training.found import FoundTraining, TimedLayout

LISTED = 4
LEAST = 0.01
"""Parts of the winner's step that are worth telling."""


def why_it_wins(found: FoundTraining) -> list[dict[str, Any]]:
    """Where the winner's step goes, and what the runner-up spends more and less.

    Each is {"what", "told"} in words, with the numbers beside.
    """
    told: list[dict[str, Any]] = [{"what": "the winner's step", "told": _made_of(found.winner)}]
    if found.runner_up is not None:
        other = found.runner_up.timed
        more = _more_s(other, found.winner)
        told.append({"what": "the runner-up's step", "told": _differs(more, found.winner), "more_s": more})
    return told


def _made_of(one: TimedLayout) -> str:
    told = one.prediction
    parts = sorted(told.breakdown_s.items(), key=lambda part: -part[1])[:LISTED]
    made_of = ", ".join(f"{name} {format_s(seconds)}" for name, seconds in parts)
    waits = format_percent(max(told.waiting_P))
    return f"{made_of} of {format_s(one.step_s)}; critical path: {path_text(told.critical_path)}; bubble up to {waits}"


def _more_s(one: TimedLayout, other: TimedLayout) -> dict[str, float]:
    """Seconds by part that one spends beside the other, exposed communication as of the breakdown."""
    mine, its = one.prediction.breakdown_s, other.prediction.breakdown_s
    return {name: mine.get(name, 0.0) - its.get(name, 0.0) for name in dict.fromkeys((*mine, *its))}


def _differs(more_s: dict[str, float], winner: TimedLayout) -> str:
    parts = sorted(more_s.items(), key=lambda part: -abs(part[1]))
    told = [
        f"{format_s(abs(seconds))} {'more' if seconds > 0 else 'less'} in {name}"
        for name, seconds in parts
        if abs(seconds) > LEAST * winner.step_s
    ]
    return ", ".join(told[:LISTED]) or "no part differs by 1 % of the step"
