"""Gradients and parameters beside microbatches: closed order, every byte, every task, and what it hides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim import Exchange, Fluid, Plan, find_rung, load_model
from moecast.sim.program import Compute, StepProgram
from moecast.sim.schedules.pipeline import PIPELINE_SCHEDULES, Pipeline, find_pipeline_schedule
from moecast.sim.training import Recipe, time_training
from moecast.sim.training.buckets import buckets_of
from moecast.sim.training.gradients import Reduction
from moecast.topology import load_cluster
from moecast.validate.published.training import even_routing
from tests.sim.test_training_step import job, program_of

BOTH = {"overlap_grad_reduce": True, "overlap_param_gather": True}
GRADIENTS = Reduction(operation="all-reduce", group="dense", layer=0, when="backward", per_microbatch=False, bytes=1.0)
WORDS = ("parameters", "gradients")
BOUND = find_rung("bound")
TRAINED = [schedule for schedule in PIPELINE_SCHEDULES if schedule.name != "forward"]


def sent(program: StepProgram, word: str) -> list[Exchange]:
    return [task for task in program.exchanges if task.stream is not None and task.stream.endswith(word)]


def reduced_bytes(program: StepProgram) -> float:
    """Bytes of collectives, wherever they stand; hidden values of pipelines stand on no stream."""
    return sum(float(task.fill().bytes_F.sum()) for task in program.exchanges if is_collective(task))


def is_collective(task: Exchange) -> bool:
    return task.kind == "other" and task.stream is not None


def alone_s(program: StepProgram, task: Exchange) -> float:
    one = replace(program, tasks=(replace(task, after=()),))
    return BOUND.run(one).step_time_s


def evened(program: StepProgram) -> StepProgram:
    """The same, all ranks computing as long as the longest."""
    tasks = tuple(
        replace(task, seconds_R=np.full(task.n_ranks, task.seconds_R.max())) if isinstance(task, Compute) else task
        for task in program.tasks
    )
    return replace(program, tasks=tasks)


@settings(max_examples=12, deadline=None)
@given(layers=st.integers(1, 5), microbatches=st.integers(1, 3), bucket=st.integers(1, 200_000), seed=st.integers(0, 9))
def test_without_a_pipeline_the_step_is_what_its_buckets_and_layers_say(layers, microbatches, bucket, seed):
    """Ranks that exchange nothing else: each bucket waits for its stream, and for where it is ready or wanted."""
    rng = np.random.default_rng(seed)
    asked = job(rng, groups=2, layers=layers, microbatches=microbatches, bucket_parameters=bucket, **BOTH)
    program = evened(program_of(asked | {"steps": asked["steps"][:1]}, find_pipeline_schedule("1f1b")))
    ends: list[float] = []
    streams: dict[str | None, float] = {}
    for task in program.tasks:
        long_s = task.seconds_R.max() if isinstance(task, Compute) else alone_s(program, task)
        begin = max([streams.get(task.stream, 0.0), *(ends[place] for place in task.after)])
        streams[task.stream] = begin + long_s
        ends.append(begin + long_s)
    found = BOUND.run(program)
    assert found.step_time_s == pytest.approx(max(ends), rel=1e-9)
    first, last = sent(program, "parameters")[0], sent(program, "gradients")[-1]
    assert (first.microbatch, last.microbatch) == (0, microbatches - 1)
    assert first.after == ()
    update = next(place for place, task in enumerate(program.tasks) if task.kind == "other" and task.microbatch < 0)
    assert {program.tasks[place].stream for place in program.tasks[update].after} == {
        task.stream for task in sent(program, "gradients")
    }


@settings(max_examples=12, deadline=None)
@given(data=st.data(), schedule=st.sampled_from(TRAINED), zero=st.integers(0, 3), seed=st.integers(0, 99))
def test_every_schedule_sends_the_same_bytes_beside_microbatches(data, schedule, zero, seed):
    rng = np.random.default_rng(seed)
    sizes = [
        (p, v, m)
        for p in (1, 2)
        for v in (1, 2)
        for m in (2, 4)
        if schedule.supports(Pipeline(pp=p, virtual=v, microbatches=m)) is None
    ]
    pp, virtual, m = data.draw(st.sampled_from(sizes))
    asked = job(
        rng, pp=pp, virtual=virtual, groups=2, microbatches=m, folded=schedule.name in ("zb_v", "dualpipe_v"), zero=zero
    )
    bucket = data.draw(st.sampled_from((None, 1, 3000)))
    overlapped = replace(
        asked["recipe"], overlap_grad_reduce=True, overlap_param_gather=zero > 0, bucket_parameters=bucket
    )
    plain = program_of(asked, schedule)
    beside = program_of(asked | {"recipe": overlapped}, schedule)
    assert reduced_bytes(beside) == pytest.approx(reduced_bytes(plain), rel=1e-6)
    assert len(sent(beside, "gradients")) >= len(sent(plain, "gradients")) == 0
    bound, fluid = BOUND.run(beside), Fluid().run(beside)
    assert bound.step_time_s <= fluid.step_time_s * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from(("1f1b", "zb_h1", "1f1b_overlapped")), zero=st.sampled_from((1, 3)))
def test_lengthening_any_task_can_lengthen_the_step(data, name, zero):
    asked = job(np.random.default_rng(3), pp=2, groups=2, microbatches=4, zero=zero, bucket_parameters=1, **BOTH)
    program = program_of(asked, find_pipeline_schedule(name))
    before_s = BOUND.run(program).step_time_s
    place = data.draw(st.integers(0, len(program.tasks) - 1))
    task = program.tasks[place]
    if isinstance(task, Compute):
        longer = replace(task, seconds_R=task.seconds_R + before_s)
    else:
        longer = replace(task, setup_s=task.setup_s + before_s)
    tasks = (*program.tasks[:place], longer, *program.tasks[place + 1 :])
    assert BOUND.run(replace(program, tasks=tasks)).step_time_s > before_s * (1 + 1e-9)


@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_it_hides_gradients_and_slows_what_hides_them(network):
    """Microbatches of 4,096 tokens; those beside nothing compute as fast as without."""
    cluster, model = load_cluster("dgx-h100", nodes=2), load_model("deepseek-v2-lite")
    plan = Plan.contiguous(model, ep=8, groups=2)
    trace, step = even_routing(model, dp=plan.dp, tokens=4096, sequence=4096)
    asked = {"trace": trace, "steps": [step], "schedule": "1f1b", "network": network}
    times = {}
    for name, values in (("plain", {}), ("gradients", {"overlap_grad_reduce": True}), ("both", BOTH)):
        recipe = Recipe(sequence=4096, batch=3 * plan.dp, **values)
        timed = time_training(cluster, model, plan, recipe=recipe, **asked)
        times[name] = timed.times.step_time_s
        busy = [computed_s(timed.program, microbatch) for microbatch in range(3)]
        assert [busy[place] > busy[1] for place in (0, 2)] == [name == "both", name != "plain"]
    assert times["both"] < times["gradients"] < times["plain"]


def computed_s(program: StepProgram, microbatch: int) -> float:
    own = (task for task in program.tasks if isinstance(task, Compute) and task.microbatch == microbatch)
    return sum(float(task.seconds_R.sum()) for task in own)


def test_what_has_no_kernel_beside_it_is_as_fast_as_without():
    """The first bucket before the first kernel, and the last one behind the last kernel."""
    asked = job(np.random.default_rng(5), groups=2, layers=4, microbatches=2, bucket_parameters=1, **BOTH)
    program = evened(program_of(asked, find_pipeline_schedule("1f1b")))
    ends = [[float(np.diff(task.fill().offsets_F1).max()) for task in sent(program, word)] for word in WORDS]
    assert ends[0][0] < max(ends[0])  # slowed flows stand on their senders' own links, too
    assert ends[1][-1] < max(ends[1])


def test_only_the_first_chunk_of_a_pipeline_is_cut_into_buckets():
    asked = job(np.random.default_rng(3), pp=2, groups=2, layers=6, microbatches=4, bucket_parameters=1, **BOTH)
    program = program_of(asked, find_pipeline_schedule("1f1b"))
    by_rank = [0, 0]
    for task in sent(program, "gradients"):
        by_rank[int(task.ranks_R[0]) // 2] += 1
    assert by_rank == [3 + 1 + 3, 2]  # layers and the embedding, experts of layers; one bucket of each elsewhere


@given(sizes=st.lists(st.floats(1, 100), min_size=1, max_size=8), full=st.floats(1, 200), first=st.integers(0, 5))
def test_buckets_are_full_from_the_models_end(sizes, full, first):
    parts = [replace(GRADIENTS, layer=first + place, bytes=size) for place, size in enumerate(sizes)]
    found = list(buckets_of(parts, range(first, first + len(sizes)), full_bytes=full))
    assert sum(bucket.bytes for bucket in found) == pytest.approx(sum(sizes))
    assert [bucket.layer for bucket in found] == sorted({bucket.layer for bucket in found}, reverse=True)
    assert found[-1].layer == 0
    for bucket in found[:-1]:
        assert bucket.bytes >= full > bucket.bytes - sizes[bucket.layer]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"overlap_param_gather": True}, "overlap_param_gather = True: needs overlap_grad_reduce"),
        ({"zero": 0, **BOTH}, "zero of at least 1"),
        ({"bucket_parameters": 0}, "bucket_parameters = 0: must be at least 1"),
    ],
)
def test_what_megatron_refuses_is_refused(values, line):
    with pytest.raises(ValueError, match=line):
        Recipe(sequence=8, batch=8, **values)
