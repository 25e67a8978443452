"""FSMoE in training: closed forms of a layer's chunks, its partition of gradients, and whole steps of both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Exchange, Fluid, Plan, find_rung
from moecast.sim.program import Compute, StepProgram
from moecast.sim.schedules.fsmoe import BETWEEN, INSIDE
from moecast.sim.schedules.fsmoe_training import Chunk, co_scheduled, degree_of, turn_of
from moecast.sim.schedules.gradient_partition import LEAST_BYTES, Gap, partition
from moecast.sim.schedules.lay import settled
from moecast.sim.schedules.pipeline import find_pipeline_schedule
from moecast.sim.training import RECOMPUTES, Recipe, training_program
from moecast.topology import load_cluster
from tests.sim.plan_cases import tiny_model
from tests.sim.test_training_step import microbatch, routing
from tests.sim.toy_pass import ToyPass

BOUND = find_rung("bound")
RUNGS = [BOUND, Fluid()]
TOY = ToyPass(layers=1)
MEGA = 1e6


def compute(seconds: float) -> Compute:
    return Compute(kind="expert", layer=0, seconds_R=np.full(2, seconds))


def exchange(kind: str, seconds: float, *, inside: bool = False) -> Exchange:
    return TOY._exchange(kind, 0, seconds, inside=inside)


def layer_s(
    rung: object, degree: int, a: float, g: float, e: float, s: float, c: float, shared_s: float = 0.0
) -> float:
    """Of chunks that take a, g, e, s and c seconds behind a router that takes one."""
    chunk = Chunk(
        there=((exchange("dispatch", a), BETWEEN), (exchange("dispatch", g, inside=True), INSIDE)),
        experts=compute(e),
        back=((exchange("combine", s, inside=True), INSIDE), (exchange("combine", c), BETWEEN)),
    )
    tasks = [compute(1.0), *co_scheduled([chunk] * degree, [compute(shared_s)])]
    return rung.run(TOY.program(settled(tasks))).step_time_s - 1.0


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("degree", [2, 3, 5])
def test_a_layer_takes_what_its_longest_stream_does(rung, degree):
    """The three cases of docs/schedules.md, `fsmoe:D`, here of each pass of a training step."""
    experts = layer_s(rung, degree, 1.0, 0.5, 2.0, 1.0, 1.5)
    assert experts == pytest.approx(1.0 + 0.5 + degree * 2.0 + 1.0 + 1.5, rel=1e-9)
    if degree > 2:
        between = layer_s(rung, degree, 4.0, 0.5, 1.0, 1.0, 4.0, shared_s=2.0)
        assert between == pytest.approx(degree * 8.0, rel=1e-9)
    inside = layer_s(rung, degree, 1.0, 3.0, 2.0, 3.0, 1.0, shared_s=0.5)
    assert inside == pytest.approx(1.0 + degree * 6.0 + 1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "found"), [("sequential", 1), ("fsmoe:2", 2), ("fsmoe:64", 64)]
)  # fmt: skip
def test_degrees_are_read(name, found):
    assert degree_of(name) == found


@pytest.mark.parametrize("name", ["fsmoe", "fsmoe:1", "fsmoe:65", "fsmoe:x", "chunked:2", ""])
def test_no_such_order_of_layers(name):
    with pytest.raises(MoecastError, match="sequential, or fsmoe:D with D from 2 to 64"):
        Recipe(sequence=8, batch=8, moe_schedule=name)


sizes = st.floats(0, 300 * MEGA)


@given(
    layers=st.lists(st.tuples(st.lists(st.floats(0, 0.4), max_size=2), sizes, sizes), min_size=1, max_size=6),
    launch_s=st.sampled_from((0.0, 0.01)),
)  # fmt: skip
def test_pieces_fit_their_gaps_and_lose_no_byte(layers, launch_s):
    def seconds(kind: str, size: float) -> float:
        return launch_s + size / (1e9 if kind == "dense" else 2e9)

    asked = [
        ([Gap(where=(n, m), seconds=gap) for m, gap in enumerate(gaps)], {"dense": dense, "expert": expert})
        for n, (gaps, dense, expert) in enumerate(layers)
    ]
    found = partition(asked, seconds)
    room = {gap.where: gap.seconds for gaps, _ in asked for gap in gaps}
    for where, taken in found.pieces.items():
        assert sum(seconds(kind, size) for kind, size in taken.items()) <= room[where] * (1 + 1e-9)
    for kind in ("dense", "expert"):
        given_so_far = 0.0
        for gaps, given_here in asked:
            put = sum(found.pieces.get(gap.where, {}).get(kind, 0.0) for gap in gaps)
            assert put <= given_so_far + 1e-6
            given_so_far += given_here[kind] - put
        assert found.left.get(kind, 0.0) == pytest.approx(given_so_far, abs=1e-3)


def test_gaps_of_one_length_hide_as_many_bytes_as_they_say():
    gaps, launch_s = 4, 0.01
    layers = [([Gap(where=n, seconds=0.05)], {"dense": 1e9}) for n in range(gaps + 1)]
    found = partition(layers, lambda _, size: launch_s + size / 1e9)
    hidden = sum(size for taken in found.pieces.values() for size in taken.values())
    assert hidden == pytest.approx(gaps * (0.05 - launch_s) * 1e9, rel=1e-6)
    assert found.left["dense"] == pytest.approx(1e9 * (gaps + 1) - hidden)
    small = partition(layers, lambda _, size: 0.05 + size / 1e9)
    assert small.pieces == {}
    assert LEAST_BYTES > 0


GPUS = (0, 1, 8, 9, 2, 3, 10, 11)
"""Each EP group has two ranks of each of two hosts."""


def program(*, name="1f1b", tokens=16, gpus=GPUS, etp=1, **values) -> StepProgram:
    rng = np.random.default_rng(3)
    trace = routing(rng, tokens=512, layers=3, experts=16)
    model = tiny_model(trace, dense_layers=0, shared=1)
    plan = Plan.contiguous(model, ep=4 // etp, groups=2).with_(dp=0, etp=etp, gpu_of_rank=gpus, dispatch="per_domain")
    recipe = Recipe(sequence=tokens, batch=2 * plan.dp, **values)
    steps = [microbatch(rng, trace, dp=plan.dp, tokens=tokens)]
    return training_program(
        load_cluster("dgx-h100", nodes=2),
        model,
        plan,
        recipe,
        schedule=find_pipeline_schedule(name),
        trace=trace,
        steps=steps,
    )


def moved(found: StepProgram, stream: str | None = None) -> float:
    chosen = (task for task in found.exchanges if task.kind == "other" and stream in (None, task.stream))
    return sum(float(task.fill().bytes_F.sum()) for task in chosen)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_steps_in_chunks_send_and_reduce_as_much(recompute):
    values = {"recompute": RECOMPUTES[recompute]}
    plain, beside = program(**values), program(moe_schedule="fsmoe:2", overlap_grad_reduce=True, **values)
    assert moved(beside) == pytest.approx(moved(plain), rel=1e-3)  # pieces are whole bytes
    for found in (plain, beside):
        assert BOUND.run(found).step_time_s <= Fluid().run(found).step_time_s * (1 + 1e-9)
    assert {task.stream for task in beside.exchanges} >= {BETWEEN, INSIDE}
    turns = turn_of(beside.tasks)
    assert turns is not None
    assert turns[0] < turns[1]


@pytest.mark.parametrize(
    ("name", "gpus", "values", "line"),
    [
        ("1f1b_overlapped", GPUS, {}, "sequential where microbatches run in pairs"),
        ("1f1b", tuple(range(8)), {}, "nothing goes between domains"),
    ],
)
def test_what_has_no_such_chunks_is_refused(name, gpus, values, line):
    with pytest.raises(MoecastError, match=line):
        program(name=name, gpus=gpus, moe_schedule="fsmoe:2", **values)


def test_gradients_go_both_ways_where_experts_are_cut_by_width():
    """What was gathered forward is spread backward, and what was spread is gathered."""
    found = program(etp=2)
    forward, back = ([], [])
    for task in found.exchanges:
        if task.kind in ("dispatch", "combine") and task.fill().n:
            way = forward if len(forward) < 4 * 3 else back
            way.append(float(task.fill().bytes_F.sum()))
    assert sorted(back[: 4 * 3]) == pytest.approx(sorted(forward))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_lengthening_any_task_can_lengthen_the_step(data):
    found = program(moe_schedule="fsmoe:2", overlap_grad_reduce=True)
    before_s = BOUND.run(found).step_time_s
    place = data.draw(st.integers(0, len(found.tasks) - 1))
    task = found.tasks[place]
    longer = (
        replace(task, seconds_R=task.seconds_R + before_s)
        if isinstance(task, Compute)
        else replace(task, setup_s=task.setup_s + before_s)
    )
    tasks = (*found.tasks[:place], longer, *found.tasks[place + 1 :])
    assert BOUND.run(replace(found, tasks=tasks)).step_time_s > before_s * (1 + 1e-9)
