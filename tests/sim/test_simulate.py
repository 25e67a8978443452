"""`simulate` as a whole: what a Prediction says, what adds up, what is named, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.sim import (
    Forecaster,
    MadeBy,
    Plan,
    Prediction,
    Workload,
    bound_objective_s,
    draw_steps,
    load_model,
    simulate,
)
from moecast.sim.simulate import timed_steps
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace
from tests.sim.plan_cases import MODE_OR_DEFAULT, contiguous, random_slots, small_trace, tiny_model


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return load_cluster("dgx-h200", nodes=2, fabric="leaf-spine:2")


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return small_trace()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("network", ["bound", "fluid"])
@pytest.mark.parametrize("dispatch", MODE_OR_DEFAULT)
def test_breakdown_adds_up(
    cluster: Cluster, trace: RoutingTrace, phase: str, network: str, dispatch: str | None
) -> None:
    workload = Workload(phase=phase, tokens_per_rank=8 if phase == "prefill" else 1, steps=2)
    prediction = simulate(cluster, tiny_model(trace), contiguous(dispatch=dispatch), trace, workload, network=network)
    assert sum(prediction.breakdown_s.values()) == pytest.approx(prediction.step_time_s, abs=1e-12)
    assert min(prediction.breakdown_s.values()) >= -1e-12
    assert prediction.step_time_s == pytest.approx(np.mean(prediction.step_times_s), rel=1e-12)
    assert prediction.latency_s == prediction.step_time_s
    tokens = workload.tokens_per_rank * 16
    assert prediction.tokens_per_s == pytest.approx(tokens / prediction.step_time_s, rel=1e-9)
    assert prediction.tokens_per_s_per_gpu == pytest.approx(prediction.tokens_per_s / 16, rel=1e-12)
    assert prediction.fits == (prediction.memory_bytes["total"] <= prediction.memory_bytes["capacity"])
    assert sum(prediction.rank_load) == pytest.approx(tokens * 2 * 3)
    assert prediction.remote_fan_out <= prediction.fan_out <= 2
    assert prediction.fan_out_domains <= prediction.fan_out
    assert 0 < prediction.balance_p5 <= prediction.balance <= 1
    assert 0 < prediction.balance_pooled <= 1
    assert all(gain <= 1 for gain in prediction.gains.values())
    assert prediction.gains[prediction.bottleneck] == max(prediction.gains.values())
    assert prediction.overload >= 1 / prediction.balance - 1e-9
    sent = np.array(prediction.traffic_SD)
    assert sent.shape == (16, 16)
    if dispatch not in ("per_domain", "stay") and (dispatch or phase == "decode"):  # a relayed copy leaves twice
        assert sent.sum() - np.trace(sent) == pytest.approx(prediction.dispatch_bytes)


def test_same_seed_same_bytes(cluster: Cluster, trace: RoutingTrace) -> None:
    """Invariant 6."""
    workload = Workload(phase="prefill", tokens_per_rank=8, steps=2, seed=3)
    answers = {
        json.dumps(simulate(cluster, tiny_model(trace), contiguous(), trace, workload, seed=5).to_json())
        for _ in range(3)
    }
    assert len(answers) == 1


def test_idle_is_what_ranks_wait(cluster: Cluster) -> None:
    """All choices on one rank: the others wait for it, and it is named."""
    trace = small_trace(layers=1, choices=1)
    trace = replace(trace, experts_TLK=np.full_like(trace.experts_TLK, 5))
    model = replace(tiny_model(trace), hidden=4096, expert_intermediate=16384)
    plan = Plan.contiguous(layers=1, experts=16, choices=1, ep=16)
    prediction = simulate(cluster, model, plan, trace, Workload(phase="prefill", tokens_per_rank=16, steps=1))
    assert prediction.bottleneck == "waiting for uneven experts"
    assert prediction.gains["expert compute"] > 0.2
    assert prediction.balance == pytest.approx(1 / 16)
    assert prediction.breakdown_s["idle"] > 5 * prediction.breakdown_s["expert"]


def test_thin_links_are_named_and_doubling_them_saves_what_is_said(cluster: Cluster, trace: RoutingTrace) -> None:
    """The gain is that of a cluster whose NICs are twice as fast, which is built and asked anew."""

    def with_nics(factor: float) -> Cluster:
        links = tuple(
            replace(link, capacity_Bps=link.capacity_Bps * factor) if link.kind.startswith("nic") else link
            for link in cluster.links
        )
        return replace(cluster, links=links)

    workload = Workload(phase="prefill", tokens_per_rank=8, steps=1)
    asked = (tiny_model(trace), contiguous(), trace, workload)
    for rung in ("bound", "fluid"):
        thin = simulate(with_nics(1e-6), *asked, network=rung)
        assert thin.bottleneck == "NICs"
        assert thin.link_utilisation[0]["kind"].startswith("nic")
        twice = simulate(with_nics(2e-6), *asked, network=rung)
        assert thin.gains["NICs"] == pytest.approx(1 - twice.step_time_s / thin.step_time_s, rel=1e-9)
    assert not simulate(cluster, *asked, gains=False).gains


def test_what_the_fabric_costs_is_not_idle() -> None:
    """Even work on an 8:1 fabric: ranks wait for bytes, not for each other."""
    thin = load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:8")
    plan = Plan.contiguous(layers=3, experts=32, choices=2, ep=32)
    even = small_trace(tokens=6400, experts=32)
    tokens, layers, choices = np.indices(even.experts_TLK.shape)
    even = replace(even, experts_TLK=((tokens * 2 + choices + layers) % 32).astype(np.uint16))
    workload = Workload(phase="prefill", tokens_per_rank=64, steps=1)
    for rung in ("bound", "fluid"):
        prediction = simulate(thin, replace(tiny_model(even), hidden=8192), plan, even, workload, network=rung)
        parts = prediction.breakdown_s
        assert prediction.bottleneck == "leaf uplinks"
        assert parts["dispatch"] + parts["combine"] > 0.5 * prediction.step_time_s
        assert parts["idle"] < 0.2 * prediction.step_time_s


def test_fixed_costs_are_named(cluster: Cluster, trace: RoutingTrace) -> None:
    """A decode step of one token per rank moves next to nothing."""
    hardware = replace(cluster.hardware, collective_launch_s=1e-3)
    slow = replace(cluster, hardware=hardware)
    prediction = simulate(
        slow, tiny_model(trace), contiguous(), trace, Workload(phase="decode", tokens_per_rank=1, steps=1)
    )
    assert prediction.bottleneck == "launches of communication"


def test_bound_times_all_steps_and_fluid_a_sample(cluster: Cluster, trace: RoutingTrace) -> None:
    workload = Workload(phase="prefill", tokens_per_rank=2, steps=6)
    seen: list[tuple[int, int]] = []
    args = (cluster, tiny_model(trace), contiguous(), trace, workload)
    all_steps = simulate(*args, network="bound", progress=lambda done, of: seen.append((done, of)))
    sample = simulate(*args, max_fluid_steps=3)
    assert all_steps.steps_simulated == (0, 1, 2, 3, 4, 5)
    assert sample.steps_simulated == (0, 2, 5)
    assert len(sample.step_times_s) == 3
    runs = 6 + len(all_steps.gains)
    assert seen == [(done, runs) for done in range(1, runs + 1)]
    assert (all_steps.balance, all_steps.fan_out, all_steps.dispatch_bytes) == (
        sample.balance,
        sample.fan_out,
        sample.dispatch_bytes,
    )
    assert timed_steps(3, 10) == (0, 1, 2)


def test_warnings_and_labels(cluster: Cluster, trace: RoutingTrace) -> None:
    slots = contiguous().slots_DLGP.copy()
    slots[:, :, 0, 1] = 0
    plan = contiguous(slots_DLGP=slots, made_by=MadeBy(solver="eplb"))
    model = tiny_model(trace).with_dims(tiny_model(trace, shared=1))
    prediction = simulate(
        cluster,
        model,
        plan,
        trace,
        Workload(phase="decode", from_phase="prefill", tokens_per_rank=1, steps=1, reuse=True),
        network="bound",
        overrides=["dispatch = per_rank"],
    )
    assert prediction.labels == ("decode drawn from prefill routing",)
    assert prediction.model == "routing of tiny at the dimensions of tiny"
    text = "\n".join(prediction.warnings)
    for expected in ("override: dispatch = per_rank", "3 slots repeat", "rule round_robin", "reuse"):
        assert expected in text
    assert prediction.plan["wasted_slots"] == 3


def test_routing_of_another_shape_says_nothing_of_a_whole_step(cluster: Cluster, trace: RoutingTrace) -> None:
    model = tiny_model(trace).with_dims(load_model("deepseek-v3"))
    workload = Workload(phase="decode", tokens_per_rank=2, steps=1)
    prediction = simulate(cluster, model, contiguous(), trace, workload, network="bound")
    assert (prediction.routing_shape, prediction.model_shape) == ((3, 16, 2), (58, 256, 8))
    assert "routing of 3×16×2 (MoE layers × experts × choices), the model has 58×256×8" in prediction.labels[0]
    for name in ("step_time_s", "step_times_s", "tokens_per_s", "latency_s", "memory_bytes", "fits"):
        assert getattr(prediction, name) is None
    assert sum(prediction.breakdown_s.values()) == pytest.approx(prediction.layer_time_s)
    assert any("its own shape was not simulated" in warning for warning in prediction.warnings)
    assert Prediction.from_json(json.loads(json.dumps(prediction.to_json()))) == prediction


@pytest.mark.parametrize("tp", [1, 2])
def test_the_bottleneck_of_layers_is_one_of_what_is_shown(cluster: Cluster, trace: RoutingTrace, tp: int) -> None:
    """A vocabulary that dwarfs two layers is no part of their time, so it cannot limit them."""
    model = replace(tiny_model(trace), vocab=50_000_000)
    workload = Workload(phase="decode", tokens_per_rank=4, steps=1)
    layers = replace(model, named_shape=(60, *model.shape_LEK[1:]))
    asked = contiguous().with_(tp=tp, dp=16 // tp)
    whole, part = (simulate(cluster, shape, asked, trace, workload, network="bound") for shape in (model, layers))
    assert whole.bottleneck == "other compute"
    assert part.bottleneck != "other compute"
    assert part.layer_time_s == pytest.approx(whole.layer_time_s, rel=0.03)  # waits at the end differ
    judged = bound_objective_s(cluster, layers, trace, draw_steps(trace, workload, ranks=16 // tp), asked)
    assert judged == pytest.approx(model.layers * part.layer_time_s, rel=0.03)


def test_planning_on_the_measured_tokens_is_said(cluster: Cluster, trace: RoutingTrace) -> None:
    plan = contiguous()
    plan = plan.with_(made_by=replace(plan.made_by, trace_hash=trace.content_hash()))
    workload = Workload(phase="prefill", tokens_per_rank=2, steps=1)
    prediction = simulate(cluster, tiny_model(trace), plan, trace, workload, network="bound")
    assert any("very tokens" in warning for warning in prediction.warnings)


def test_model_that_does_not_fit_says_so(cluster: Cluster, trace: RoutingTrace) -> None:
    small = replace(cluster, hardware=replace(cluster.hardware, memory_bytes=1000))
    workload = Workload(phase="prefill", tokens_per_rank=2, steps=1)
    prediction = simulate(small, tiny_model(trace), contiguous(), trace, workload, network="bound")
    assert not prediction.fits
    assert any("does not fit" in warning for warning in prediction.warnings)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pp": 2, "gpu_of_rank": tuple(range(32))}, "ranks = 32: "),
        ({"etp": 2, "gpu_of_rank": tuple(range(32))}, "ranks = 32: "),
        ({"cp": 2, "dispatch": "stay"}, "cp = 2: "),
        ({"microbatches": 2, "schedule": "two-batch"}, "schedule = 'two-batch': stages of a pipeline"),
        ({"tp": 2, "dispatch": "stay"}, "tp = 2: tokens that stay"),
        ({"schedule": "psychic"}, "schedule = 'psychic': one of sequential"),
        ({"choices": 3}, "choices: the plan has 3, the model tiny has 2"),
        ({"layer_ids": (2, 4, 5)}, "plan: layer_ids = '2, 4-5': the MoE layers of tiny are 1-3"),
        ({"gpu_of_rank": (*range(15), 99)}, "gpu_of_rank[15] = 99: 2 x dgx-h200"),
        ({"gpu_of_rank": (*range(15), 0)}, "two ranks stand on one GPU"),
    ],
)
def test_questions_without_an_answer(
    cluster: Cluster, trace: RoutingTrace, changes: dict[str, object], line: str
) -> None:
    workload = Workload(phase="prefill", tokens_per_rank=2, steps=1)
    with pytest.raises(MoecastError) as error:
        simulate(cluster, tiny_model(trace), contiguous(**changes), trace, workload)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_more_refusals(cluster: Cluster, trace: RoutingTrace) -> None:
    workload = Workload(phase="prefill", tokens_per_rank=2, steps=1)
    model = tiny_model(trace)
    missing = contiguous().slots_DLGP.copy()
    missing[0, 1, 3] = -1
    cases = {
        "network = 'packet': one of bound, fluid": {"network": "packet"},
        "max_fluid_steps = 0": {"max_fluid_steps": 0},
        "layer 1 of EP group 0 misses expert 3": {"plan": contiguous(slots_DLGP=missing)},
        "ranks = 32: ": {"plan": Plan.contiguous(layers=3, experts=16, choices=2, ep=32)},
        "layers: the trace has 2, the model tiny has 3": {"trace": small_trace(layers=2)},
    }
    for line, options in cases.items():
        question = {"plan": contiguous(), "trace": trace, **options}
        with pytest.raises(MoecastError) as error:
            simulate(
                cluster,
                model,
                question.pop("plan"),
                question.pop("trace"),
                workload,
                **question,  # type: ignore[arg-type]
            )
        assert line in str(error.value)


def test_one_rank_dispatches_nothing(trace: RoutingTrace) -> None:
    plan = Plan.contiguous(layers=3, experts=16, choices=2, ep=1)
    workload = Workload(phase="prefill", tokens_per_rank=8, steps=1)
    prediction = simulate(load_cluster("dgx-h200"), tiny_model(trace), plan, trace, workload)
    assert prediction.breakdown_s["dispatch"] == prediction.breakdown_s["combine"] == 0
    assert prediction.dispatch_bytes == 0


def test_forecaster_agrees_with_simulate(cluster: Cluster, trace: RoutingTrace) -> None:
    """Also after plans with other slots, replica rules and modes went through it."""
    model, workload = tiny_model(trace), Workload(phase="prefill", tokens_per_rank=4, steps=3)
    steps = draw_steps(trace, workload, ranks=16)
    rng = np.random.default_rng(0)
    slots = np.stack([random_slots(rng, 16, 32) for _ in range(3)]).reshape(1, 3, 16, 2)
    forecaster = Forecaster(cluster, model, trace, steps)
    for plan in (
        contiguous(),
        contiguous(slots_DLGP=slots),
        contiguous(slots_DLGP=slots, replica_rule="nearest"),
        contiguous(slots_DLGP=slots, replica_rule="fixed"),
        contiguous(dispatch="nccl"),
        contiguous(),
    ):
        expected = simulate(cluster, model, plan, trace, workload, network="bound")
        assert tuple(forecaster.step_times(plan)) == expected.step_times_s
        assert forecaster.objective_s(plan) == pytest.approx(expected.step_time_s, rel=1e-12)
        assert bound_objective_s(cluster, model, trace, steps, plan) == forecaster.objective_s(plan)
