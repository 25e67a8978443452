"""The search for a training layout: floors below the rung `bound`; pruning that brute force agrees with."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.layouts.training import (
    TrainingAnswers,
    TrainingFloors,
    TrainingLayout,
    TrainingMemory,
    TrainingQuestion,
    TrainingScores,
    TrainingSpace,
    find_training,
    fitting,
)
from moecast.placement.layouts.training.orders import in_flight
from moecast.placement.layouts.training.sensitivity import training_sensitivity
from moecast.processes import Workers
from moecast.sim.memory import usable_bytes
from moecast.sim.schedules.pipeline import Pipeline, find_pipeline_schedule, make_order
from moecast.sim.training.simulate import draw_microbatches, time_training, training_memory_of, with_chunks_of
from tests.layouts.training_cases import HIDDEN, LAYOUTS, MODEL, QUESTIONS, SMALL, SPACE, question, step_s

FLOORS = {id(asked): TrainingFloors(asked) for asked in (*QUESTIONS, HIDDEN)}
QUICK = [one for one in LAYOUTS if one.microbatches(32) * one.pp * one.virtual <= 64]


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(asked=st.sampled_from((*QUESTIONS, HIDDEN)), layout=st.sampled_from(QUICK))
def test_both_floors_are_below_bound(asked: TrainingQuestion, layout: TrainingLayout) -> None:
    floors = FLOORS[id(asked)]
    assert 0 < floors.quick(layout) <= floors.sharp(layout) <= step_s(asked, layout)


@settings(deadline=None, max_examples=15)
@given(layout=st.sampled_from([one for one in QUICK if one.ep > 1]), seed=st.integers(0, 99))
def test_the_floor_is_below_bound_for_any_placement(layout: TrainingLayout, seed: int) -> None:
    asked = QUESTIONS[2]
    order = list(range(MODEL.experts))
    random.Random(seed).shuffle(order)
    plan = layout.plan(MODEL)
    plan = plan.with_(slots_DLGP=np.array(order, np.int32)[plan.slots_DLGP])
    recipe = layout.recipe(asked.recipe)
    steps = draw_microbatches(asked.trace, recipe, ranks=layout.dp, drawn=1, from_phase=None, seed=0)
    timed = time_training(asked.cluster, MODEL, plan, asked.trace, recipe, schedule=layout.schedule, steps=steps)
    assert FLOORS[id(asked)].sharp(layout) <= timed.times.step_time_s


def test_every_layout_is_legal_and_stands_once_and_every_refusal_has_a_reason() -> None:
    assert len(LAYOUTS) == len(set(LAYOUTS))
    for layout in LAYOUTS[::997]:
        plan = with_chunks_of(layout.plan(MODEL), layout.schedule)
        plan.check_legal()
        assert (plan.ranks, plan.dp, plan.layout.folded) == (16, layout.dp, layout.chunks().folded)
        own = [plan.layout.layers_of_stage(stage, MODEL.n_layers) for stage in range(plan.layout.stages)]
        assert all(set(layers) & set(MODEL.moe_layer_ids) for layers in own)
    assert SPACE.refused["a pipeline stage without an MoE layer"] > 0
    assert all(reason for reason in SPACE.refused)


def test_memory_is_what_train_says_and_what_misses_it_is_told() -> None:
    asked = QUESTIONS[0]
    memory = TrainingMemory(asked)
    for layout in random.Random(3).sample(LAYOUTS, 30):
        order = make_order(find_pipeline_schedule(layout.schedule), layout.pipeline(asked.recipe.batch))
        plan = with_chunks_of(layout.plan(MODEL), layout.schedule)
        told = training_memory_of(MODEL, plan, layout.recipe(asked.recipe), order, asked.cluster.hardware)
        assert memory.total(layout) == told["total"]
    tight = replace(asked, memory_fraction=0.004)
    some = LAYOUTS[::211]
    kept = fitting(some, map(TrainingAnswers(tight).missing_bytes, some))
    usable = usable_bytes(asked.cluster.hardware, 0.004)
    assert 0 < len(kept.layouts) < len(some)
    assert kept.layouts == tuple(one for one in some if memory.total(one) <= usable)
    nothing = fitting(some, map(TrainingAnswers(replace(asked, memory_fraction=1e-6)).missing_bytes, some))
    assert not nothing.layouts
    for near in nothing.nearest.values():
        missing = memory.total(near.layout) - usable_bytes(asked.cluster.hardware, 1e-6)
        assert near.missing_bytes == missing > 0


@pytest.mark.parametrize("name", ["1f1b", "interleaved_1f1b", "1f1b_overlapped", "zb_h1", "zb_v", "dualpipe", "gpipe"])
def test_more_microbatches_keep_no_more_in_flight(name: str) -> None:
    virtual = 2 if name in ("zb_v", "interleaved_1f1b") else 1
    for microbatches in (40, 64):
        pipeline = Pipeline(pp=4, virtual=virtual, microbatches=microbatches)
        order = make_order(find_pipeline_schedule(name), pipeline)
        assert in_flight(name, pipeline) == tuple(order.peak_in_flight(rank) for rank in range(4))


@pytest.mark.slow
def test_brute_force_finds_the_same_winner_and_the_certificate_is_below_all() -> None:
    asked = question(nodes=1, batch=16)
    found = find_training(asked, 4, space=SMALL, scored=10_000, timed=10_000, recut=0)
    every = {layout: step_s(asked, layout) for layout in SMALL.layouts(asked)}
    assert len(every) > 30
    assert found.winner.step_s == pytest.approx(min(every.values()), rel=1e-12)
    assert every[found.winner.layout] == found.winner.step_s
    assert found.least_step_s <= min(every.values())
    assert len(found.timed) < len(every)  # floors left some out
    # What was not timed is out by its floor alone.
    floors = TrainingFloors(asked)
    timed = {one.layout for one in found.timed}
    assert all(floors.sharp(one) >= found.winner.step_s * (1 - 1e-12) for one in every if one not in timed)
    assert found.runner_up is not None
    assert found.runner_up.faster_step == pytest.approx(1 - found.winner.step_s / found.runner_up.timed.step_s)
    for one in found.front:
        assert not any(two.step_s <= one.step_s and two.held_bytes < one.held_bytes for two in found.timed)


@pytest.mark.slow
def test_two_processes_find_what_one_does() -> None:
    asked = question(nodes=1, batch=16)
    found = find_training(asked, 4, space=SMALL, scored=24, timed=3)
    with Workers(TrainingAnswers(asked), 2) as workers:
        again = find_training(asked, 4, space=SMALL, scored=24, timed=3, workers=workers)
        assert again.to_json() == found.to_json()
        assert training_sensitivity(asked, again, workers=workers) == training_sensitivity(asked, found)


def test_a_cut_of_its_own_is_tried_and_never_worse() -> None:
    asked = question(nodes=1, batch=16)
    space = replace(SMALL, schedules=("1f1b", "zb_v"), most_tp=1)
    slow_head = replace(asked, model=replace(MODEL, vocab=60_000))
    cut = find_training(slow_head, 4, space=replace(space, most_pp=4), scored=40, timed=30, recut=30)
    even = find_training(slow_head, 4, space=replace(space, most_pp=4), scored=40, timed=30, recut=0)
    assert cut.recut > 0
    assert cut.winner.step_s <= even.winner.step_s
    assert any(one.layout.cut for one in cut.timed)
    assert all(cut.least_step_s <= one.step_s for one in cut.timed)
    own = next(one for one in cut.timed if one.layout.cut)
    counts = [own.layout.cut.count(stage) for stage in range(own.layout.pp * own.layout.virtual)]
    assert counts[-1] < max(counts)  # the stage with the LM head has fewer layers


def test_parameters_are_gathered_beside_passes_with_zero_only() -> None:
    asked = replace(HIDDEN, recipe=replace(HIDDEN.recipe, overlap_param_gather=True))
    space = replace(SMALL, zeros=(0, 1))
    assert {layout.zero for layout in space.layouts(asked)} == {1}
    assert space.refused["without ZeRO no parameters are gathered beside passes"] > 0


@pytest.mark.slow
def test_scores_are_near_whole_steps() -> None:
    asked = QUESTIONS[1]
    scores = TrainingScores(asked, FLOORS[id(asked)])
    assert scores.step_s(QUICK[0]) == scores.whole(QUICK[0]).step_time_s
    ratios = [scores.quick(one) / step_s(asked, one) for one in random.Random(5).sample(QUICK, 25)]
    assert 0.7 < float(np.median(ratios)) < 1.2


def test_what_has_no_answer_is_one_line() -> None:
    asked = QUESTIONS[0]
    with pytest.raises(MoecastError, match="gpus"):
        find_training(asked, 17)
    with pytest.raises(MoecastError, match=r"none of .* fits .* GiB"):
        find_training(replace(asked, memory_fraction=1e-6), 16, space=replace(SPACE, zeros=(1,), recomputes=("none",)))
    odd = replace(asked, recipe=replace(asked.recipe, batch=7))
    with pytest.raises(MoecastError, match=r"no layout is legal: .*microbatches"):
        find_training(odd, 16, space=TrainingSpace(gpus=16, most_pp=1, most_tp=1, most_cp=1))
    with pytest.raises(MoecastError, match="--moe-schedule"):
        replace(asked, recipe=replace(asked.recipe, moe_schedule="fsmoe:2"))
    with pytest.raises(ValueError, match="at least one value"):
        TrainingSpace(gpus=4, schedules=())
    with pytest.raises(ValueError, match="do not divide"):
        TrainingLayout(dp=4, ep=3)
