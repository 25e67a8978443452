"""What moves when a parameter is off: less is served where something is slower, and whoever is best there is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moecast.placement.layouts import FoundServing, LayoutAnswers, Slo, find_serving
from moecast.placement.layouts.changes import Change
from moecast.placement.layouts.interval import interval_of_serving
from moecast.placement.layouts.moves import moves_of
from moecast.placement.layouts.sensitivity import Sensitivity, filled_batch, sensitivity
from moecast.placement.layouts.serving_layout import ServingLayout
from moecast.placement.layouts.steady import apart, together
from moecast.processes import Workers
from moecast.sim.accuracy import STEADY, layouts_apart, steady_errors
from moecast.sim.cost.family_errors import FamilyError, family_errors
from moecast.sim.network import find_rung
from moecast.sim.simulate import step_program
from tests.layouts.test_serving import MODEL, QUESTIONS


@pytest.fixture(scope="module")
def found() -> FoundServing:
    return find_serving(QUESTIONS[0], 2, Slo(tpot_s=0.004), scored=8, placed=2, network="bound")


@pytest.fixture(scope="module")
def moved(found: FoundServing) -> Sensitivity:
    return sensitivity(QUESTIONS[0], found)


def test_two_processes_find_what_one_does(found: FoundServing, moved: Sensitivity) -> None:
    with Workers(LayoutAnswers(QUESTIONS[0]), 2) as workers:
        again = find_serving(QUESTIONS[0], 2, Slo(tpot_s=0.004), scored=8, placed=2, network="bound", workers=workers)
        assert again.to_json() == found.to_json()
        assert again.plan.slots_DLGP.tolist() == found.plan.slots_DLGP.tolist()
        assert sensitivity(QUESTIONS[0], again, workers=workers).to_json() == moved.to_json()


def test_slower_is_never_more_and_faster_never_less(moved: Sensitivity) -> None:
    now = moved.winner.tokens_per_s_per_gpu
    for each in moved.moved:
        for change, end in zip(each.move.ends, each.ends, strict=True):
            if change.times > 1:
                assert end.kept.tokens_per_s_per_gpu <= now * (1 + 1e-9)
            elif change.times < 1:
                assert end.kept.tokens_per_s_per_gpu >= now * (1 - 1e-9)
            assert end.meets == end.kept.meets(Slo(tpot_s=0.004))
            assert end.best is None or end.best.tpot_s <= 0.004


def test_the_best_at_an_end_serves_at_least_what_the_winner_does(moved: Sensitivity) -> None:
    for each in moved.moved:
        for end in each.ends:
            if end.meets:
                assert end.best is not None
                assert end.best.tokens_per_s_per_gpu >= end.kept.tokens_per_s_per_gpu


def test_a_change_of_everything_stretches_a_step_in_proportion() -> None:
    asked = QUESTIONS[0]
    layout = ServingLayout(dp=4, dispatch="per_choice", batch=8)
    program = step_program(
        asked.cluster, MODEL, layout.plan(MODEL), asked.trace, asked.step(layout.dp, layout.batch, "decode")
    )
    kinds = ("attention", "router", "dispatch", "expert", "combine", "other")
    longer = program
    for computing in (True, False):
        longer = Change(kinds=kinds, computing=computing, times=2.0).of(longer, asked.cluster)
    before, after = (find_rung("bound").run(one).step_time_s for one in (program, longer))
    assert after == pytest.approx(2 * before, rel=1e-9)
    assert Change(times=1.0, kinds=kinds).of(program, asked.cluster) is program


def test_what_is_no_change_is_refused() -> None:
    for wrong in ({"times": 0.0}, {"times": float("inf")}, {"fill": 0.0}, {"fill": 1.5}):
        with pytest.raises(ValueError, match="more than 0"):
            Change(**wrong)
    assert filled_batch(ServingLayout(batch=10), 0.66) == 7
    assert filled_batch(ServingLayout(batch=1), 0.5) == 1


def test_every_move_says_where_its_size_comes_from() -> None:
    for asked in QUESTIONS:
        for move in moves_of(asked, apart=False):
            assert move.rests_on
            assert len(move.ends) == len(move.told)
    laws = [move.told for move in moves_of(QUESTIONS[1], apart=True) if move.parameter == "routing"]
    assert laws == [("zipf:0.5",)]  # its own routing is even


def test_errors_of_families_are_those_that_ship() -> None:
    known = {error.family: error for error in family_errors(QUESTIONS[0].cluster.hardware, MODEL)}
    assert set(known) == {"experts", "attention", "dense products"}
    assert all(0 < error.median < error.p80 < error.p90 for error in known.values())
    assert family_errors(QUESTIONS[2].cluster.hardware, MODEL) == ()
    assert FamilyError(family="experts", median=0.1, p90=0.1, rows=1, whose="").p80 == pytest.approx(0.1)


def test_times_of_steps_are_those_that_a_steady_state_was_made_of() -> None:
    decode, prefill = ServingLayout(dp=4, batch=8), ServingLayout(dp=2, batch=100)
    for made, one in ((together, replace(prefill, dp=4)), (apart, prefill)):
        steady = made(decode, one, 0.01, 0.2, gpus=8, isl=250, osl=50)
        assert steady is not None
        assert steady.step_seconds(isl=250, osl=50) == pytest.approx((0.01, 0.2))


def test_a_winner_has_the_interval_of_measured_runs_or_says_why_not() -> None:
    layout = ServingLayout(tp=4, etp=4, sequence_parallel=False, batch=8)
    steady = together(layout, replace(layout, batch=64), 0.01, 0.02, gpus=4, isl=256, osl=64)
    known = interval_of_serving(QUESTIONS[0], steady, layout.plan(MODEL))
    rows = steady_errors().of(STEADY)
    assert len(rows) == 234
    assert known.tokens_per_s_per_gpu is not None
    assert known.tpot_s is not None
    low, high = known.tokens_per_s_per_gpu
    assert low < steady.tokens_per_s_per_gpu < high
    # GPU seconds of a token and time of a token have the same factors.
    assert high * known.tpot_s[0] == pytest.approx(steady.tokens_per_s_per_gpu * steady.tpot_s)
    staged = replace(layout, tp=2, pp=2, etp=2, microbatches=2)
    other = replace(steady, decode=staged)
    unknown = interval_of_serving(QUESTIONS[0], other, staged.plan(MODEL))
    assert unknown.tpot_s is None
    assert "a pipeline in serving" in unknown.told


def test_layouts_are_apart_by_pairs_of_serving_runs() -> None:
    assert layouts_apart(1.05, steady=True).shown is False
    assert layouts_apart(1.5, steady=True).shown is True
    assert "serving runs" in layouts_apart(1.5, steady=True).why
