"""A forward pass through pipeline stages: every layer once, closed forms, and what no stage changes."""

from __future__ import annotations

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.sim import ModelShape, Plan, Prediction, Workload, find_rung, simulate, step_program
from moecast.sim.drawn_steps import draw_steps
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.serving_pipeline import ServingPipeline
from moecast.topology import load_cluster
from moecast.traces import RoutingTrace
from tests.sim.plan_cases import tiny_model
from tests.sim.test_training_step import routing

CLUSTER = load_cluster("dgx-h100")


def routed(layers: int = 4) -> tuple[ModelShape, RoutingTrace]:
    trace = routing(np.random.default_rng(0), tokens=512, layers=layers)
    model = tiny_model(trace, dense_layers=0, shared=1)
    law = parse_law("uniform")
    return model, routing_by_law(
        law, model, tokens=4096, sequence=64, phase="prefill", position=0, seed=0, step_tokens=512
    )


def plan_of(model: ModelShape, *, pp: int, ep: int, microbatches: int = 1) -> Plan:
    return Plan.contiguous(model, ep=ep, groups=1).with_(
        pp=pp, microbatches=microbatches, gpu_of_rank=tuple(range(ep * pp)), dp=0
    )


def answer(plan: Plan, network: str = "bound", **more: object) -> Prediction:
    model, trace = routed()
    work = Workload(phase="prefill", tokens_per_rank=256, steps=1, **more)  # type: ignore[arg-type]
    return simulate(CLUSTER, model, plan, trace, work, network=network, gains=False)


@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_one_stage_and_one_microbatch_are_no_pipeline(network: str) -> None:
    model, trace = routed()
    plan = plan_of(model, pp=1, ep=2)
    [step] = draw_steps(trace, Workload(phase="prefill", tokens_per_rank=256, steps=1), ranks=2)
    pipeline = ServingPipeline.of(CLUSTER, model, plan, phase="prefill")
    kinds = [(task.kind, task.layer) for task in pipeline.program(trace, step).tasks]
    plain = step_program(CLUSTER, model, plan, trace, step)
    assert kinds == [(task.kind, task.layer) for task in plain.tasks]
    times = [find_rung(network).run(program).step_time_s for program in (pipeline.program(trace, step), plain)]
    assert times[0] == pytest.approx(times[1], rel=1e-9)


def test_stages_in_a_row_take_the_whole_pass_and_hide_each_other_with_microbatches() -> None:
    model, _ = routed()
    alone = answer(plan_of(model, pp=1, ep=2))
    in_a_row = answer(plan_of(model, pp=4, ep=2))
    cut = answer(plan_of(model, pp=4, ep=2, microbatches=4))
    assert in_a_row.step_time_s is not None
    assert alone.step_time_s is not None
    assert cut.step_time_s is not None
    sends = in_a_row.step_time_s - alone.step_time_s
    assert 0 < sends < 0.2 * alone.step_time_s  # three transfers of hidden values more
    # Launches are most of so small a pass: each microbatch stays about as long in a stage as the whole batch did, and
    # four of them leave a pipeline of four stages after 4 + 3 such stays. One after the other would take 16.
    assert cut.step_time_s < in_a_row.step_time_s * (4 + 3) / 4
    for name in ("fan_out", "balance", "dispatch_bytes"):
        assert getattr(in_a_row, name) == pytest.approx(getattr(alone, name))
    assert in_a_row.memory_bytes is not None
    assert alone.memory_bytes is not None
    assert in_a_row.memory_bytes["slots"] * 4 == alone.memory_bytes["slots"]


@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_a_step_is_as_long_as_its_busiest_stage_and_no_longer_than_the_longest_way_through(network: str) -> None:
    """A permutation flow shop: a way from the first stage and microbatch to the last goes down or right each turn."""
    model, trace = routed()
    microbatches, pp = 8, 4
    plan = plan_of(model, pp=pp, ep=2, microbatches=microbatches)
    [step] = draw_steps(trace, Workload(phase="prefill", tokens_per_rank=256, steps=1), ranks=2)
    program = ServingPipeline.of(CLUSTER, model, plan, phase="prefill").program(trace, step)
    times = find_rung(network).run(program)
    stay = np.zeros((pp, microbatches))
    of_rank = np.zeros(plan.layout.ranks)
    sends = 0.0
    for index, task in enumerate(program.tasks):
        lasts_S = times.leave_S[index] - times.enter_S[index]
        if task.stream is None:
            sends = max(sends, float(times.busy_S[index].max()))
        else:
            of_rank[program.ranks_of(task)] += lasts_S
            stay[plan.layout.stage_G[program.ranks_of(task)[0]], task.microbatch] += float(lasts_S.max())
    assert times.step_time_s >= of_rank.max() * (1 - 1e-12)  # a rank does one task at a time
    assert times.step_time_s <= stay.max(axis=0).sum() + stay.max(axis=1).sum() + (pp + microbatches) * sends


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"schedule": "two-batch"}, "schedule = 'two-batch': stages of a pipeline go through their layers in sequence"),
        ({"virtual": 2}, "vpp = 2: serving has one chunk a stage"),
        ({"microbatches": 257}, "microbatches = 257: more than the 256 tokens or sequences that each rank has"),
    ],
)
def test_what_serving_does_not_do_is_refused(change: dict[str, object], rule: str) -> None:
    model, _ = routed()
    with pytest.raises(MoecastError, match=rule):
        answer(plan_of(model, pp=2, ep=2).with_(**change))
