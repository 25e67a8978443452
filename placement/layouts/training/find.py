"""Find the layout whose training step is shortest, and say how far from the best possible it is.

1. Every layout of the space, legal by construction (`space`); those that do not fit are left out (`fitting`).
2. A lower bound on the step of each, for any placement of the experts (`step_floor`). Whoever could not beat what has
   been found is left out.
3. The most promising are scored by the schedule's order over layers that ``bound`` has timed, one by one (`scoring`).
4. The best of these are timed whole, by the code of `moecast train`; the best again with layers cut anew (`cuts`), and
   with ranks on other GPUs than consecutive ones (`mappings`).

Nothing is left out by a score: scores order layouts, but only floors exclude them. What a limited number of scores
leaves open is in the certificate, which is made of the floors alone, and of consecutive ranks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from moecast.errors import MoecastError
from moecast.placement.layouts.fitted import Fitting
from moecast.placement.layouts.mappings import Tried, other_mappings
from moecast.placement.layouts.training.cuts import own_cut
from moecast.placement.layouts.training.fitting import fitting
from moecast.placement.layouts.training.found import FoundTraining, TimedLayout, by_speed, kind_of, runner_up
from moecast.placement.layouts.training.layer_times import LayerTimes
from moecast.placement.layouts.training.layout_answers import TrainingAnswers
from moecast.placement.layouts.training.scoring import TrainingScores
from moecast.placement.layouts.training.space import TrainingSpace
from moecast.processes import Workers

if TYPE_CHECKING:
    from moecast.placement.layouts.mappings import Mapping
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.question import TrainingQuestion

Progress = Callable[[str, int, int], None]
Answer = TypeVar("Answer")

ENGINES_OWN = ("1f1b", "interleaved_1f1b", "1f1b_overlapped")
"""Schedules that Megatron-LM has."""
LAYOUTS_AT_ONCE = 2048
"""Layouts of which a process is asked something quick at a time."""
AT_ONCE = 16
"""Layouts that are scored before the rest are put in order again."""
TOLD = 100
"""Scored layouts that are told of."""
WHOLE_MAPPINGS = 64
"""GPUs of a job of which every mapping's whole step is timed."""
SHARPENED = 2000
"""Lower bounds that are sharpened for the certificate at the most."""


def find_training(
    question: TrainingQuestion,
    gpus: int,
    *,
    space: TrainingSpace | None = None,
    scored: int = 200,
    timed: int = 2,
    recut: int = 1,
    also: Collection[str] = ENGINES_OWN,
    network: str = "bound",
    progress: Progress | None = None,
    workers: Workers[TrainingAnswers] | None = None,
) -> FoundTraining:
    """Find the layouts of a training job with the shortest steps.

    Parameters
    ----------
    gpus
        How many the job has: every layout uses all of them.
    space
        What is searched; None: the usual space of so many GPUs.
    scored, timed
        How many layouts are scored by their layers' times; and how many of these are timed whole by `network`.
    recut
        How many of the best are tried again with a cut of layers into stages of their own.
    also
        Schedules of which the best scored layout is timed, too, whatever others score: those of an engine.
    workers
        Processes that answer about the question's layouts; None: this one. What is found does not depend on them, but
        each that times a whole step holds that step.

    Raises
    ------
    MoecastError
        The cluster has fewer GPUs, no layout is legal, or none fits.
    """
    if not 1 <= gpus <= question.cluster.n_gpus:
        raise MoecastError(f"{question.cluster.name} has {question.cluster.n_gpus}", field="gpus", value=gpus)
    space = TrainingSpace(gpus=gpus) if space is None else space
    workers = Workers(TrainingAnswers(question)) if workers is None else workers
    search = _Search(workers, gpus, space, network, progress or _silent)
    search.score(scored)
    search.time(timed, also)
    search.recut(recut)
    search.map_best()
    return search.found()


class _Search:
    """A search under way: the layouts, their floors, and what has been scored and timed."""

    def __init__(
        self, workers: Workers[TrainingAnswers], gpus: int, space: TrainingSpace, network: str, tell: Progress
    ) -> None:
        self.workers, self.gpus, self.network, self.tell = workers, gpus, network, tell
        self.question = question = workers.given.question
        tell("legal layouts", 0, 1)
        every = list(space.layouts(question))
        self.legal, self.refused = len(every), dict(space.refused.most_common())
        if not every:
            why = "; ".join(list(self.refused)[:3]) or "the space is empty"
            raise MoecastError(f"no layout is legal: {why}", field="gpus", value=gpus)
        self.fits = fitting(every, self._ask(TrainingAnswers.missing_bytes, every, "what fits"))
        if not self.fits.layouts:
            raise MoecastError(_nothing_fits(self.fits, self.legal), field="gpus", value=gpus)
        self.floors, self.scores = workers.given.floors, workers.given.scores
        layouts = self.fits.layouts
        bounds = list(self._ask(TrainingAnswers.quick, layouts, "lower bounds"))
        self.quick = {layout: quick for layout, (quick, _) in zip(layouts, bounds, strict=True)}
        self.guess = {layout: guess for layout, (_, guess) in zip(layouts, bounds, strict=True)}
        self.scored: dict[TrainingLayout, float] = {}
        self.timed: dict[TrainingLayout, TimedLayout] = {}
        self.tried = 0
        self.cuts: dict[TrainingLayout, TrainingLayout | None] = {}
        self.mapped: tuple[Tried, ...] = ()
        self.over: dict[object, float] = {}
        """By kind of layout, the least ratio of a score to its guess: what orders the others."""

    def _ask(
        self, answer: Callable[[TrainingAnswers, TrainingLayout], Answer], layouts: Sequence[TrainingLayout], what: str
    ) -> Iterator[Answer]:
        """Ask something quick of many layouts."""
        for done, found in enumerate(self.workers.map(answer, layouts, at_once=LAYOUTS_AT_ONCE)):
            if done % LAYOUTS_AT_ONCE == 0:
                self.tell(what, done, len(layouts))
            yield found

    @property
    def best_s(self) -> float:
        """The shortest step so far."""
        return min((one.step_s for one in self.timed.values()), default=float("inf"))

    def score(self, most: int) -> None:
        """Score layouts, the most promising first."""
        while len(self.scored) < most:
            chosen = self._most_promising(min(AT_ONCE, most - len(self.scored)))
            if not chosen:
                return
            for layout, score in zip(chosen, self.workers.map(TrainingAnswers.score, chosen), strict=True):
                self.scored[layout] = score
                for kind in _kinds_of(layout):
                    self.over[kind] = min(self.over.get(kind, float("inf")), score / self.guess[layout])
            self.tell("scoring layouts", len(self.scored), most)

    def _most_promising(self, most: int) -> list[TrainingLayout]:
        """Order layouts by their guess if scores are as far above it as of their kind; one of each kind."""
        expected: list[tuple[float, int, TrainingLayout]] = []
        for layout, guess in self.guess.items():
            if layout not in self.scored:
                fine, rough = _kinds_of(layout)
                ratio = self.over.get(fine, self.over.get(rough, 1.0))
                expected.append((guess * ratio, layout.zero != 1, layout))
        chosen: dict[object, TrainingLayout] = {}
        for _, _, layout in heapq.nsmallest(64 * most, expected):
            chosen.setdefault(_kinds_of(layout)[0], layout)
            if len(chosen) == most:
                break
        return list(chosen.values())

    def time(self, most: int, also: Collection[str]) -> None:
        """Time the best scored whole: first the best of each kind, then whoever is next, if its floor lets it win.

        At last the best of some schedules, if none of them was.
        """
        first: dict[object, TrainingLayout] = {}
        order = sorted(self.scored, key=lambda layout: (self.scored[layout], layout))
        for layout in order:
            first.setdefault(kind_of(layout), layout)
        leaders = list(first.values())
        self._time_best([*leaders, *(layout for layout in order if layout not in set(leaders))], most)
        own = [layout for layout in leaders if layout.schedule in also]
        if own and not any(layout.schedule in also for layout in self.timed):
            prediction = self.workers.begin(TrainingAnswers.whole, (own[0], self.network))
            if self.workers.jobs > 1:
                self._prepare()
            self.timed[own[0]] = TimedLayout(layout=own[0], prediction=prediction())

    def _prepare(self) -> None:
        """Find what is asked for later if the best stays the best, while another process times a step."""
        best = min(self.timed.values(), key=lambda one: (one.step_s, one.layout), default=None)
        if best is not None:
            self._own_cut(best.layout)
            self._least_s()

    def _time_best(self, order: Sequence[TrainingLayout], most: int) -> None:
        """Time the first whose floors let them win; side by side, and whoever was beaten meanwhile is not kept."""
        left = iter(order)
        while len(self.timed) < most:
            self.tell("timing whole steps", len(self.timed), most)
            at_once = min(self.workers.jobs, most - len(self.timed))
            chosen = list(islice(filter(self._can_win, left), at_once))
            if not chosen:
                return
            self._time(chosen)

    def _can_win(self, layout: TrainingLayout) -> bool:
        return self.quick[layout] < self.best_s and self.floors.sharp(layout) < self.best_s

    def _time(self, layouts: Sequence[TrainingLayout], *, always: bool = False) -> None:
        """Time whole steps; `always`: also of those that are beaten by one before."""
        asked = [(layout, self.network) for layout in layouts]
        for layout, told in zip(layouts, self.workers.map(TrainingAnswers.whole, asked), strict=True):
            if always or layout is layouts[0] or self._can_win(layout):
                self.timed[layout] = TimedLayout(layout=layout, prediction=told)

    def recut(self, most: int) -> None:
        """Try the best with a cut of their own, where its score is better; its floor then counts with the others."""
        for layout in sorted(self.timed, key=lambda one: self.timed[one].step_s)[:most]:
            self.tell("cutting layers", self.tried, most)
            again = self._own_cut(layout)
            self.tried += 1
            if again is None:
                continue
            self.quick[again] = self.floors.quick(again)
            self.scored[again] = self._scores_of_every.quick(again)
            if self.scored[again] < self._scores_of_every.quick(layout) and self.floors.sharp(again) < self.best_s:
                self._time([again])

    @cached_property
    def _scores_of_every(self) -> TrainingScores:
        """Scores by the times of each layer by its own routing."""
        every = LayerTimes(self.question, self.floors.layers, every_layer=True)
        return TrainingScores(self.question, self.floors, every)

    def _own_cut(self, layout: TrainingLayout) -> TrainingLayout | None:
        if layout not in self.cuts:
            self.cuts[layout] = own_cut(self.question, layout, self._scores_of_every.times, self.floors.memory)
        return self.cuts[layout]

    def map_best(self) -> None:
        """Put the best one's ranks on other GPUs; whole steps are timed of small jobs, else of the best scored.

        Floors are of consecutive ranks and say nothing here.
        """
        before = min(self.timed.values(), key=lambda one: (one.step_s, one.layout))
        others = [replace(before.layout, mapping=each) for each in self._other_mappings(before.layout)]
        if not others:
            return
        self.tell("mapping ranks", 0, len(others))
        score_s = {layout: self.scores.mapped(layout) for layout in (before.layout, *others)}
        best = min(score_s, key=score_s.__getitem__)
        whole = [layout for layout in others if layout is best or self.gpus <= WHOLE_MAPPINGS]
        self._time(whole, always=True)  # floors say nothing of mappings
        told = {layout: (score_s[before.layout] / score_s[layout], "layers") for layout in others}
        told |= {layout: (before.step_s / self.timed[layout].step_s, self.network) for layout in whole}
        self.mapped = tuple(Tried(name=of.mapping.name, change=over - 1, by=by) for of, (over, by) in told.items())

    def _other_mappings(self, layout: TrainingLayout) -> list[Mapping]:
        return other_mappings(layout.plan(self.question.model).layout, self.question.cluster)

    def found(self) -> FoundTraining:
        """Put all that was found together."""
        order = by_speed(self.timed.values())
        best_s = order[0].step_s
        return FoundTraining(
            winner=order[0],
            runner_up=runner_up(order),
            timed=order,
            least_step_s=min(self._least_s(), best_s),
            legal=self.legal,
            refused=self.refused,
            fitted=self.fits,
            left_out=sum(floor > best_s for floor in self.quick.values()),
            scored=len(self.scored),
            best_scored=tuple(self._best_scored()),
            recut=self.tried,
            mappings=self.mapped,
            gpus=self.gpus,
            network=self.network,
        )

    def _best_scored(self) -> Iterator[tuple[TrainingLayout, float, int]]:
        for layout in sorted(self.scored, key=lambda one: (self.scored[one], one))[:TOLD]:
            yield layout, self.scored[layout], self.floors.memory.total(layout)

    def _least_s(self) -> float:
        """The least floor of all layouts; those that stand lowest are sharpened until one that is sharp is lowest."""
        heap = [(floor, i, layout) for i, (layout, floor) in enumerate(self.quick.items())]
        heapq.heapify(heap)
        sharp: set[TrainingLayout] = set()
        for _ in range(SHARPENED):
            floor, place, layout = heap[0]
            if layout in sharp or floor >= self.best_s:
                return floor
            sharp.add(layout)
            heapq.heapreplace(heap, (self.floors.sharp(layout), place, layout))
        return heap[0][0]


def _kinds_of(one: TrainingLayout) -> tuple[object, object]:
    """What layouts have in common that are about as far above their floors: finely, and roughly."""
    ways = (one.dispatch, one.schedule, one.cp > 1, one.etp > 1, one.zero > 1)
    return (*ways, one.tp, one.cp, one.ep, one.etp, one.pp, one.virtual, one.microbatch, one.recompute), ways


def _silent(_what: str, _done: int, _of: int) -> None:
    return


def _nothing_fits(fits: Fitting[TrainingLayout], legal: int) -> str:
    near = min(fits.nearest.values(), key=lambda near: near.missing_bytes)
    told = f"the nearest misses {near.missing_bytes / 2**30:.1f} GiB: {near.layout.name()}"
    return f"none of {legal} layouts fits into the GPUs' memory; {told}"
