"""What a search for a training layout asks of each by itself: whether it fits, its bounds and scores, its whole step.

As of `moecast.placement.layouts.layout_answers`: several processes can answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from moecast.placement.layouts.training.layer_times import LayerTimes
from moecast.placement.layouts.training.scoring import TrainingScores
from moecast.placement.layouts.training.step_floor import TrainingFloors
from moecast.sim.memory import usable_bytes

if TYPE_CHECKING:
    from moecast.placement.layouts.changes import Change
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.question import TrainingQuestion
    from moecast.sim.training import TrainingPrediction


class TrainingAnswers:
    """Answers about the layouts of one question.

    Parameters
    ----------
    question
        Everything but the layout.
    """

    def __init__(self, question: TrainingQuestion) -> None:
        self.question = question

    @cached_property
    def floors(self) -> TrainingFloors:
        """Lower bounds, and what layers share."""
        return TrainingFloors(self.question)

    @cached_property
    def scores(self) -> TrainingScores:
        """Scores by layers that ``bound`` has timed."""
        return TrainingScores(self.question, self.floors)

    @cached_property
    def _usable(self) -> int:
        return usable_bytes(self.question.cluster.hardware, self.question.memory_fraction)

    def missing_bytes(self, layout: TrainingLayout) -> int:
        """What the fullest GPU has too little; none or less: it fits."""
        return self.floors.memory.total(layout) - self._usable

    def quick(self, layout: TrainingLayout) -> tuple[float, float]:
        """The quick lower bound, and the guess that orders what is scored."""
        return self.floors.quick(layout), self.scores.guess(layout)

    def score(self, layout: TrainingLayout) -> float:
        """As of `TrainingScores.quick`."""
        return self.scores.quick(layout)

    def whole(self, asked: tuple[TrainingLayout, str]) -> TrainingPrediction:
        """The whole step of a layout by a rung."""
        layout, network = asked
        return self.scores.whole(layout, network=network)

    def changed(self, asked: tuple[Change, Sequence[TrainingLayout]]) -> list[float]:
        """Scores of layouts under a change of tasks or links."""
        change, layouts = asked
        times = LayerTimes(self.question.one_layer(), self.floors.layers, change=change)
        scores = TrainingScores(self.question, self.floors, times)
        return [scores.quick(layout) for layout in layouts]
