"""What a search for serving asks of each layout by itself: whether it fits, its lower bound, its time.

Answers depend on what is asked alone, so that several processes can give them (`moecast.processes.Workers`), each with
one of these; what layouts share is kept there for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moecast.placement.layouts.changed_times import ChangedTimes
from moecast.placement.layouts.fitting import most_batch
from moecast.placement.layouts.scoring import StepScores, placed_step
from moecast.placement.layouts.step_floor import StepFloors
from moecast.sim.simulate import simulate_question

if TYPE_CHECKING:
    from moecast.placement.layouts.changes import Change
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.placement.layouts.step_floor import Float
    from moecast.sim import Prediction
    from moecast.sim.plan import Plan

BatchesOf = tuple["ServingLayout", Sequence[int], str]
WaysOf = tuple[str, Sequence[tuple["ServingLayout", Sequence[int]]]]
TimeOf = tuple[str, "ServingLayout", str, "Plan | None"]
ChangesOf = tuple["ServingLayout", str, Sequence["Change"]]


class LayoutAnswers:
    """Answers about the layouts of one question.

    Parameters
    ----------
    question
        Everything but the layout.
    """

    def __init__(self, question: ServingQuestion) -> None:
        self.question = question
        self._floors: dict[str, StepFloors] = {}
        self._scores: dict[str, StepScores] = {}
        self._changed = ChangedTimes(question)

    def most_batch(self, asked: BatchesOf) -> tuple[int, int]:
        """As of `most_batch`: of a layout, batches and the phase."""
        return most_batch(self.question, *asked)

    def floors(self, asked: WaysOf) -> list[Float]:
        """Lower bounds of layouts that share ranks: the phase, then of each its batches."""
        phase, ways = asked
        if phase not in self._floors:
            self._floors[phase] = StepFloors(self.question, phase)
        return [self._floors[phase].of_batches(*each) for each in ways]

    def step_s(self, asked: TimeOf) -> float:
        """Seconds of a step by a rung: its name, the layout, the phase, the plan (None: experts in order)."""
        network, layout, phase, plan = asked
        return self._score(network).step_s(layout, phase, plan)

    def placed_step(self, asked: tuple[str, ServingLayout]) -> tuple[Plan, float]:
        """As of `placed_step`: of the last rung's name and the layout."""
        network, layout = asked
        return placed_step(self.question, layout, bound=self._score("bound"), last=self._score(network))

    def _score(self, network: str) -> StepScores:
        if network not in self._scores:
            self._scores[network] = StepScores(question=self.question, network=network)
        return self._scores[network]

    def decoding(self, asked: tuple[ServingLayout, Plan]) -> Prediction:
        """All that `moecast simulate` says of decode steps by ``bound``: of the layout and its plan."""
        layout, plan = asked
        return simulate_question(replace(self.question.decoding(plan, layout.batch), gains=True))

    def changed_s(self, asked: ChangesOf) -> list[float]:
        """Seconds of a step under changes: the layout, the phase, and which."""
        layout, phase, changes = asked
        return self._changed.of(layout, phase, changes)
