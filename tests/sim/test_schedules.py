"""Schedules on even work: their closed forms, and that they write no time of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Plan, Workload, load_model, simulate
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.network import Bound, Fluid
from moecast.sim.program import COMMUNICATION, Compute, Exchange, StepProgram
from moecast.sim.schedules import SCHEDULES, Chunked, FsMoe, find_schedule
from moecast.sim.schedules.fsmoe import BETWEEN
from moecast.topology import load_cluster
from tests.sim.toy_pass import ToyPass

CLOSE = {"rel": 1e-9, "abs": 1e-12}
RUNGS = [Bound(), Fluid()]
ALL = [*SCHEDULES, Chunked(degree=3), FsMoe(degree=3)]

seconds = st.sampled_from([0.0, 0.25, 1.0, 2.0, 3.0])
passes = st.builds(
    ToyPass,
    layers=st.integers(1, 4),
    attention_s=seconds,
    router_s=seconds,
    shared_s=seconds,
    expert_s=seconds,
    dispatch_s=seconds,
    combine_s=seconds,
    phase=st.sampled_from(["prefill", "decode"]),
)


def time_s(name: str, step: ToyPass, rung: object) -> float:
    return float(rung.run(step.program(find_schedule(name).tasks(step))).step_time_s)


def compute_s(step: ToyPass) -> float:
    return step.layers * (step.attention_s + step.router_s + step.shared_s + step.expert_s)


def sent_s(step: ToyPass) -> float:
    return step.layers * (step.dispatch_s + step.combine_s)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=30, deadline=None)
@given(step=passes)
def test_in_sequence_everything_adds_up(rung: object, step: ToyPass) -> None:
    assert time_s("sequential", step, rung) == pytest.approx(compute_s(step) + sent_s(step), **CLOSE)
    assert time_s("chunked:1", step, rung) == pytest.approx(compute_s(step) + sent_s(step), **CLOSE)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_one_chunk_is_the_sequential_order_and_pays_for_no_overlap(phase: str, network: str) -> None:
    """Also where shared experts could stand beside dispatch: `shared-beside` is for that."""
    cluster, model = load_cluster("dgx-h100", nodes=2), load_model("deepseek-v2-lite")
    trace = routing_by_law(parse_law("uniform"), model, tokens=1024, sequence=4, phase=phase, position=0, seed=0)
    plan, work = Plan.contiguous(model, cluster), Workload(phase=phase, tokens_per_rank=16, steps=1)
    asked = {"network": network, "gains": False}
    in_sequence = simulate(cluster, model, plan, trace, work, **asked)
    one_chunk = simulate(cluster, model, plan.with_(schedule="chunked:1"), trace, work, **asked)
    assert not any(line.startswith("bound knows less") for line in (*in_sequence.warnings, *one_chunk.warnings))
    overlapping = simulate(cluster, model, plan.with_(schedule="shared-beside"), trace, work, **asked)
    assert any(line.startswith("bound knows less of shared-beside") for line in overlapping.warnings) == (
        network == "bound"
    )
    assert one_chunk.step_time_s == in_sequence.step_time_s
    assert one_chunk.breakdown_s == in_sequence.breakdown_s


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=30, deadline=None)
@given(step=passes)
def test_shared_experts_hide_what_dispatch_takes(rung: object, step: ToyPass) -> None:
    layer = step.attention_s + step.router_s + max(step.shared_s, step.dispatch_s) + step.expert_s + step.combine_s
    assert time_s("shared-beside", step, rung) == pytest.approx(step.layers * layer, **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=60, deadline=None)
@given(step=passes)
def test_two_batches_take_the_longer_of_compute_and_communication_and_their_ends(rung: object, step: ToyPass) -> None:
    """Never below either, and never above their sum."""
    found = time_s("two-batch", step, rung)
    assert found >= max(compute_s(step), sent_s(step)) * (1 - 1e-9)
    assert found <= (compute_s(step) + sent_s(step)) * (1 + 1e-9)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("layers", [1, 4])
def test_two_batches_that_compute_longer_leave_one_combine(rung: object, layers: int) -> None:
    step = ToyPass(layers=layers, attention_s=4.0, expert_s=3.0, dispatch_s=2.0, combine_s=2.5)
    assert time_s("two-batch", step, rung) == pytest.approx(compute_s(step) + 2.5 / 2, **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("layers", [1, 4])
def test_two_batches_that_send_longer_leave_the_first_attention(rung: object, layers: int) -> None:
    step = ToyPass(layers=layers, attention_s=1.0, expert_s=0.5, dispatch_s=4.0, combine_s=5.0)
    assert time_s("two-batch", step, rung) == pytest.approx(sent_s(step) + 0.5, **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("layers", [1, 4])
def test_woven_tokens_that_compute_longer_leave_half_a_sum_and_its_norm(rung: object, layers: int) -> None:
    step = ToyPass(layers=layers, attention_s=4.0, sum_s=2.0, norm_s=0.5, expert_s=3.0, combine_s=2.0)
    assert time_s("token-weave", step, rung) == pytest.approx(layers * 7.0 + 2.5 / 2, **CLOSE)
    # in sequence the norms, which no sum hides, are part of attention
    assert time_s("sequential", step, rung) == pytest.approx(layers * (7.0 + 2 * 2.5), **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("layers", [1, 4])
def test_woven_tokens_that_are_summed_longer_leave_the_first_attention(rung: object, layers: int) -> None:
    step = ToyPass(layers=layers, attention_s=1.0, sum_s=3.5, norm_s=0.5, expert_s=0.5, combine_s=3.5)
    assert time_s("token-weave", step, rung) == pytest.approx(layers * 8.0 + 0.5, **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=30, deadline=None)
@given(step=passes, sum_s=seconds, norm_s=seconds)
def test_woven_tokens_take_the_longer_stream_at_least_and_both_at_most(
    rung: object, step: ToyPass, sum_s: float, norm_s: float
) -> None:
    step = replace(step, sum_s=sum_s, norm_s=norm_s)
    communication_s = sent_s(step) + step.layers * (sum_s + 2 * norm_s)
    found = time_s("token-weave", step, rung)
    assert max(compute_s(step), communication_s) * (1 - 1e-9) <= found
    assert found <= (compute_s(step) + communication_s) * (1 + 1e-9)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("degree", [1, 2, 5])
def test_chunks_of_experts_that_take_longer_hide_all_but_one_dispatch_and_one_combine(
    rung: object, degree: int
) -> None:
    step = ToyPass(layers=2, attention_s=1.0, expert_s=6.0, dispatch_s=2.0, combine_s=1.5)
    layer = 1.0 + 2.0 / degree + 6.0 + 1.5 / degree
    assert time_s(f"chunked:{degree}", step, rung) == pytest.approx(2 * layer, **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("degree", [2, 5])
def test_chunks_that_send_longer_hide_all_experts_but_what_the_stream_waits_for(rung: object, degree: int) -> None:
    step = ToyPass(layers=2, attention_s=1.0, expert_s=1.0, dispatch_s=4.0, combine_s=4.0)
    assert time_s(f"chunked:{degree}", step, rung) == pytest.approx(2 * (1.0 + 8.0), **CLOSE)


def of_chunks(degree: int, a: float, g: float, e: float, s: float, c: float) -> ToyPass:
    """A layer whose chunks take these seconds each."""
    seconds = {"dispatch_s": a, "spread_s": g, "expert_s": e, "gather_s": s, "combine_s": c}
    return ToyPass(layers=2, attention_s=1.0, **{name: degree * value for name, value in seconds.items()})


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("degree", [2, 3, 5])
def test_co_scheduled_chunks_are_as_long_as_what_takes_longest(rung: object, degree: int) -> None:
    """Experts, the network inside domains, the one between them: each hides what is shorter, but for the ends."""
    d = degree
    experts = of_chunks(d, 1.0, 1.0, 3.0, 2.0, 2.0), 1.0 + 1.0 + 3.0 * d + 2.0 + 2.0
    inside = of_chunks(d, 1.0, 2.0, 1.5, 3.0, 2.0), 1.0 + d * (2.0 + 3.0) + 2.0
    for step, layer_s in (experts, inside):
        assert time_s(f"fsmoe:{d}", step, rung) == pytest.approx(2 * (1.0 + layer_s), **CLOSE)
    if d > 2:
        between = of_chunks(d, 3.0, 1.0, 2.0, 2.0, 3.0)
        assert time_s(f"fsmoe:{d}", between, rung) == pytest.approx(2 * (1.0 + d * 6.0), **CLOSE)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=60, deadline=None)
@given(degree=st.integers(1, 5), chunk=st.tuples(*[seconds] * 5))
def test_co_scheduled_chunks_take_no_less_than_their_longest_streams(
    rung: object, degree: int, chunk: tuple[float, ...]
) -> None:
    """And what a slow account of three streams says; one chunk takes the sum."""
    a, g, e, s, c = chunk
    found = time_s(f"fsmoe:{degree}", of_chunks(degree, *chunk), rung) / 2 - 1.0
    least = max((degree - 1) * max(chunk) + sum(chunk), degree * (a + c), a + degree * (g + s) + c)
    assert found >= least * (1 - 1e-9)
    assert found == pytest.approx(three_streams(degree, a, g, e, s, c), **CLOSE)
    assert found <= degree * sum(chunk) * (1 + 1e-9)


def three_streams(degree: int, a: float, g: float, e: float, s: float, c: float) -> float:
    """When the last chunk is home: each part starts when the one before it on its stream, and in its chunk, is done."""
    chunks = range(degree)
    inside = [("g", 0)] + [part for n in chunks for part in ([("g", n + 1)] if n + 1 < degree else []) + [("s", n)]]
    between = [("a", n) for n in chunks] + [("c", n) for n in chunks]
    streams = [between, inside, [("e", n) for n in chunks]]
    takes = {"a": a, "g": g, "e": e, "s": s, "c": c}
    before = {stream[at]: stream[at - 1] for stream in streams for at in range(1, len(stream))}
    done: dict[tuple[str, int], float] = {}

    def end(part: tuple[str, int] | None) -> float:
        if part is None:
            return 0.0
        if part not in done:
            kind, chunk = part
            earlier = ("agesc".index(kind) and "agesc"["agesc".index(kind) - 1]) or None
            start = max(end(before.get(part)), end((earlier, chunk) if earlier else None))
            done[part] = start + takes[kind]
        return done[part]

    return end(("c", degree - 1))


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_every_task_can_change_the_step(rung: object, schedule: object) -> None:
    """No schedule writes a time of its own: there is none of its tasks that could take for ever unnoticed."""
    step = ToyPass(layers=2, attention_s=1.0, router_s=0.5, shared_s=0.5, expert_s=1.0, dispatch_s=1.0, combine_s=1.0)
    step = replace(step, sum_s=1.0, norm_s=0.5, spread_s=1.0, gather_s=1.0)
    program = step.program(schedule.tasks(step))
    before = rung.run(program).step_time_s
    for index in range(len(program.tasks)):
        assert rung.run(longer(program, index)).step_time_s > before + 1.0


def longer(program: StepProgram, index: int) -> StepProgram:
    task = program.tasks[index]
    if isinstance(task, Compute):
        changed: Compute | Exchange = replace(task, seconds_R=task.seconds_R + 100.0)
    else:
        flows = task.fill()
        changed = replace(task, flows=replace(flows, bytes_F=flows.bytes_F + 100.0 * np.sign(flows.bytes_F)))
    return replace(program, tasks=(*program.tasks[:index], changed, *program.tasks[index + 1 :]))


def test_what_is_sent_stands_on_its_own_stream() -> None:
    step = ToyPass(layers=2, expert_s=1.0, dispatch_s=1.0)
    for schedule in ALL:
        streams = {task.stream for task in schedule.tasks(step) if isinstance(task, Exchange)}
        own = {BETWEEN} if isinstance(schedule, FsMoe) else {COMMUNICATION}  # nothing goes inside domains here
        assert streams == ({"compute"} if schedule.in_sequence else own)


@pytest.mark.parametrize("name", ["two_batch", "chunked:0", "chunked:65", "chunked:x", "chunked", ""])
def test_a_schedule_that_there_is_not_is_named(name: str) -> None:
    with pytest.raises(MoecastError, match="sequential, shared-beside, two-batch, token-weave, chunked:D, fsmoe:D"):
        find_schedule(name)
