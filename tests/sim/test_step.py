"""One step: hand-computed cases, and the invariants that hold on every rung."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim import (
    Compute,
    Exchange,
    PlacedModel,
    Plan,
    Step,
    Workload,
    compute,
    draw_steps,
    simulate,
    simulate_step,
    step_program,
)
from moecast.sim.forward import ForwardPass
from moecast.sim.schedules import SCHEDULES, Schedule
from moecast.topology import Cluster, Gpu
from moecast.traces import PHASES, RoutingTrace, TraceMeta
from tests.sim.clusters import by_roofline
from tests.sim.plan_cases import MODE_OR_DEFAULT, Question, contiguous, questions, small_trace, tiny_model


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return by_roofline("dgx-h200", nodes=2, fabric="leaf-spine:2")


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return small_trace()


def one_choice_trace(experts: list[int]) -> RoutingTrace:
    """One token per entry, one layer, one choice."""
    n = len(experts)
    return RoutingTrace(
        meta=TraceMeta(model="hand", layers=1, experts=3, choices=1),
        experts_TLK=np.array(experts, np.uint16).reshape(n, 1, 1),
        sequence_T=np.arange(n, dtype=np.uint32),
        position_T=np.zeros(n, np.uint32),
        phase_T=np.full(n, PHASES.index("prefill"), np.uint8),
        topic_T=np.full(n, -1, np.int16),
    )


def one_token_step() -> Step:
    return Step(
        token_T=np.zeros(1, np.int64), source_T=np.zeros(1, np.int32), context_T=np.ones(1, np.int64), phase="prefill"
    )


def capacity(cluster: Cluster, *kinds: str) -> float:
    pairs = zip(cluster.capacity_J, cluster.link_kind_J, strict=True)
    return float(min(capacity for capacity, kind in pairs if kind in kinds))


def latency(cluster: Cluster, source: int, destination: int) -> float:
    return float(cluster.routes([source], [destination]).latency_F[0])


@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_one_token_across_nvlink_by_hand(network: str) -> None:
    """Rank 0's token is served on rank 2: every stage of both ranks, worked out here."""
    cluster, trace = by_roofline("dgx-h200"), one_choice_trace([2])
    model = tiny_model(trace, dense_layers=0)
    plan = Plan.contiguous(layers=1, experts=3, choices=1, ep=3).with_(dispatch="per_rank")
    program, times = simulate_step(cluster, model, plan, trace, one_token_step(), network=network)
    hardware, tokens = cluster.hardware, np.array([1, 0, 0])
    before_G = (
        compute.embedding_seconds(model, hardware, tokens)
        + compute.norm_seconds(model, hardware, tokens)
        + compute.attention_seconds(model, hardware, phase="prefill", tokens_G=tokens, context_sum_G=tokens)
        + compute.router_seconds(model, hardware, tokens)
    )
    start = before_G.max() + hardware.count_exchange_s + hardware.collective_launch_s
    wire = capacity(cluster, "nvlink-out", "nvlink-in")
    arrives = start + model.copy_bytes("bf16") / wire + latency(cluster, 0, 2)
    expert_G = compute.expert_seconds(model, hardware, np.array([[0], [0], [1]]), phase="prefill")
    sent = arrives + expert_G[2] + hardware.collective_launch_s
    back = sent + model.copy_bytes("bf16") / wire + latency(cluster, 2, 0)
    head_G = compute.head_seconds(model, hardware, tokens)
    idle_rank = start + expert_G[1] + hardware.collective_launch_s
    np.testing.assert_allclose(times.leave_SG[-1], [back + head_G[0], idle_rank, sent], rtol=1e-12)
    assert [stage.kind for stage in program.tasks] == [
        "other",
        "attention",
        "router",
        "dispatch",
        "dispatch",
        "expert",
        "combine",
        "other",
    ]


@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_one_token_through_a_relay_by_hand(network: str) -> None:
    """GPU 0's token is served on GPU 9: over the rail to GPU 8, then NVLink; the result comes back the same way."""
    cluster, trace = by_roofline("dgx-h200", nodes=2, fabric="single-switch"), one_choice_trace([2])
    model = tiny_model(trace, dense_layers=0)
    plan = Plan.contiguous(layers=1, experts=3, choices=1, ep=3).with_(gpu_of_rank=(0, 8, 9), dispatch="per_domain")
    _, times = simulate_step(cluster, model, plan, trace, one_token_step(), network=network)
    hardware, copy = cluster.hardware, model.copy_bytes("bf16")
    rail_s = copy / capacity(cluster, "nic-out", "pcie-out") + latency(cluster, 0, 8)
    inside_s = copy / capacity(cluster, "nvlink-out") + latency(cluster, 8, 9)
    # Stages: embedding, attention, router, counts, dispatch, expert, combine, head.
    dispatched = times.enter_SG[4, 0] + hardware.collective_launch_s
    assert times.leave_SG[4, 1] == pytest.approx(dispatched, rel=1e-12)  # it waits for copies of its own only
    assert times.leave_SG[4, 2] == pytest.approx(dispatched + rail_s + inside_s, rel=1e-12)
    # On the way back the chunk is the whole result: the rail leg starts when all of it has come.
    sent = times.leave_SG[5, 2] + hardware.collective_launch_s
    assert times.leave_SG[6, 0] == pytest.approx(sent + inside_s + rail_s, rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(questions(modes=MODE_OR_DEFAULT))
def test_bound_is_below_fluid_for_every_rank(question: Question) -> None:
    """Invariants 2, 3 and 5 on whole steps: same bytes on every link, clocks that rise, bound <= fluid."""
    program, low = simulate_step(*question_args(question), network="bound")
    _, fair = simulate_step(*question_args(question), network="fluid")
    slack = 1e-9 * fair.step_time_s
    assert (low.leave_SG <= fair.leave_SG + slack).all()
    np.testing.assert_allclose(low.link_bytes_J, fair.link_bytes_J, rtol=1e-12)
    given_J = np.zeros(len(question.cluster.links))
    gpu_G = np.array(question.plan.gpu_of_rank)
    for flows in (stage.fill() for stage in program.tasks if isinstance(stage, Exchange)):
        routes = question.cluster.routes(gpu_G[flows.source_rank_F], gpu_G[flows.destination_rank_F])
        bytes_X = np.repeat(flows.bytes_F, np.diff(routes.offsets_F1)) * routes.share_X
        given_J += np.bincount(routes.link_X, bytes_X, len(given_J))
    np.testing.assert_allclose(fair.link_bytes_J[: len(given_J)], given_J, rtol=1e-12)
    assert (fair.link_bytes_J <= program.capacity_J * fair.step_time_s * (1 + 1e-9)).all()
    for times in (low, fair):
        assert (times.leave_SG >= times.enter_SG).all()
        np.testing.assert_array_equal(times.enter_SG[1:], times.leave_SG[:-1])


def question_args(question: Question) -> tuple[object, ...]:
    return question.cluster, question.model, question.plan, question.trace, question.step


@settings(max_examples=30, deadline=None)
@given(questions(modes=MODE_OR_DEFAULT, routing="spray"), st.integers(0, 2**31))
@pytest.mark.parametrize("network", ["bound", "fluid"])
def test_renaming_gpus_changes_no_time(network: str, question: Question, seed: int) -> None:
    """Invariant 9 under hash-free paths: the same machines under other ids."""
    new_G = np.random.default_rng(seed).permutation(question.cluster.n_gpus)
    nodes = tuple(
        replace(node, id=int(new_G[node.id])) if isinstance(node, Gpu) else node for node in question.cluster.nodes
    )
    cluster = replace(question.cluster, nodes=nodes)
    plan = question.plan.with_(gpu_of_rank=tuple(int(new_G[gpu]) for gpu in question.plan.gpu_of_rank))
    _, one = simulate_step(*question_args(question), network=network)
    _, two = simulate_step(cluster, question.model, plan, question.trace, question.step, network=network)
    np.testing.assert_allclose(one.leave_SG, two.leave_SG, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(questions(modes=MODE_OR_DEFAULT), st.sampled_from([1.5, 2.0, 4.0]))
def test_faster_links_never_slow_the_bound(question: Question, factor: float) -> None:
    links = tuple(replace(link, capacity_Bps=link.capacity_Bps * factor) for link in question.cluster.links)
    program, slow = simulate_step(*question_args(question), network="bound")
    faster = replace(question, cluster=replace(question.cluster, links=links))
    _, fast = simulate_step(*question_args(faster), network="bound")
    assert fast.step_time_s <= slow.step_time_s * (1 + 1e-12)
    assert program.n_ranks == question.plan.ranks


@settings(max_examples=40, deadline=None)
@given(questions(modes=("per_choice", "per_rank", "nccl"), rules=("round_robin",)))
def test_more_tokens_never_take_less_time_by_the_bound(question: Question) -> None:
    """Every token twice: each rank computes and sends at least as much."""
    step = question.step
    twice = replace(
        step,
        token_T=step.token_T.repeat(2),
        source_T=step.source_T.repeat(2),
        context_T=step.context_T.repeat(2),
        last_T=None if step.last_T is None else step.last_T.repeat(2),
    )
    once = Plan.contiguous(
        layers=question.plan.layers,
        experts=question.plan.experts,
        choices=question.plan.choices,
        ep=question.plan.ep,
        groups=question.plan.groups,
    ).with_(dispatch=question.plan.dispatch, gpu_of_rank=question.plan.gpu_of_rank)
    args = (question.cluster, question.model, once, question.trace)
    short = simulate_step(*args, step, network="bound")[1].step_time_s
    long = simulate_step(*args, twice, network="bound")[1].step_time_s
    assert short <= long * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(questions(modes=("per_rank", "per_choice")))
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_every_schedule_runs_every_layer_in_order(schedule: Schedule, question: Question) -> None:
    placed = PlacedModel.of(question.cluster, question.model, question.plan, phase=question.step.phase)
    forward = ForwardPass.of(placed, question.trace, question.step)
    if schedule.supports(forward):
        return
    stages = list(schedule.tasks(forward))
    batches = {stage.microbatch for stage in stages}
    for moe, batch in product(range(question.model.layers), batches):
        own = [stage for stage in stages if stage.layer == moe and stage.microbatch == batch]
        kinds = [stage.kind for stage in own if stage.kind != "other"]
        order = [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before]
        alone = question.plan.ep == 1
        around = (
            ("attention", "router", "expert") if alone else ("attention", "router", "dispatch", "expert", "combine")
        )
        assert tuple(order) == around
    attending = {(stage.layer, stage.microbatch) for stage in stages if stage.kind == "attention"}
    assert len({layer for layer, _ in attending if layer >= 0}) == question.model.layers


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_tensor_parallel_attention(cluster: Cluster, trace: RoutingTrace, phase: str) -> None:
    """Pairs of ranks share tokens: hidden vectors travel inside the pair, each token is dispatched once."""
    model, plan = tiny_model(trace), contiguous(tp=2)
    [step] = draw_steps(trace, Workload(phase=phase, tokens_per_rank=6 if phase == "prefill" else 3, steps=1), ranks=8)
    forward = ForwardPass.of(PlacedModel.of(cluster, model, plan, phase=phase), trace, step)
    each = step.n_tokens // 8
    np.testing.assert_array_equal(forward.traffic.tokens_LG[0].reshape(8, 2), [[-(-each // 2), each // 2]] * 8)
    program = step_program(cluster, model, plan, trace, step)
    shared = [stage for stage in program.tasks if isinstance(stage, Exchange) and stage.kind == "other"]
    logits = shared.pop()  # only gathered: every rank samples from its part of the vocabulary
    assert len(shared) == 2 * (model.n_layers + len(model.dense_layer_ids))
    wanted = step.n_tokens if step.last_T is None else int(step.last_T.sum())
    assert logits.fill().bytes_F.sum() == wanted * 2 * model.hidden
    for index, exchange in enumerate(shared):
        flows = exchange.fill()
        np.testing.assert_array_equal(flows.source_rank_F // 2, flows.destination_rank_F // 2)
        whose_F = flows.destination_rank_F if index % 2 else flows.source_rank_F
        tokens_F = forward.traffic.tokens_LG[0][whose_F]
        np.testing.assert_array_equal(flows.bytes_F, tokens_F * 2 * model.hidden)
    [attention] = [s for s in program.tasks if isinstance(s, Compute) and s.kind == "attention"][:1]
    assert np.ptp(attention.seconds_R.reshape(8, 2), axis=1).max() < 1e-7  # only their norms differ
    prediction = simulate(
        cluster, model, plan, trace, Workload(phase=phase, tokens_per_rank=2, steps=1), network="bound"
    )
    assert sum(prediction.breakdown_s.values()) == pytest.approx(prediction.step_time_s, abs=1e-12)


def test_stay_charges_for_the_context(cluster: Cluster, trace: RoutingTrace) -> None:
    """Keys and values reach every rank: before each later layer's attention in prefill, once in decode."""
    model = tiny_model(trace)
    for phase, count in (("prefill", 2), ("decode", 1)):
        [step] = draw_steps(trace, Workload(phase=phase, tokens_per_rank=2, steps=1), ranks=16)
        program = step_program(cluster, model, contiguous(dispatch="stay"), trace, step)
        shares = [s for s in program.tasks if isinstance(s, Exchange) and s.kind == "other"]
        assert len(shares) == count
        total = 0.0
        for exchange in shares:
            flows = exchange.fill()
            reaches = (flows.waiter_F >= 0) & (flows.bytes_F > 0)
            total += flows.bytes_F[reaches].sum()
        assert total == step.n_tokens * 2 * 15 * model.kv_bytes_per_token
