"""Find the layout that serves most within limits on latency, and say how far from the best possible it is.

1. Every layout of the space, legal by construction (`space`); those that do not fit are left out (`fitting`).
2. A lower bound on the step of each, for any placement (`step_floor`): what it serves at the most. Whoever cannot meet
   the limits even so is out; so is whoever could not beat what has been found.
3. The rest in the order of what they promise, timed by the rung ``bound``; the best of these by ``fluid``, with a
   placement of their own.

Nothing is left out by a score: scores order layouts, but only floors exclude them. What a limited number of scores
leaves open is in the certificate, which is made of the floors alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.layouts.fitted import Fitting
from moecast.placement.layouts.fitting import fitting
from moecast.placement.layouts.found_serving import FoundServing
from moecast.placement.layouts.front import best_of_kinds, pareto, ranked, runner_up
from moecast.placement.layouts.promises import Floors, Promises
from moecast.placement.layouts.scoring import StepScores, placed_plan, prefill_of
from moecast.placement.layouts.serving_layout import way_of
from moecast.placement.layouts.space import Space
from moecast.placement.layouts.steady import Slo, Steady, apart, together
from moecast.placement.layouts.step_floor import StepFloors
from moecast.units import format_s

if TYPE_CHECKING:
    from moecast.placement.layouts.scoring import Score
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim.plan import Plan

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Progress = Callable[[str, int, int], None]

AT_ONCE = 16
"""Layouts that are scored before the rest are put in order again."""
NEARLY = 0.03
"""What layouts are expected to miss a limit by is told apart in steps of this: it is not exact."""
OF_A_KIND = 1
"""Of those at most so many of a kind, whose times say much of each other."""
FOR_THE_FRONT = 0.25
"""The part of the scores that goes to layouts for other limits than the asked one."""
LIMITS_OF_FRONT_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
MODES = ("agg", "disagg")


def find_serving(
    question: ServingQuestion,
    gpus: int,
    slo: Slo,
    *,
    space: Space | None = None,
    modes: Sequence[str] = MODES,
    scored: int = 200,
    placed: int = 10,
    network: str = "fluid:1%",
    score: Score | None = None,
    progress: Progress | None = None,
) -> FoundServing:
    """Find the layouts that serve most output tokens per second and GPU within limits on latency.

    Parameters
    ----------
    gpus
        How many there are to use.
    space
        What is searched; None: the usual space of the model on so many GPUs.
    modes
        `agg`: instances that do both; `disagg`: some run prompts, others decode.
    scored, placed
        How many layouts are timed by ``bound``, and how many of these by `network` with a placement of their own.
    score
        Times the last ones instead of `network`: for whoever simulates requests.

    Raises
    ------
    MoecastError
        The cluster has fewer GPUs, nothing fits, or nothing meets the limits.
    """
    if gpus > question.cluster.n_gpus or gpus < 1:
        rule = f"{question.cluster.name} has {question.cluster.n_gpus}"
        raise MoecastError(rule, field="gpus", value=gpus)
    space = Space(model=question.model, gpus=gpus) if space is None else space
    search = _Search(question, gpus, slo, space, progress or _silent)
    search.time_best(modes, scored)
    return search.finish(modes, placed, score or StepScores(question=question, network=network), network)


class _Search:
    """A search under way: the layouts, their floors, and what has been timed."""

    def __init__(self, question: ServingQuestion, gpus: int, slo: Slo, space: Space, tell: Progress) -> None:
        self.question, self.gpus, self.slo, self.tell = question, gpus, slo, tell
        every = list(space.layouts())
        self.legal, self.refused = len(every), dict(space.refused.most_common())
        tell("what fits", 0, 1)
        self.fits = fitting(question, every, "decode")
        if not self.fits.layouts:
            raise MoecastError(_nothing_fits(self.fits, self.legal), field="gpus", value=gpus)
        self.layouts = self.fits.layouts
        self.floors = self._floors()
        self.bound = StepScores(question=question, network="bound")
        self.found: dict[tuple[str, int], Steady | None] = {}
        self.kinds = [_kinds_of(layout) for layout in self.layouts]
        self.every_kind = list(dict.fromkeys(self.kinds))
        number = {both: i for i, both in enumerate(self.every_kind)}
        self.kind_Y = np.array([number[both] for both in self.kinds])
        self.over: dict[tuple[str, object], list[float]] = defaultdict(list)
        """By kind of layout, how far above their floors those were that were timed: what orders the others."""
        self.prompts: tuple[ServingLayout, float] | None = None

    def _floors(self) -> Floors:
        decode = StepFloors(self.question, "decode").of(self.layouts, lambda a, b: self.tell("bounds, decode", a, b))
        by_way: dict[tuple[Any, ...], ServingLayout] = {}  # whatever its batch, an instance runs prompts in one way
        for layout in self.layouts:
            if (way := way_of(layout)) not in by_way:
                by_way[way] = prefill_of(layout, self.question.isl)
        wanted = [by_way[way_of(layout)] for layout in self.layouts]
        kinds = fitting(self.question, sorted(set(wanted)), "prefill").layouts
        place = {layout: i for i, layout in enumerate(kinds)}
        prefill = StepFloors(self.question, "prefill").of(kinds, lambda a, b: self.tell("bounds, prefill", a, b))
        return Floors(
            layouts=self.layouts,
            decode_Y=decode,
            prompts=kinds,
            prefill_P=prefill,
            gpus=self.gpus,
            prompt_Y=np.array([place.get(layout, -1) for layout in wanted]),
            isl=self.question.isl,
            osl=self.question.osl,
        )

    def promises(self, mode: str) -> Promises:
        """What layouts can serve at the most."""
        return self.floors.together() if mode == "agg" else self.floors.apart(self.slo)

    def time_best(self, modes: Sequence[str], most: int) -> None:
        """Time layouts by ``bound``, the most promising first, until none of the rest could be better.

        Raises
        ------
        MoecastError
            No layout can meet the limits, by its floors alone.
        """
        if not any(bool(self.promises(mode).within_Y(self.slo).any()) for mode in modes):
            decode, first = self.floors.decode_Y.min(), self.floors.ttft_P().min(initial=np.inf)
            rule = f"no layout can meet it: the least possible are tpot {format_s(decode)} and ttft {format_s(first)}"
            raise MoecastError(rule, field="--slo")
        limits = [self.slo, *(Slo(ttft_s=self.slo.ttft_s, tpot_s=limit) for limit in LIMITS_OF_FRONT_S)]
        for i, limit in enumerate(limits):
            part = FOR_THE_FRONT / len(LIMITS_OF_FRONT_S) if i else 1 - FOR_THE_FRONT
            for mode in modes:
                self._time_best(self.promises(mode), limit, round(most * part / len(modes)))

    def _time_best(self, promised: Promises, limit: Slo, budget: int) -> None:
        within_Y = promised.within_Y(limit)
        while budget > 0:
            best = max((one.tokens_per_s_per_gpu for one in self.found.values() if one and one.meets(limit)), default=0)
            open_Y = within_Y & (promised.rate_Y > best)
            open_Y[[y for mode, y in self.found if mode == promised.mode]] = False
            chosen = self._most_promising(promised, limit, open_Y)[: min(AT_ONCE, budget)]
            if not chosen:
                return
            for y in chosen:
                one = self.found[promised.mode, y] = self._time(promised.mode, y)
                if one is not None:
                    over = max(one.tpot_s / float(promised.tpot_Y[y]), 1.0)
                    for kind in self.kinds[y]:
                        self.over[promised.mode, kind].append(over)
            budget -= len(chosen)
            self.tell("timing layouts", len(self.found), len(self.found) + budget)

    def _most_promising(self, promised: Promises, limit: Slo, open_Y: Bool) -> list[int]:
        """Order open layouts by what they would serve if they are as far above their floors as those of their kind.

        Those that would then be within the limit come first, then those that would miss it by little.
        """
        over_Y = self._over_Y(promised.mode)
        rate_Y = promised.rate_Y / over_Y
        if promised.mode == "disagg":
            rate_Y = self.floors.split_with(*self._best_for_prompts(), self.floors.decode_Y * over_Y)
        misses_Y = np.ceil(np.maximum(promised.tpot_Y * over_Y / limit.tpot_s - 1, 0) / NEARLY)
        order = np.lexsort((-rate_Y, misses_Y, ~open_Y))
        taken: Counter[object] = Counter()
        chosen = []
        for y in order[: int(open_Y.sum())].tolist():
            taken[self.kinds[y][0]] += 1
            if rate_Y[y] > 0 and taken[self.kinds[y][0]] <= OF_A_KIND:
                chosen.append(y)
            if len(chosen) == AT_ONCE:
                break
        return chosen

    def _over_Y(self, mode: str) -> Float:
        """How far above its promise each layout's time per token is taken to be."""
        over = {kind: min(of) for (of_mode, kind), of in self.over.items() if of_mode == mode}
        of_kind = {both: over.get(both[0], over.get(both[1], 1.0)) for both in self.every_kind}
        return np.array([of_kind[both] for both in self.every_kind])[self.kind_Y]

    def _time(self, mode: str, y: int) -> Steady | None:
        decode = self.layouts[y]
        decode_s = self.bound.step_s(decode, "decode")
        if mode == "disagg":
            prefill, prefill_s = self._best_for_prompts()
        else:
            prefill = self.floors.prompts[self.floors.prompt_Y[y]]
            prefill_s = self.bound.step_s(prefill, "prefill")
        return self.served(mode, decode, prefill, decode_s, prefill_s)

    def served(
        self, mode: str, decode: ServingLayout, prefill: ServingLayout, decode_s: float, prefill_s: float
    ) -> Steady | None:
        """Steady state of a pair of layouts; None where there is no room for both."""
        serve = together if mode == "agg" else apart
        lengths = (self.gpus, self.question.isl, self.question.osl)
        return serve(decode, prefill, decode_s, prefill_s, gpus=lengths[0], isl=lengths[1], osl=lengths[2])

    def _best_for_prompts(self) -> tuple[ServingLayout, float]:
        """Whoever runs most prompts for a GPU within the limit, of the most promising that are timed."""
        if self.prompts is None:
            floors, isl = self.floors, self.question.isl
            rate_P = np.array([one.sequences / one.gpus for one in floors.prompts]) / floors.prefill_P
            within_P = floors.ttft_P() <= self.slo.ttft_s
            timed = []
            for p in np.argsort(-np.where(within_P, rate_P, 0.0), kind="stable")[:PROMPTS_TIMED].tolist():
                one = floors.prompts[p]
                seconds = self.bound.step_s(one, "prefill")
                meets = seconds * -(-isl // one.batch) <= self.slo.ttft_s
                timed.append((meets, one.sequences / seconds / one.gpus, one, seconds))
            self.prompts = max(timed)[2:]
        return self.prompts

    def finish(self, modes: Sequence[str], most: int, score: Score, network: str) -> FoundServing:
        """Time the best once more, with placements of their own, and put all that was found together."""
        scored = {key: one for key, one in self.found.items() if one is not None}
        best = best_of_kinds(ranked(scored.values(), self.slo), most)
        if not best:
            raise MoecastError(self._nothing_meets(scored.values()), field="--slo")
        mode_of = {one: mode for (mode, _), one in scored.items()}
        placed: list[tuple[Steady, Plan]] = []
        for done, one in enumerate(best):
            self.tell("placing the best", done, len(best))
            placed.append(self._placed(mode_of[one], one, score))
        plans = {id(one): plan for one, plan in placed}
        # Where the last rung finds all of them too slow, the one that misses the limits least is told as it is.
        order = ranked((one for one, _ in placed), self.slo) or sorted(
            (one for one, _ in placed), key=lambda o: o.tpot_s
        )
        promised = [self.promises(mode) for mode in modes]
        within = [each.within_Y(self.slo) for each in promised]
        pairs = list(zip(promised, within, strict=True))
        return FoundServing(
            winner=order[0],
            plan=plans[id(order[0])],
            runner_up=runner_up(order[0], [*order[1:], *best]),
            scored=tuple(ranked(scored.values(), Slo())),
            placed=tuple(order),
            front=pareto(scored.values()),
            most_tokens_per_s_per_gpu=max(float(each.rate_Y[meets].max(initial=0.0)) for each, meets in pairs),
            legal=self.legal,
            refused=self.refused,
            fitted=self.fits,
            left_out=sum(int((~meets).sum()) for meets in within),
            within=sum(int(meets.sum()) for meets in within),
            slo=self.slo,
            gpus=self.gpus,
            network=network,
        )

    def _placed(self, mode: str, one: Steady, score: Score) -> tuple[Steady, Plan]:
        """A layout with its own placement or with experts in order, whichever is faster, by the last score."""
        ordered, own = one.decode.plan(self.question.model), placed_plan(self.question, one.decode)
        own_is_faster = self.bound.step_s(one.decode, "decode", own) < self.bound.step_s(one.decode, "decode")
        plan = own if own_is_faster else ordered
        again = self.served(
            mode,
            one.decode,
            one.prefill,
            score.step_s(one.decode, "decode", plan),
            score.step_s(one.prefill, "prefill"),
        )
        assert again is not None
        return again, plan

    def _nothing_meets(self, scored: Collection[Steady]) -> str:
        fast = min(scored, key=lambda one: max(one.tpot_s / self.slo.tpot_s, one.ttft_s / self.slo.ttft_s))
        return (
            f"no layout that was timed meets it; the nearest has tpot {fast.tpot_s * 1e3:.3g} ms and ttft "
            f"{fast.ttft_s:.3g} s: {fast.name()}"
        )


PROMPTS_TIMED = 12
"""Layouts for prompts alone that are timed."""


def _kinds_of(one: ServingLayout) -> tuple[object, object]:
    """What layouts have in common that are about as far above their floors: finely, and roughly."""
    ways = (one.dispatch, one.schedule, one.sequence_parallel, one.cp, one.pp, one.etp > 1)
    return (*ways, one.gpus, one.tp), (*ways,)


def _silent(_what: str, _done: int, _of: int) -> None:
    return


def _nothing_fits(fits: Fitting[ServingLayout], legal: int) -> str:
    near = min(fits.nearest.values(), key=lambda near: near.missing_bytes, default=None)
    told = (
        "" if near is None else f"; the nearest misses {near.missing_bytes / 2**30:.1f} GiB a GPU: {near.layout.name()}"
    )
    return f"none of {legal} layouts fits into the GPUs' memory{told}"
