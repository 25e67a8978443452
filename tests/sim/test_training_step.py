"""Whole training steps: pipelines of real work against their closed order, every byte, every schedule on the rungs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Exchange, Fluid, Plan, Step, find_rung
from moecast.sim.breakdown import breakdown
from moecast.sim.schedules.pipeline import (
    PIPELINE_SCHEDULES,
    Cell,
    CellSeconds,
    Pipeline,
    cell_tasks,
    find_pipeline_schedule,
    make_order,
    time_order,
)
from moecast.sim.training import HostWait, Recipe, reductions, stage_work, step, training_program
from moecast.topology import load_cluster
from moecast.traces import RoutingTrace, TraceMeta
from tests.sim.plan_cases import tiny_model

CLUSTER = load_cluster("dgx-h100")
TRAINED = [schedule for schedule in PIPELINE_SCHEDULES if schedule.name != "forward"]


def routing(rng, *, tokens, layers, experts=4, choices=2, sequence=8):
    """Sequences of random choices."""
    order = np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :choices]
    place = np.arange(tokens)
    return RoutingTrace(
        meta=TraceMeta(model="random", layers=layers, experts=experts, choices=choices),
        experts_TLK=order.astype(np.uint16),
        sequence_T=(place // sequence).astype(np.uint32),
        position_T=(place % sequence).astype(np.uint32),
        phase_T=np.zeros(tokens, np.uint8),
        topics=(),
        topic_T=np.full(tokens, -1, np.int16),
    )


def microbatch(rng, trace, *, dp, tokens):
    """A microbatch of so many tokens on each data-parallel rank."""
    source_T = np.arange(dp).repeat(tokens)
    token_T = rng.permutation(trace.n_tokens)[: dp * tokens]
    return Step(
        token_T=token_T, source_T=source_T, context_T=trace.position_T[token_T].astype(np.int64) + 1, phase="prefill"
    )


def job(rng, *, pp=1, virtual=1, ep=1, tp=1, groups=1, layers=4, microbatches=1, folded=False, **recipe):
    """A small model, its plan, and the routing of its microbatches."""
    trace = routing(rng, tokens=256, layers=layers)
    model = tiny_model(trace, dense_layers=0, shared=1)
    plan = Plan.contiguous(model, ep=ep, groups=groups).with_(
        tp=tp, pp=pp, virtual=virtual, folded=folded, dp=0, gpu_of_rank=tuple(range(ep * groups * pp))
    )
    steps = [microbatch(rng, trace, dp=plan.layout.dp, tokens=8) for _ in range(microbatches)]
    values = {"sequence": 8, "batch": microbatches * plan.layout.dp} | recipe
    return {"model": model, "plan": plan, "recipe": Recipe(**values), "trace": trace, "steps": steps}


def program_of(asked, schedule):
    return training_program(CLUSTER, schedule=schedule, **asked)


def seconds(tasks):
    return sum(float(task.seconds_R.max()) for task in tasks if not isinstance(task, Exchange))


@settings(max_examples=15, deadline=None)
@given(
    pp=st.integers(1, 4),
    more=st.integers(0, 3),
    name=st.sampled_from(("gpipe", "1f1b", "zb_h1")),
    seed=st.integers(0, 99),
)
def test_stages_of_one_rank_take_what_their_order_says(pp, more, name, seed):
    """Each stage on its own GPU: the step is the order's own recursion over the cells' seconds and one send each."""
    rng = np.random.default_rng(seed)
    asked = job(rng, pp=pp, microbatches=pp + more)
    schedule = find_pipeline_schedule(name)
    order = make_order(schedule, Pipeline(pp=pp, microbatches=pp + more))
    values = {key: asked[key] for key in ("model", "plan", "recipe", "trace")}
    works = [stage_work(CLUSTER, **values, stage=stage, rank=stage, steps=asked["steps"][:1]) for stage in range(pp)]
    seconds_C = [
        CellSeconds(
            forward_s=seconds(cell_tasks(work, Cell("F", 0, 0))),
            inputs_s=seconds(cell_tasks(work, Cell("B", 0, 0))),
            weights_s=seconds(cell_tasks(work, Cell("W", 0, 0))),
        )
        for work in works
    ]
    program = program_of(asked | {"steps": asked["steps"][:1]}, schedule)
    sends = [replace(task, after=(), ranks_R=None) for task in program.exchanges if task.stream is None]
    send_s = 0.0
    if sends:
        alone = replace(program, tasks=(sends[0],), n_ranks=2)
        send_s = find_rung("bound").run(alone).step_time_s
    timed = time_order(order, seconds_C, send_s=send_s)
    ends = [max(block.end_s for block in timed if block.rank == rank) for rank in range(pp)]
    updates = [work.optimizer_seconds(asked["recipe"]) for work in works]
    expected = max(end + update for end, update in zip(ends, updates, strict=True))
    assert find_rung("bound").run(program).step_time_s == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), schedule=st.sampled_from(TRAINED), seed=st.integers(0, 99))
def test_every_schedule_runs_on_the_rungs_and_sends_every_byte(data, schedule, seed):
    """Whatever the order: as many bytes as the microbatches' own layers have, and bound ≤ fluid."""
    rng = np.random.default_rng(seed)
    pp, virtual, m = data.draw(
        st.sampled_from(
            [
                (p, v, m)
                for p in (1, 2)
                for v in (1, 2)
                for m in (2, 4)
                if schedule.supports(Pipeline(pp=p, virtual=v, microbatches=m)) is None
            ]
        )
    )
    folded = schedule.name in ("zb_v", "dualpipe_v")
    asked = job(rng, pp=pp, virtual=virtual, ep=2, tp=data.draw(st.sampled_from((1, 2))), microbatches=m, folded=folded)
    program = program_of(asked, schedule)
    bound, fluid = find_rung("bound").run(program), Fluid().run(program)
    assert bound.step_time_s <= fluid.step_time_s * (1 + 1e-9)
    one = job(np.random.default_rng(seed), ep=2, tp=asked["plan"].tp, microbatches=m)
    plain = program_of(one, find_pipeline_schedule("gpipe"))
    for kind in ("dispatch", "combine"):
        assert moved(program, kind) == pytest.approx(moved(plain, kind))
    busy_G = np.zeros(program.n_ranks)
    for task in program.tasks:
        if not isinstance(task, Exchange):
            busy_G[program.ranks_of(task)] += task.seconds_R
    assert bound.step_time_s >= busy_G.max() * (1 - 1e-9)


def moved(program, kind):
    return sum(float(task.fill().bytes_F.sum()) for task in program.exchanges if task.kind == kind)


@pytest.mark.parametrize("zero", [0, 1])
def test_gradients_are_reduced_over_the_ranks_that_hold_the_same(zero):
    """Two EP groups of two ranks, heads on two: experts over two groups, the rest over two data-parallel ranks."""
    asked = job(np.random.default_rng(0), ep=2, groups=2, tp=2, zero=zero)
    program = program_of(asked, find_pipeline_schedule("1f1b"))
    shard = stage_work(CLUSTER, **asked, stage=0, rank=0).shard
    assert (shard.dense_ranks, shard.expert_ranks) == (2, 2)
    tail = [task for task in program.tasks[-6:] if isinstance(task, Exchange) and task.kind == "other"]
    wanted = {(part.group, part.operation) for part in reductions(shard, asked["recipe"].precision, zero=zero)}
    assert len(tail) >= len(wanted) == (3 if zero == 0 else 5)


def test_pairs_hide_what_they_send():
    """Two ranks' pipelines with an all-to-all each: overlapped 1F1B is faster than interleaved."""
    asked = job(np.random.default_rng(1), pp=2, virtual=2, ep=4, microbatches=8)
    plain, paired = (
        find_rung("bound").run(program_of(asked, find_pipeline_schedule(name))).step_time_s
        for name in ("interleaved_1f1b", "1f1b_overlapped")
    )
    assert paired < plain


@settings(max_examples=10, deadline=None)
@given(launch_s=st.floats(1e-9, 1e-2), pp=st.sampled_from((1, 2)), name=st.sampled_from(("1f1b", "gpipe")))
def test_a_step_takes_its_launches_or_its_kernels(launch_s, pp, name):
    """The host runs beside the GPU: a step is no shorter than either, and no longer than one after the other."""
    microbatches, layers = 4, 4
    asked = job(np.random.default_rng(2), pp=pp, ep=2, layers=layers, microbatches=microbatches)
    schedule, bound = find_pipeline_schedule(name), find_rung("bound")
    free_s = bound.run(program_of(asked, schedule)).step_time_s
    program = program_of(asked | {"recipe": replace(asked["recipe"], host=HostWait(launch_s=launch_s))}, schedule)
    times = bound.run(program)
    launched_s = 2 * microbatches * layers // pp * launch_s
    assert times.step_time_s >= max(free_s, launched_s) * (1 - 1e-9)
    assert times.step_time_s <= (free_s + pp * launched_s) * (1 + 1e-9)
    assert sum(breakdown(program, times).step.values()) == pytest.approx(times.step_time_s)


def test_launches_under_kernels_cost_nothing():
    asked = job(np.random.default_rng(2), ep=2, microbatches=4)
    schedule, bound = find_pipeline_schedule("1f1b"), find_rung("bound")
    free, hidden = (
        bound.run(program_of(asked | {"recipe": replace(asked["recipe"], host=HostWait(launch_s=launch_s))}, schedule))
        for launch_s in (0.0, 1e-7)
    )
    assert hidden.step_time_s == pytest.approx(free.step_time_s)


def test_slower_kernels_take_that_much_longer():
    asked = job(np.random.default_rng(3), ep=2)
    schedule = find_pipeline_schedule("1f1b")
    priced, slow = (
        seconds(program_of(asked | {"recipe": replace(asked["recipe"], slower=slower)}, schedule).tasks[:-3])
        for slower in (1.0, 2.0)
    )
    assert priced < slow < 2 * priced * (1 + 1e-9)
    with pytest.raises(ValueError, match=r"slower = 0\.5"):
        replace(asked["recipe"], slower=0.5)


def test_microbatches_must_be_there():
    asked = job(np.random.default_rng(1), pp=2, ep=2) | {"steps": []}
    with pytest.raises(MoecastError, match="at least one microbatch"):
        program_of(asked, find_pipeline_schedule("1f1b"))


@settings(max_examples=5, deadline=None)
@given(name=st.sampled_from(("1f1b", "dualpipe")), seed=st.integers(0, 99))
def test_leaving_out_wider_links_changes_nothing(name, seed):
    """The same step with every link of every path, which the rungs look through themselves."""
    asked = job(np.random.default_rng(seed), pp=2, ep=4, groups=2, microbatches=4)
    apart = tuple(rank % 2 * 8 + rank // 2 for rank in range(16))  # neighbours on two hosts
    asked["plan"] = asked["plan"].with_(gpu_of_rank=apart)
    cluster, schedule = load_cluster("dgx-h100", nodes=2), find_pipeline_schedule(name)
    narrowed = training_program(cluster, schedule=schedule, **asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "on_narrowest", lambda tasks, _: (tasks, None))
        whole = training_program(cluster, schedule=schedule, **asked)
    assert whole.narrowest_J is None
    for rung in (find_rung("bound"), Fluid()):
        found, wanted = rung.run(narrowed), rung.run(whole)
        assert found.step_time_s == pytest.approx(wanted.step_time_s, rel=1e-9)
        np.testing.assert_allclose(found.link_bytes_J, wanted.link_bytes_J, rtol=1e-9)
