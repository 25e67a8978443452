"""The best of a search's timed layouts once more, by its last score: with placements and mappings of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moecast.placement.layouts.front import best_of_kinds, by_lateness, ranked
from moecast.placement.layouts.layout_answers import LayoutAnswers
from moecast.placement.layouts.mappings import CONSECUTIVE, Tried, other_mappings
from moecast.placement.layouts.scoring import placed_step
from moecast.placement.layouts.steady import Slo, Steady

if TYPE_CHECKING:
    from moecast.placement.layouts.scoring import Score
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.timed_layouts import TimedLayouts
    from moecast.sim.plan import Plan

MAPPED = 3
"""Layouts, each of another kind, whose ranks are put on other GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A layout with its plan, as the last score times it.

    Parameters
    ----------
    tried
        What other mappings of ranks to GPUs make of it, against consecutive ranks.
    """

    steady: Steady
    plan: Plan
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A mapping, and what a layout serves with it by ``bound``."""

    name: str
    steady: Steady


@dataclass(slots=True)
class PlacedLayouts:
    """Layouts timed by the last score, the plan of each with experts in order or placed by a solver.

    Parameters
    ----------
    network
        The rung that times the last ones.
    score
        Who does so instead; None: nobody.
    """

    timed: TimedLayouts
    network: str
    score: Score | None = None
    best: list[Steady] = field(default_factory=list)
    """As ``bound`` timed them, with experts in order."""
    placed: list[Placed] = field(default_factory=list)

    def place_best(self, modes: Sequence[str], scored: int, most: int) -> None:
        """Place those within the limits, the best of each kind first, then those that the last score leaves within.

        Where still none is, the nearest to the limits, until one is within.

        Parameters
        ----------
        modes, scored
            As of `find_serving`.
        most
            How many each time.
        """
        self._place(best_of_kinds(ranked(self.timed.scored().values(), self.timed.slo), most, filled=True))
        self._place_again(modes, scored // 4, most)
        for one in () if self.within() else self._others(list(self.timed.scored().values()), most):
            self._place([one])
            if self.within():
                return

    def _place_again(self, modes: Sequence[str], scored: int, most: int) -> None:
        """Where the best by ``bound`` are too slow by the last score: as many of those that should not be, if better.

        Nobody has timed these yet, since they promised less than what has been turned down.
        """
        best = max((one.tokens_per_s_per_gpu for one in self.within()), default=0.0)
        if (limit := self._limit_of_bound(best)) is None:
            return
        self.timed.time_within(modes, limit, scored)
        others = [one for one in ranked(self.timed.scored().values(), limit) if one.tokens_per_s_per_gpu > best]
        self._place(best_of_kinds([one for one in others if one not in self.best], most))

    def _limit_of_bound(self, best: float) -> Slo | None:
        """The limits, less what the last score added to those that promised more and are too slow; None: nobody is."""
        slo = self.timed.slo
        slow = [
            (one, again) for one, again in self._pairs() if one.tokens_per_s_per_gpu > best and not again.meets(slo)
        ]
        if not slow:
            return None
        return Slo(
            ttft_s=slo.ttft_s / max(1.0, *(again.ttft_s / one.ttft_s for one, again in slow)),
            tpot_s=slo.tpot_s / max(1.0, *(again.tpot_s / one.tpot_s for one, again in slow)),
        )

    def within(self) -> list[Steady]:
        """Those within the limits by the last score, the best first."""
        return ranked((one.steady for one in self.placed), self.timed.slo)

    def map_best(self) -> None:
        """Put the ranks of the best of some kinds on other GPUs, where that is better."""
        order = self.within() or by_lateness((one.steady for one in self.placed), self.timed.slo)
        chosen = {id(one) for one in best_of_kinds(order, MAPPED, of_each=1)}
        for place, one in enumerate(self.placed):
            if id(one.steady) in chosen:
                self.placed[place] = self._mapped(one)

    def _others(self, scored: Sequence[Steady], most: int) -> list[Steady]:
        """Whom to try where the last score finds all too slow: by what it and placements made of those before."""
        late = [again.late(self.timed.slo) / one.late(self.timed.slo) for one, again in self._pairs()]
        over, left = min(late, default=1.0), [one for one in scored if one not in self.best]
        hopeful = [one for one in left if one.late(self.timed.slo) * over <= 1]
        hopeful.sort(key=lambda one: -one.tokens_per_s_per_gpu)
        rest = [one for one in by_lateness(left, self.timed.slo) if one not in hopeful]
        return best_of_kinds([*hopeful, *rest], most)

    def _pairs(self) -> list[tuple[Steady, Steady]]:
        return [(one, again.steady) for one, again in zip(self.best, self.placed, strict=True)]

    def _place(self, best: Sequence[Steady]) -> None:
        question, workers = self.timed.question, self.timed.workers
        if self.score is None:
            decodes = workers.map(LayoutAnswers.placed_step, [(self.network, one.decode) for one in best])
        else:
            asked = {"bound": self.timed.bound, "last": self.score}
            decodes = (placed_step(question, one.decode, **asked) for one in best)
        prefills_s = self._times_s([(one.prefill, "prefill", None) for one in best])
        for done, (one, (plan, decode_s), prefill_s) in enumerate(zip(best, decodes, prefills_s, strict=True)):
            self.timed.tell("placing the best", done, len(best))
            self.best.append(one)
            steady = self._served(one, one.decode, one.prefill, decode_s, prefill_s)
            self.placed.append(Placed(steady=steady, plan=plan))

    def _times_s(self, steps: Sequence[tuple[ServingLayout, str, Plan | None]], network: str = "") -> list[float]:
        """Seconds of steps by the last score, or by a rung."""
        if self.score is not None and not network:
            return [self.score.step_s(*step) for step in steps]
        each = {
            (layout, phase, id(plan)): (network or self.network, layout, phase, plan) for layout, phase, plan in steps
        }
        seconds = dict(zip(each, self.timed.workers.map(LayoutAnswers.step_s, list(each.values())), strict=True))
        return [seconds[layout, phase, id(plan)] for layout, phase, plan in steps]

    def _served(
        self, of: Steady, decode: ServingLayout, prefill: ServingLayout, decode_s: float, prefill_s: float
    ) -> Steady:
        again = self.timed.served("disagg" if of.split else "agg", decode, prefill, decode_s, prefill_s)
        assert again is not None
        return again

    def _mapped(self, one: Placed) -> Placed:
        """Try a layout's other mappings by ``bound``; the best is kept if by the last score it is better, too."""
        ways, slo = self._ways(one), self.timed.slo
        if len(ways) == 1:
            return one
        as_it_was = ways[0].steady
        best = min(ways, key=lambda way: _order(way.steady, slo))
        tried = [Tried(name=way.name, change=_change(way.steady, as_it_was), by="bound") for way in ways[1:]]
        if best is ways[0]:
            return replace(one, tried=tuple(tried))
        decode, prefill = best.steady.decode, best.steady.prefill
        plan = one.plan.with_(gpu_of_rank=decode.gpu_of_rank)
        decode_s, prefill_s = self._times_s([(decode, "decode", plan), (prefill, "prefill", None)])
        again = self._served(one.steady, decode, prefill, decode_s, prefill_s)
        tried[ways.index(best) - 1] = Tried(name=best.name, change=_change(again, one.steady), by=self.network)
        if _order(again, slo) < _order(one.steady, slo):
            return Placed(steady=again, plan=plan, tried=tuple(tried))
        return replace(one, tried=tuple(tried))

    def _ways(self, one: Placed) -> list[_Way]:
        """What each mapping serves by ``bound``, consecutive ranks first; instances that do both have one for both."""
        steady = one.steady
        decodes, prefills = self._layouts(steady.decode), self._layouts(steady.prefill)
        if len(decodes) == len(prefills) == 1:
            return [_Way("consecutive", steady)]
        steps: list[tuple[ServingLayout, str, Plan | None]] = [
            (layout, "decode", one.plan.with_(gpu_of_rank=layout.gpu_of_rank)) for layout in decodes
        ]
        seconds = self._times_s([*steps, *((layout, "prefill", None) for layout in prefills)], "bound")
        decode_s = dict(zip(decodes, seconds[: len(decodes)], strict=True))
        prefill_s = dict(zip(prefills, seconds[len(decodes) :], strict=True))
        pairs = _pairs(decode_s, prefill_s) if steady.split else zip(decodes, prefills, strict=True)
        return [
            _Way(_name(*pair, steady.split), self._served(steady, *pair, decode_s[pair[0]], prefill_s[pair[1]]))
            for pair in pairs
        ]

    def _layouts(self, layout: ServingLayout) -> list[ServingLayout]:
        """A layout with each mapping that differs."""
        question = self.timed.question
        others = other_mappings(layout.plan(question.model).layout, question.cluster)
        return [replace(layout, mapping=mapping) for mapping in (CONSECUTIVE, *others)]


def _order(one: Steady, slo: Slo) -> tuple[bool, float]:
    """Whoever is within the limits first, then by rate."""
    return not one.meets(slo), -one.tokens_per_s_per_gpu


def _change(one: Steady, before: Steady) -> float:
    return one.tokens_per_s_per_gpu / before.tokens_per_s_per_gpu - 1


def _pairs(
    decode_s: dict[ServingLayout, float], prefill_s: dict[ServingLayout, float]
) -> list[tuple[ServingLayout, ServingLayout]]:
    """Each mapping of either kind of instances beside consecutive ranks of the other, and the fastest of both."""
    decodes, prefills = list(decode_s), list(prefill_s)
    both = min(decodes, key=decode_s.__getitem__), min(prefills, key=prefill_s.__getitem__)
    pairs = [(each, prefills[0]) for each in decodes] + [(decodes[0], each) for each in prefills[1:]]
    return list(dict.fromkeys([*pairs, both]))


def _name(decode: ServingLayout, prefill: ServingLayout, split: bool) -> str:
    if not split:
        return decode.mapping.name
    return f"decode {decode.mapping.name}, prefill {prefill.mapping.name}"
