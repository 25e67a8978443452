"""How the winner of a training search, and its step, change when each uncertain parameter moves by its own error.

Layers are timed anew, one by one, as for scores, with tasks or links changed; what a whole step said of a layout is
multiplied by the ratio of its scores. Reductions of gradients and the optimizer stay as they are. Waits for hosts,
which schedules hide where layers alone do not, are asked of whole steps, and of large jobs not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moecast.placement.layouts.moves import training_moves
from moecast.placement.layouts.training.found import kind_of
from moecast.placement.layouts.training.layout_answers import TrainingAnswers
from moecast.placement.layouts.training.scoring import TrainingScores
from moecast.processes import Workers
from moecast.sim.training import HostWait

if TYPE_CHECKING:
    from moecast.placement.layouts.changes import Change
    from moecast.placement.layouts.moves import Move
    from moecast.placement.layouts.training.found import FoundTraining, TimedLayout
    from moecast.placement.layouts.training.question import TrainingQuestion

KINDS_ASKED = 3
WHOLE_STEPS = 64
"""GPUs of a job whose whole step is quick to lay out and time."""


def training_sensitivity(
    question: TrainingQuestion,
    found: FoundTraining,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    workers: Workers[TrainingAnswers] | None = None,
) -> dict[str, Any]:
    """Move each parameter and score the layouts that were timed whole anew; as plain JSON values.

    `workers`: as of `find_training`.

    Returns
    -------
    "asked": names of the layouts; and "moves", the one that changes most first: each with "parameter", "rests_on" and
    "ends", as of `moecast plan` for serving; every end has "step_time_s", and no limits to keep.
    """
    asking = _Asking.of(workers or Workers(TrainingAnswers(question)), found)
    parameters = [move for move in training_moves(question) if asking.can(move)]
    changes, seconds = [change for move in parameters for change in move.ends], []
    for done, step_s in enumerate(asking.steps_s(changes)):
        if progress is not None:
            progress("moving what is uncertain", done, len(changes))
        seconds.append(step_s)
    left, moves = iter(seconds), []
    for move in parameters:
        ends = [_end(told, found, next(left)) for told in move.told]
        moves.append({"parameter": move.parameter, "rests_on": move.rests_on, "ends": ends})
    moves.sort(key=_largest, reverse=True)
    return {"asked": [one.layout.name() for one in asking.over], "moves": moves}


def _largest(move: Mapping[str, Any]) -> float:
    return max(abs(end["change"]) for end in move["ends"])


@dataclass(frozen=True, slots=True)
class _Asking:
    """The best timed layouts of different kinds, and what their whole steps take beside their scores."""

    workers: Workers[TrainingAnswers]
    over: dict[TimedLayout, float]
    network: str
    gpus: int

    @classmethod
    def of(cls, workers: Workers[TrainingAnswers], found: FoundTraining) -> _Asking:
        """Compare scores and whole steps."""
        over = {one: one.step_s / workers.given.score(one.layout) for one in _asked(found)}
        return cls(workers, over, found.network, found.gpus)

    def can(self, move: Move) -> bool:
        """Whether layers alone say it, or whole steps are quick."""
        return self.gpus <= WHOLE_STEPS or all(change.host_s is None for change in move.ends)

    def steps_s(self, changes: Sequence[Change]) -> Iterator[dict[TimedLayout, float]]:
        """Seconds of each layout's step under each change."""
        layouts = [one.layout for one in self.over]
        asked = [(change, layouts) for change in changes if change.host_s is None]
        scores = self.workers.map(TrainingAnswers.changed, asked)
        for change in changes:
            if change.host_s is not None:
                yield self._waiting_s(change.host_s)
            else:
                yield {one: over * score for (one, over), score in zip(self.over.items(), next(scores), strict=True)}

    def _waiting_s(self, host_s: float) -> dict[TimedLayout, float]:
        question = self.workers.given.question
        recipe = replace(question.recipe, host=HostWait(fixed_s=host_s))
        scores = TrainingScores(replace(question, recipe=recipe), self.workers.given.floors)
        return {one: scores.step_s(one.layout, network=self.network) for one in self.over}


def _asked(found: FoundTraining) -> list[TimedLayout]:
    firsts: dict[object, TimedLayout] = {}
    for one in found.timed:
        firsts.setdefault(kind_of(one.layout), one)
    return list(firsts.values())[:KINDS_ASKED]


def _end(told: str, found: FoundTraining, step_s: dict[TimedLayout, float]) -> dict[str, Any]:
    winner = found.winner
    best = min(step_s, key=lambda one: (step_s[one], one.layout))

    def rate(one: TimedLayout) -> float:
        return one.prediction.tokens_per_s_per_gpu * one.step_s / step_s[one]

    return {
        "end": told,
        "step_time_s": step_s[winner],
        "tokens_per_s_per_gpu": rate(winner),
        "change": winner.step_s / step_s[winner] - 1,
        "meets": True,
        "best": best.layout.name(),
        "best_tokens_per_s_per_gpu": rate(best),
        "another": best is not winner,
    }
