"""Ranks that share tokens: with sequence parallelism each keeps a part of them, without it all."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Exchange, PlacedModel, Plan, find_rung, simulate_step, step_program
from moecast.sim.collectives.timing import time_collective
from moecast.sim.forward import ForwardPass
from moecast.sim.plan_json import plan_fields
from moecast.topology import load_cluster
from moecast.traces import NO_CHOICE
from tests.sim.clusters import by_roofline
from tests.sim.plan_cases import random_step, small_trace, tiny_model

CLUSTER = load_cluster("dgx-h200", nodes=2)
TRACE = small_trace(tokens=400)
MODEL = tiny_model(TRACE)


def plan_of(*, ep: int = 16, groups: int = 1, **changes: object) -> Plan:
    plan = Plan.contiguous(
        layers=TRACE.meta.layers, experts=TRACE.meta.experts, choices=TRACE.meta.choices, ep=ep, groups=groups
    )
    return plan.with_(gpu_of_rank=tuple(range(16)), **changes)


def exchanges(plan: Plan, *, tokens: int = 64, phase: str = "prefill", seed: int = 0) -> list[Exchange]:
    step = random_step(np.random.default_rng(seed), TRACE, ranks=plan.dp, tokens=tokens, phase=phase)
    program = step_program(CLUSTER, MODEL, plan, TRACE, step)
    return [task for task in program.tasks if isinstance(task, Exchange)]


def in_order(plan: Plan) -> list[tuple[str, int]]:
    return [(task.kind, task.layer) for task in exchanges(plan) if task.setup_s and len(task.fill().bytes_F)]


def test_experts_of_the_ranks_that_share_tokens_are_summed_with_nothing_sent_before() -> None:
    """TEP: attention is cut over 16 ranks, which hold all experts between them. Layer 0 of the model is dense."""
    plan = plan_of(tp=16, sequence_parallel=False)
    by_layer = [("other", layer) for layer in (-1, -1)]
    by_layer += [part for layer in range(3) for part in (("other", layer), ("combine", layer))]
    assert in_order(plan) == by_layer
    placed = PlacedModel.of(CLUSTER, MODEL, plan, phase="prefill")
    step = random_step(np.random.default_rng(0), TRACE, ranks=1, tokens=64, phase="prefill")
    whole = ForwardPass.of(placed, TRACE, step)
    assert whole.dispatch_bytes() == 0
    assert whole.traffic.load_LGP.sum() == (TRACE.experts_TLK[step.token_T] != NO_CHOICE).sum()  # each served once


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(("ep", "groups"), [(8, 2), (16, 1)])
def test_gathered_tokens_are_sent_to_every_rank_and_their_sums_come_back(phase: str, ep: int, groups: int) -> None:
    """All-gather and reduce-scatter: a domain has 8 GPUs; a far domain is sent one copy and spreads it."""
    plan = plan_of(ep=ep, groups=groups, dispatch="all_gather")
    placed = PlacedModel.of(CLUSTER, MODEL, plan, phase=phase)
    step = random_step(np.random.default_rng(0), TRACE, ranks=16, tokens=64, phase=phase)
    whole = ForwardPass.of(placed, TRACE, step)
    copies = 64 * 3 * (ep - 1)  # over three MoE layers
    assert whole.dispatch_bytes() == pytest.approx(copies * placed.dispatch_flows.copy_bytes)
    sent = [task for task in exchanges(plan, phase=phase) if task.kind in ("dispatch", "combine")]
    assert [task.kind for task in sent] == ["dispatch", "combine"] * 3
    out, back = (
        float(task.fill().bytes_F.sum()) / placed_flows.copy_bytes
        for task, placed_flows in zip(sent, (placed.dispatch_flows, placed.combine_flows), strict=False)
    )
    assert out == pytest.approx(back)


def test_a_named_dispatch_sends_each_token_once_and_gathers_it_again() -> None:
    assert in_order(plan_of(tp=16, sequence_parallel=False, dispatch="per_domain")) == [
        ("other", -1),
        ("other", -1),  # sums of the dense layer's attention and MLP
        ("other", 0),
        ("dispatch", 0),
        ("combine", 0),  # attention's sums, and experts
        ("other", 1),
        ("other", 1),
        ("dispatch", 1),
        ("combine", 1),  # what came home is gathered
        ("other", 2),
        ("other", 2),
        ("dispatch", 2),
        ("combine", 2),
        ("other", -1),  # and for the logits
    ]


def test_experts_by_width_over_the_ranks_that_share_tokens_are_only_summed() -> None:
    plan = plan_of(ep=1, groups=2, tp=8, etp=8, sequence_parallel=False)
    by_layer = [("other", layer) for layer in (-1, -1)]
    by_layer += [part for layer in range(3) for part in (("other", layer), ("combine", layer))]
    assert in_order(plan) == by_layer
    placed = PlacedModel.of(CLUSTER, MODEL, plan, phase="prefill")
    step = random_step(np.random.default_rng(0), TRACE, ranks=2, tokens=64, phase="prefill")
    assert ForwardPass.of(placed, TRACE, step).dispatch_bytes() == 0


@pytest.mark.parametrize("tokens", [8, 512, 4096])
@pytest.mark.parametrize("rung", ["bound", "fluid"])
def test_a_sum_takes_what_the_collective_takes_by_itself(rung: str, tokens: int) -> None:
    node = by_roofline("dgx-h200", nodes=1)
    plan = Plan.contiguous(layers=3, experts=16, choices=2, ep=8).with_(tp=8)
    step = random_step(np.random.default_rng(0), TRACE, ranks=1, tokens=tokens, phase="prefill")
    size = tokens * 2 * MODEL.hidden
    [alone] = time_collective(node, "all-reduce", [size], rung=find_rung(rung))
    program = step_program(node, MODEL, plan.with_(sequence_parallel=False), TRACE, step)
    times = find_rung(rung).run(program)
    sums = next(n for n, task in enumerate(program.tasks) if isinstance(task, Exchange) and task.kind == "other")
    took_s = times.leave_S[sums].max() - times.enter_S[sums].max()
    assert took_s == pytest.approx(alone.time_s, rel=1e-9)


@settings(deadline=None, max_examples=15)
@given(
    tp=st.sampled_from([1, 2, 4, 8, 16]),
    ep=st.sampled_from([2, 8, 16]),
    phase=st.sampled_from(["prefill", "decode"]),
    schedule=st.sampled_from(["sequential", "two-batch", "token-weave"]),
    seed=st.integers(0, 9),
)
def test_bound_is_below_fluid_and_nothing_changes_without_tensor_parallelism(
    tp: int, ep: int, phase: str, schedule: str, seed: int
) -> None:
    schedule = schedule if tp > 1 else "sequential"
    plan = plan_of(ep=ep, groups=16 // ep, tp=tp, sequence_parallel=False, schedule=schedule)
    step = random_step(np.random.default_rng(seed), TRACE, ranks=plan.dp, tokens=60, phase=phase)
    bound, fluid = (simulate_step(CLUSTER, MODEL, plan, TRACE, step, network=rung)[1] for rung in ("bound", "fluid"))
    assert bound.step_time_s <= fluid.step_time_s * (1 + 1e-9)
    if tp == 1:
        split = simulate_step(CLUSTER, MODEL, plan.with_(sequence_parallel=True), TRACE, step, network="fluid")[1]
        assert split.step_time_s == fluid.step_time_s


def test_tokens_are_woven_only_where_sums_are_all_reduced() -> None:
    for plan in (plan_of(tp=8, schedule="token-weave"), plan_of(sequence_parallel=False, schedule="token-weave")):
        with pytest.raises(MoecastError, match="token-weave': needs ranks that share tokens and keep all of them"):
            exchanges(plan)


def test_a_plan_file_says_it_and_without_it_means_its_part() -> None:
    plan = plan_of(tp=4, sequence_parallel=False)
    value = json.loads(json.dumps(plan.to_json()))
    assert plan_fields(value)["sequence_parallel"] is False
    del value["sequence_parallel"]
    assert plan_fields(value)["sequence_parallel"] is True
    with pytest.raises(MoecastError, match="sequence_parallel"):
        plan_fields(value | {"sequence_parallel": 1})
    with pytest.raises(ValueError, match="sequence_parallel = 'no': true or false"):
        plan_of(sequence_parallel="no")
