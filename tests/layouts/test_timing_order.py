"""Which layouts a search times: limits that can be met are met, however few it may time; else it says what misses."""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.placement.layouts import ServingLayout, Slo, Space, StepScores, find_serving
from moecast.placement.layouts.front import by_lateness
from moecast.placement.layouts.layout_answers import LayoutAnswers
from moecast.placement.layouts.scoring import prefill_of
from moecast.placement.layouts.steady import Steady, together
from moecast.placement.layouts.timed_layouts import NEAREST_AT_LEAST, TimedLayouts
from moecast.placement.layouts.timing_order import TimingOrder
from moecast.processes import Workers
from tests.layouts.test_serving import MODEL, QUESTIONS

if TYPE_CHECKING:
    from moecast.sim import Plan

ASKED = QUESTIONS[0]
NO_LIMIT = Slo()


@pytest.fixture(scope="module")
def asked() -> TimedLayouts:
    """A search before anything is timed."""
    space = Space(model=MODEL, gpus=4, batches=(2, 16, 64), most_pp=1, most_cp=1)
    return TimedLayouts(Workers(LayoutAnswers(ASKED)), 4, NO_LIMIT, space, lambda _what, _done, _of: None)


@dataclass
class AboveFloors:
    """Steps that take their lower bound times a factor of the layout's kind, and a little of its own."""

    floor_of: dict[tuple[ServingLayout, str], float]
    seed: int

    def knows(self, _layout: ServingLayout, _phase: str) -> bool:
        return True

    def step_s(self, layout: ServingLayout, phase: str, _plan: Plan | None = None) -> float:
        kind = (layout.dispatch, layout.schedule, layout.sequence_parallel, layout.etp > 1, layout.tp)
        factor = 1.2 + 1.8 * self._drawn(kind) if phase == "decode" else 1.0
        return self.floor_of[layout, phase] * factor * (1 + 0.02 * self._drawn(layout))

    def _drawn(self, of: object) -> float:
        return float(np.random.default_rng([self.seed, zlib.crc32(repr(of).encode())]).random())


def fresh(asked: TimedLayouts, seed: int) -> TimedLayouts:
    """The same search with other times."""
    search, floors = copy.copy(asked), asked.floors
    search.found, search.order, search.prompts = {}, TimingOrder(search.layouts), None
    of = {(one, "decode"): float(s) for one, s in zip(search.layouts, floors.decode_Y, strict=True)}
    of |= {(one, "prefill"): float(s) for one, s in zip(floors.prompts, floors.prefill_P, strict=True)}
    search.bound = AboveFloors(of, seed)  # type: ignore[assignment]
    return search


def all_timed(search: TimedLayouts) -> list[Steady]:
    """Brute force."""
    promised = search.promises("agg")
    for y in range(len(search.layouts)):
        search._note(promised, y)
    return list(search.scored().values())


@pytest.mark.parametrize("seed", range(5))
def test_a_limit_that_hardly_any_meets_is_met_though_few_were_asked_for(asked: TimedLayouts, seed: int) -> None:
    every = all_timed(fresh(asked, seed))
    limit = sorted(one.tpot_s for one in every)[len(every) // 100] * 1.03
    search = fresh(asked, seed)
    search.slo = Slo(tpot_s=limit)
    search.time_best(("agg",), 4)
    assert any(one.meets(search.slo) for one in search.scored().values())
    assert len(search.found) <= 2 * 4 + NEAREST_AT_LEAST + 4 < len(every)


def test_one_layout_scored_finds_the_fastest() -> None:
    space = Space(model=MODEL, gpus=2, batches=(1, 8), most_pp=1, spare_slots=(0,), schedules=("sequential",))
    every = find_serving(ASKED, 2, NO_LIMIT, space=space, scored=10_000, placed=1, network="bound", modes=("agg",))
    limit = Slo(tpot_s=min(one.tpot_s for one in every.scored) * 1.0001)
    found = find_serving(ASKED, 2, limit, space=space, scored=1, placed=1, network="bound")
    assert found.winner.meets(limit)


def test_who_misses_says_by_how_much_and_what_would_be_met() -> None:
    space = Space(
        model=MODEL,
        gpus=2,
        batches=(8,),
        most_pp=1,
        dispatch=("per_rank",),
        spare_slots=(0,),
        schedules=("sequential",),
    )
    every = find_serving(ASKED, 2, NO_LIMIT, space=space, scored=10_000, placed=10_000, network="bound", modes=("agg",))
    fastest = by_lateness([*every.scored, *every.placed], Slo(tpot_s=1))[0]
    limit = Slo(tpot_s=fastest.tpot_s * 0.999)
    with pytest.raises(MoecastError) as raised:
        find_serving(ASKED, 2, limit, space=space, scored=1, placed=4, network="bound", modes=("agg",))
    said = str(raised.value)
    assert "\n" not in said
    assert "layouts timed meets it; the nearest misses tpot by 0.1%" in said.replace("0.1 %", "0.1%")
    assert fastest.name() in said
    assert said.endswith("no other could be")
    named = said.split("(--slo tpot=")[1].split("ms")[0]
    assert (
        find_serving(
            ASKED, 2, Slo(tpot_s=float(named) / 1e3), space=space, scored=1, placed=4, network="bound", modes=("agg",)
        ).winner.tpot_s
        <= float(named) / 1e3
    )


@dataclass
class Slower:
    """Decode steps by ``bound``, and a fifth as long again."""

    bound: StepScores

    def knows(self, layout: ServingLayout, phase: str) -> bool:
        return self.bound.knows(layout, phase)

    def step_s(self, layout: ServingLayout, phase: str, plan: Plan | None = None) -> float:
        return self.bound.step_s(layout, phase, plan) * (1.2 if phase == "decode" else 1.0)


def served(layout: ServingLayout, scores: StepScores, factor: float) -> Steady:
    """What instances on two GPUs serve whose decode steps take so many times as long as by ``bound``."""
    prompts = prefill_of(layout, ASKED.isl)
    decode_s, prefill_s = factor * scores.step_s(layout, "decode"), scores.step_s(prompts, "prefill")
    return together(layout, prompts, decode_s, prefill_s, gpus=2, isl=ASKED.isl, osl=ASKED.osl)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_who_is_slower_by_the_last_score_makes_room_for_a_smaller_batch(part: float) -> None:
    space = Space(
        model=MODEL,
        gpus=2,
        batches=(1, 2, 4, 8, 12, 16, 24, 32, 48, 64),
        most_pp=1,
        most_cp=1,
        dispatch=("per_rank",),
        spare_slots=(0,),
        schedules=("sequential",),
    )
    scores = StepScores(question=ASKED)
    every = [served(layout, scores, 1.0) for layout in space.layouts()]
    limit = Slo(tpot_s=float(np.quantile([one.tpot_s for one in every], part)))
    again = [served(layout, scores, 1.2) for layout in space.layouts()]
    best = max(one.tokens_per_s_per_gpu for one in again if one.meets(limit))
    found = find_serving(
        ASKED, 2, limit, space=space, scored=len(every), placed=2, score=Slower(scores), modes=("agg",)
    )
    assert found.winner.meets(limit)
    assert found.winner.tokens_per_s_per_gpu >= best * (1 - 1e-12)
