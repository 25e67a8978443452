"""How the winner, and what it serves, change when each uncertain parameter moves by its own error.

The best layouts are timed by the rung ``bound`` as the question has it and once for each end of each move; what the
last rung and the own placement said of a layout is multiplied by the ratio of the two. A layout that misses the limits
under a move is out: so neighbours of the best in batch size are asked, too, as who runs them would turn to these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from moecast.placement.layouts.changed_times import filled_batch
from moecast.placement.layouts.changes import Change
from moecast.placement.layouts.front import kind_of, ranked
from moecast.placement.layouts.layout_answers import LayoutAnswers
from moecast.placement.layouts.moves import Move, moves_of
from moecast.placement.layouts.serving_layout import way_of
from moecast.placement.layouts.steady import Steady, served_by
from moecast.processes import Workers

if TYPE_CHECKING:
    from moecast.placement.layouts.found_serving import FoundServing
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.placement.layouts.steady import Slo

AS_IT_IS = Change()
KINDS_ASKED = 3
BATCHES_BELOW, BATCHES_ABOVE = 2, 1
"""Of each kind of layout, beside its own batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a move.

    Parameters
    ----------
    told
        Which, in words.
    kept
        What the winner serves there.
    best
        Of all that were asked, the one that serves most there within the limits; None where none is within.
    meets
        Whether the winner is within the limits.
    """

    told: str
    kept: Steady
    best: Steady | None
    meets: bool

    @property
    def another(self) -> bool:
        """Whether another layout than the winner is best: other degrees or ways to travel, not another batch."""
        return self.best is not None and kind_of(self.best) != kind_of(self.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A move with what came of it."""

    move: Move
    ends: tuple[End, ...]

    @property
    def swing(self) -> float:
        """Tokens/s of a GPU between the ends, the winner as it is among them."""
        rates = [end.kept.tokens_per_s_per_gpu for end in self.ends]
        return max(rates) - min(rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """All moves, the one that changes most first.

    Parameters
    ----------
    winner
        As it is.
    asked
        The layouts that were re-scored.
    """

    winner: Steady
    asked: tuple[Steady, ...]
    moved: tuple[Moved, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "asked": [one.name() for one in self.asked],
            "moves": [
                {
                    "parameter": each.move.parameter,
                    "rests_on": each.move.rests_on,
                    "ends": [self._end(end) for end in each.ends],
                }
                for each in self.moved
            ],
        }

    def _end(self, end: End) -> dict[str, Any]:
        rate, best = self.winner.tokens_per_s_per_gpu, end.best
        return {
            "end": end.told,
            "tokens_per_s_per_gpu": end.kept.tokens_per_s_per_gpu,
            "tpot_s": end.kept.tpot_s,
            "ttft_s": end.kept.ttft_s,
            "change": end.kept.tokens_per_s_per_gpu / rate - 1,
            "meets": end.meets,
            "best": None if best is None else best.name(),
            "best_batch": None if best is None else best.decode.batch,
            "best_tokens_per_s_per_gpu": None if best is None else best.tokens_per_s_per_gpu,
            "another": end.another,
        }


def sensitivity(
    question: ServingQuestion,
    found: FoundServing,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    workers: Workers[LayoutAnswers] | None = None,
) -> Sensitivity:
    """Move each parameter and score the best layouts anew; `workers`: as of `find_serving`."""
    asked = _asked(found)
    summed = all(one.decode.experts_are_summed for one in asked)
    moves = moves_of(question, apart=found.winner.split, summed=summed)
    changes = list(dict.fromkeys([AS_IT_IS, *(end for move in moves for end in move.ends)]))
    times = _Times(workers or Workers(LayoutAnswers(question)), changes, progress or _silent)
    times.time(asked)
    moving = _Moving.of(question, found, times, asked)
    served = {change: [moving.under(change, one) for one in asked] for change in changes}
    moved = [
        Moved(move=move, ends=tuple(_end(told, served[change], found.slo) for told, change in _ends(move)))
        for move in moves
    ]
    order = sorted(moved, key=lambda each: -max(each.swing, _off(each, found.winner)))
    return Sensitivity(winner=found.winner, asked=tuple(asked), moved=tuple(order))


def _ends(move: Move) -> Iterator[tuple[str, Change]]:
    return zip(move.told, move.ends, strict=True)


def _off(moved: Moved, winner: Steady) -> float:
    return max(abs(end.kept.tokens_per_s_per_gpu - winner.tokens_per_s_per_gpu) for end in moved.ends)


def _end(told: str, served: Sequence[Steady], slo: Slo) -> End:
    best = ranked(served, slo)
    return End(told=told, kept=served[0], best=best[0] if best else None, meets=served[0].meets(slo))


def _asked(found: FoundServing) -> list[Steady]:
    """The winner, the best of the next kinds, and their neighbours in batch size; times of the winner's rung."""
    firsts: dict[object, Steady] = {}
    for one in (found.winner, *found.placed):
        firsts.setdefault(kind_of(one), one)
    chosen = dict.fromkeys(list(firsts.values())[:KINDS_ASKED])
    for one in list(chosen):
        chosen |= dict.fromkeys(_neighbours(one, found.fitted.layouts))
    return list(chosen)


def _neighbours(one: Steady, fit: Iterable[ServingLayout]) -> Iterator[Steady]:
    """The same with other batches; their times are still this one's, and nobody reads them."""
    batch, way = one.decode.batch, way_of(one.decode)
    same = [layout.batch for layout in fit if way_of(layout) == way]
    below = sorted(other for other in same if other < batch)[-BATCHES_BELOW:]
    above = sorted(other for other in same if other > batch)[:BATCHES_ABOVE]
    for other in (*below, *above):
        yield replace(one, decode=replace(one.decode, batch=other))


def _silent(_what: str, _done: int, _of: int) -> None:
    return


@dataclass(slots=True)
class _Times:
    """Seconds of steps under each change, all of a step asked at once."""

    workers: Workers[LayoutAnswers]
    changes: Sequence[Change]
    tell: Callable[[str, int, int], None]
    known: dict[tuple[ServingLayout, str], dict[Change, float]] = field(default_factory=dict)

    def time(self, asked: Iterable[Steady]) -> None:
        """Time the steps of layouts; those of prompts, who do not know how full batches of decoded tokens are, less."""
        in_prompts = [change for change in self.changes if change.fill == 1]
        changes = {"decode": self.changes, "prefill": in_prompts}
        steps = list(
            dict.fromkeys(step for one in asked for step in ((one.decode, "decode"), (one.prefill, "prefill")))
        )
        found = self.workers.map(LayoutAnswers.changed_s, [(*step, changes[step[1]]) for step in steps])
        for done, (step, seconds) in enumerate(zip(steps, found, strict=True), 1):
            self.known[step] = dict(zip(changes[step[1]], seconds, strict=True))
            self.tell("moving what is uncertain", done, len(steps))

    def of(self, layout: ServingLayout, phase: str, change: Change) -> float:
        """Seconds of a step that was timed."""
        return self.known[layout, phase][change]


@dataclass(frozen=True, slots=True)
class _Moving:
    """Who serves what under a change: times of the last rung, by what the change makes of those by ``bound``."""

    question: ServingQuestion
    gpus: int
    times: _Times
    of_kind: dict[object, tuple[float, float]]
    """By kind of layout: decode and prefill step, by the last rung / by ``bound``."""

    @classmethod
    def of(cls, question: ServingQuestion, found: FoundServing, times: _Times, asked: Sequence[Steady]) -> _Moving:
        """Compare the rungs on the layouts that were placed."""
        ratios: dict[object, tuple[float, float]] = {}
        lengths = {"isl": question.isl, "osl": question.osl}
        for one in asked:
            if kind_of(one) in ratios:  # a neighbour, whose times are the first one's
                continue
            last = one.step_seconds(**lengths)
            phases = ((one.decode, "decode"), (one.prefill, "prefill"))
            bound = [times.of(layout, phase, AS_IT_IS) for layout, phase in phases]
            ratios[kind_of(one)] = (last[0] / bound[0], last[1] / bound[1])
        return cls(question, found.gpus, times, ratios)

    def under(self, change: Change, one: Steady) -> Steady:
        """A layout under a change; batches that are not full take no more prompts than they decode."""
        by_decode, by_prefill = self.of_kind[kind_of(one)]
        decode = replace(one.decode, batch=filled_batch(one.decode, change.fill)) if change.fill < 1 else one.decode
        decode_s = by_decode * self.times.of(one.decode, "decode", change)
        prefill_s = by_prefill * self.times.of(one.prefill, "prefill", change if change.fill == 1 else AS_IT_IS)
        lengths = {"gpus": self.gpus, "isl": self.question.isl, "osl": self.question.osl}
        again = served_by(one.split, decode, one.prefill, decode_s, prefill_s, **lengths)
        assert again is not None
        return replace(again, decode=one.decode)  # named by the batch that is configured
