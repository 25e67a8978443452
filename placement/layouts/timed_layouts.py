"""The layouts of a search for serving: their lower bounds, and those that the rung ``bound`` has timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.layouts.fitting import fitting
from moecast.placement.layouts.front import by_lateness
from moecast.placement.layouts.layout_answers import LayoutAnswers
from moecast.placement.layouts.promises import Floors, Promises
from moecast.placement.layouts.scoring import StepScores, prefill_of
from moecast.placement.layouts.serving_layout import way_of
from moecast.placement.layouts.steady import Slo, Steady, served_by
from moecast.placement.layouts.step_floor import HALVES, by_ranks
from moecast.placement.layouts.timing_order import AT_ONCE, TimingOrder
from moecast.placement.layouts.unmet import cannot_be_met, nothing_fits

if TYPE_CHECKING:
    from moecast.placement.layouts.layout_answers import BatchesOf
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.space import Space
    from moecast.processes import Workers

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]

FOR_THE_FRONT = 0.25
"""The part of the scores that goes to layouts for other limits than the asked one."""
LIMITS_OF_FRONT_S = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
NEAREST_AT_ONCE, NEAREST_AT_LEAST = 4, 48
"""Where nothing is within the limits: how many are tried before the rest are put in order again; how many at least."""
MEMORIES_AT_ONCE, WAYS_AT_ONCE = 32, 128
"""What a process is asked at a time: layouts of which the largest batch that fits is wanted, and lower bounds."""
PROMPTS_TIMED = 12
"""Layouts for prompts alone that are timed, and as many again where none of these is within the limit."""


def _takes_longer(step: tuple[ServingLayout, str]) -> tuple[bool, int]:
    """What orders steps by how long it takes to time them, about."""
    layout, _ = step
    return layout.schedule in HALVES, layout.gpus


class TimedLayouts:
    """A search under way: the layouts, their floors, and what has been timed.

    Raises
    ------
    MoecastError
        Nothing fits.
    """

    def __init__(self, workers: Workers[LayoutAnswers], gpus: int, slo: Slo, space: Space, tell: Progress) -> None:
        self.workers, self.gpus, self.slo, self.tell = workers, gpus, slo, tell
        self.question = question = workers.given.question
        every = list(space.layouts())
        self.legal, self.refused = len(every), dict(space.refused.most_common())
        tell("what fits", 0, 1)
        self.fits = fitting(question, every, "decode", self._most_batches)
        if not self.fits.layouts:
            raise MoecastError(nothing_fits(self.fits, self.legal), field="gpus", value=gpus)
        self.layouts = self.fits.layouts
        self.floors = self._floors()
        self.order = TimingOrder(self.layouts)
        self.bound = StepScores(question=question, network="bound")
        self.found: dict[tuple[str, int], Steady | None] = {}
        self.prompts: tuple[ServingLayout, float] | None = None

    def _most_batches(self, asked: Sequence[BatchesOf]) -> Iterator[tuple[int, int]]:
        return self.workers.map(LayoutAnswers.most_batch, asked, at_once=MEMORIES_AT_ONCE)

    def _floors(self) -> Floors:
        decode = self._floors_of(self.layouts, "decode")
        by_way: dict[tuple[Any, ...], ServingLayout] = {}  # whatever its batch, an instance runs prompts in one way
        for layout in self.layouts:
            if (way := way_of(layout)) not in by_way:
                by_way[way] = prefill_of(layout, self.question.isl)
        wanted = [by_way[way_of(layout)] for layout in self.layouts]
        kinds = fitting(self.question, sorted(set(wanted)), "prefill", self._most_batches).layouts
        place = {layout: i for i, layout in enumerate(kinds)}
        prefill = self._floors_of(kinds, "prefill")
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

    def _floors_of(self, layouts: Sequence[ServingLayout], phase: str) -> Float:
        """Lower bounds of layouts; those of the same ranks are asked of one process, in parts."""
        floor = np.zeros(len(layouts))
        parts = [
            ranks[first : first + WAYS_AT_ONCE]
            for ranks in by_ranks(layouts)
            for first in range(0, len(ranks), WAYS_AT_ONCE)
        ]
        asked = [(phase, [(layout, [layouts[y].batch for y in places]) for layout, places in part]) for part in parts]
        for done, (part, found) in enumerate(zip(parts, self.workers.map(LayoutAnswers.floors, asked), strict=True), 1):
            for (_, places), floors in zip(part, found, strict=True):
                floor[places] = floors
            self.tell(f"bounds, {phase}", done, len(parts))
        return floor

    def promises(self, mode: str) -> Promises:
        """What layouts can serve at the most."""
        return self.floors.together() if mode == "agg" else self.floors.apart(self.slo)

    def scored(self) -> dict[tuple[str, int], Steady]:
        """All that were timed and that there is room for."""
        return {key: one for key, one in self.found.items() if one is not None}

    def time_best(self, modes: Sequence[str], most: int) -> None:
        """Time layouts, the most promising first, until none of the rest could be better.

        Where none of so many is within the limits, those nearest to them are tried as well.

        Raises
        ------
        MoecastError
            No layout can meet the limits, by its floors alone.
        """
        if not any(bool(self.promises(mode).within_Y(self.slo).any()) for mode in modes):
            raise MoecastError(self._cannot_be_met(modes), field="--slo")
        for_limit = max(round(most * (1 - FOR_THE_FRONT) / len(modes)), 1)
        for mode in modes:
            self._time_best(self.promises(mode), self.slo, for_limit)
        for limit in LIMITS_OF_FRONT_S:
            for mode in modes:
                each = round(most * FOR_THE_FRONT / len(LIMITS_OF_FRONT_S) / len(modes))
                self._time_best(self.promises(mode), Slo(ttft_s=self.slo.ttft_s, tpot_s=limit), each)
        if not self._meeting():
            self._time_nearest(modes, max(most, NEAREST_AT_LEAST))
            for mode in modes if self._meeting() else ():  # the first within the limits is seldom the best
                self._time_best(self.promises(mode), self.slo, for_limit)

    def time_within(self, modes: Sequence[str], limit: Slo, most: int) -> None:
        """Time the most promising within narrower limits, too."""
        for mode in modes:
            self._time_best(self.promises(mode), limit, max(most // len(modes), 1))

    def _meeting(self) -> bool:
        return any(one.meets(self.slo) for one in self.scored().values())

    def _time_best(self, promised: Promises, limit: Slo, budget: int) -> None:
        within_Y = promised.within_Y(limit)
        at_once = min(AT_ONCE, max(budget // 4, 2))  # few are spent two by two
        while budget > 0:
            best = max((one.tokens_per_s_per_gpu for one in self.found.values() if one and one.meets(limit)), default=0)
            open_Y = within_Y & (promised.rate_Y > best) & self._untimed_Y(promised.mode)
            over_Y = self.order.over_Y(promised.mode)
            rate_Y = promised.rate_Y / over_Y
            if promised.mode == "disagg":
                rate_Y = self.floors.split_with(*self._best_for_prompts(), self.floors.decode_Y * over_Y)
            chosen = self.order.best_first(promised, limit, rate_Y, open_Y)[: min(at_once, budget)]
            if not chosen:
                return
            self._time_ahead(promised.mode, chosen)
            for y in chosen:
                self._note(promised, y)
            budget -= len(chosen)
            self.tell("timing layouts", len(self.found), len(self.found) + budget)

    def _time_nearest(self, modes: Sequence[str], budget: int) -> None:
        """While nothing is within the limits: time what is expected nearest to them."""
        promised = [self.promises(mode) for mode in modes]
        while budget > 0 and not self._meeting():
            asked = [(each, each.within_Y(self.slo) & self._untimed_Y(each.mode)) for each in promised]
            chosen = [
                (each, y)
                for each, open_Y in asked
                for y in self.order.nearest_first(each, self.slo, open_Y)[:NEAREST_AT_ONCE]
            ]
            if not chosen:
                return
            for each in promised:
                self._time_ahead(each.mode, [y for of, y in chosen if of is each])
            for each, y in chosen:
                self._note(each, y)
            budget -= len(chosen)
            self.tell("looking for one within the limits", len(self.found), len(self.found) + max(budget, 0))

    def _untimed_Y(self, mode: str) -> Bool:
        open_Y = np.ones(len(self.layouts), bool)
        open_Y[[y for of_mode, y in self.found if of_mode == mode]] = False
        return open_Y

    def untimed(self, modes: Sequence[str]) -> int:
        """How many that could be within the limits nobody has timed."""
        return sum(int((self.promises(mode).within_Y(self.slo) & self._untimed_Y(mode)).sum()) for mode in modes)

    def _note(self, promised: Promises, y: int) -> None:
        one = self.found[promised.mode, y] = self._time(promised.mode, y)
        if one is not None:
            self.order.learn(promised, y, one)

    def _time(self, mode: str, y: int) -> Steady | None:
        decode = self.layouts[y]
        decode_s = self.bound.step_s(decode, "decode")
        if mode == "disagg":
            prefill, prefill_s = self._best_for_prompts()
        else:
            prefill = self._prompts_of(y)
            prefill_s = self.bound.step_s(prefill, "prefill")
        return self.served(mode, decode, prefill, decode_s, prefill_s)

    def _prompts_of(self, y: int) -> ServingLayout:
        return self.floors.prompts[self.floors.prompt_Y[y]]

    def _time_ahead(self, mode: str, chosen: Sequence[int]) -> None:
        """Time the steps of layouts that are about to be noted, side by side."""
        prompts = [(self._prompts_of(y), "prefill") for y in chosen] if mode == "agg" else []
        self.time_steps([*((self.layouts[y], "decode") for y in chosen), *prompts])

    def time_steps(self, steps: Sequence[tuple[ServingLayout, str]]) -> None:
        """Time by ``bound``, with experts in order, what is not timed yet."""
        new = [step for step in dict.fromkeys(steps) if not self.bound.knows(*step)]
        new.sort(key=_takes_longer, reverse=True)  # the long ones first, so that processes end together
        asked = [("bound", *step, None) for step in new]
        for step, seconds in zip(new, self.workers.map(LayoutAnswers.step_s, asked), strict=True):
            self.bound.learn(*step, seconds)

    def served(
        self, mode: str, decode: ServingLayout, prefill: ServingLayout, decode_s: float, prefill_s: float
    ) -> Steady | None:
        """Steady state of a pair of layouts; None where there is no room for both."""
        lengths = {"gpus": self.gpus, "isl": self.question.isl, "osl": self.question.osl}
        return served_by(mode == "disagg", decode, prefill, decode_s, prefill_s, **lengths)

    def _best_for_prompts(self) -> tuple[ServingLayout, float]:
        """Whoever runs most prompts for a GPU within the limit, of those that are timed.

        Timed are the most promising, and where all of these are too slow those that are expected to be soonest.
        """
        if self.prompts is None:
            floors = self.floors
            rate_P = np.array([one.sequences / one.gpus for one in floors.prompts]) / floors.prefill_P
            # Instances that leave no GPU to decode have no use.
            room = self.gpus - min(layout.gpus for layout in self.layouts)
            leaves_P = np.array([one.gpus <= room for one in floors.prompts])
            ttft_P = np.where(leaves_P, floors.ttft_P(), np.inf)
            order = np.argsort(-np.where(ttft_P <= self.slo.ttft_s, rate_P, 0.0), kind="stable")
            timed = self._time_prompts(order[:PROMPTS_TIMED].tolist())
            if not any(meets for meets, *_ in timed):
                timed += self._time_prompts(np.argsort(ttft_P, kind="stable")[:PROMPTS_TIMED].tolist())
            self.prompts = max(timed)[2:]
        return self.prompts

    def _time_prompts(self, places: Sequence[int]) -> list[tuple[bool, float, ServingLayout, float]]:
        """Whether layouts for prompts are within the limit, prompts' tokens/s of their GPUs, and their steps."""
        layouts = [self.floors.prompts[p] for p in places]
        self.time_steps([(layout, "prefill") for layout in layouts])
        found = []
        for one in layouts:
            seconds = self.bound.step_s(one, "prefill")
            meets = seconds * -(-self.question.isl // one.batch) <= self.slo.ttft_s
            found.append((meets, one.sequences / seconds / one.gpus, one, seconds))
        return found

    def _cannot_be_met(self, modes: Sequence[str]) -> str:
        """Why, with the nearest of the layouts that promise to be it."""
        for mode in modes:
            promised = self.promises(mode)
            for y in self.order.nearest_first(promised, self.slo, promised.rate_Y > 0)[:NEAREST_AT_ONCE]:
                self._note(promised, y)
        least_s = float(self.floors.ttft_P().min(initial=np.inf)), float(self.floors.decode_Y.min())
        nearest = by_lateness(self.scored().values(), self.slo)
        return cannot_be_met(Slo(ttft_s=least_s[0], tpot_s=least_s[1]), nearest[0] if nearest else None)
