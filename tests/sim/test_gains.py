"""What twice of a resource saves: the same as building it and asking anew, with its sign, and nothing left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim import Plan, Prediction, Workload, draw_steps, gains, simulate, stage_tasks, step_program
from moecast.sim.collectives import carriers
from moecast.sim.cost import kernels_on
from moecast.sim.forward import ForwardPass
from moecast.sim.gains import bottleneck_of, listed_gains, marginal_gains
from moecast.sim.network import Bound
from moecast.sim.program import Compute
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace
from tests.sim.clusters import by_roofline
from tests.sim.plan_cases import contiguous, small_trace, tiny_model


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return by_roofline("dgx-h200", nodes=2, fabric="leaf-spine:4")


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return small_trace()


def with_hardware(cluster: Cluster, **changes: float) -> Cluster:
    return replace(cluster, hardware=replace(cluster.hardware, **changes))


def twice_the_nics(cluster: Cluster) -> Cluster:
    links = (
        replace(link, capacity_Bps=2 * link.capacity_Bps) if link.kind.startswith("nic") else link
        for link in cluster.links
    )
    return replace(cluster, links=tuple(links))


def twice_nics_and_pcie(cluster: Cluster) -> Cluster:
    links = (
        replace(link, capacity_Bps=2 * link.capacity_Bps) if link.kind.startswith(("nic", "pcie")) else link
        for link in cluster.links
    )
    return replace(cluster, links=tuple(links))


@pytest.mark.parametrize("network", ["bound", "fluid"])
@pytest.mark.parametrize("pcie", [1.1, 3.0])
def test_nics_and_their_pcie_together(cluster: Cluster, trace: RoutingTrace, network: str, pcie: float) -> None:
    """Nearly as fast as each other, neither alone gains much: both do. Where PCIe is far wider, NICs alone do."""
    nic = next(link.capacity_Bps for link in cluster.links if link.kind == "nic-out") / 100
    wide = {"nic": nic, "pcie": pcie * nic}
    links = (replace(link, capacity_Bps=wide.get(link.kind.split("-")[0], link.capacity_Bps)) for link in cluster.links)
    thin = replace(cluster, links=tuple(links))
    asked = (
        tiny_model(trace),
        contiguous(dispatch="per_choice"),
        trace,
        Workload(phase="prefill", tokens_per_rank=40, steps=1, reuse=True),
    )
    plain = simulate(thin, *asked, network=network, max_fluid_steps=1)
    built = simulate(twice_nics_and_pcie(thin), *asked, network=network, max_fluid_steps=1, gains=False)
    gain = 1 - built.step_times_s[0] / plain.step_times_s[0]  # type: ignore[index]
    if pcie < 2:
        assert plain.bottleneck == "NICs with PCIe"
        assert plain.gains["NICs with PCIe"] == pytest.approx(gain, abs=1e-9)
        assert plain.gains["NICs"] < 0.15 < 0.3 < gain
    else:
        assert plain.bottleneck == "NICs"
        assert plain.gains["NICs"] == pytest.approx(gain, abs=1e-9)
        assert plain.gains["NICs with PCIe"] == pytest.approx(gain, abs=1e-9)


def half_the_launches(cluster: Cluster) -> Cluster:
    names = ("collective_launch_s", "count_exchange_s", "barrier_s")
    return with_hardware(cluster, **{name: getattr(cluster.hardware, name) / 2 for name in names})


def half_the_copy_issue(cluster: Cluster) -> Cluster:
    return with_hardware(cluster, message_s=cluster.hardware.message_s / 2)


@pytest.mark.parametrize("network", ["bound", "fluid"])
@pytest.mark.parametrize("dispatch", ["per_choice", "per_domain", "nccl"])
@pytest.mark.parametrize(
    ("name", "better"),
    [("NICs", twice_the_nics), ("launches of communication", half_the_launches), ("copy issue", half_the_copy_issue)],
)
def test_a_gain_is_that_of_a_cluster_built_so(
    cluster: Cluster,
    trace: RoutingTrace,
    network: str,
    dispatch: str,
    name: str,
    better: Callable[[Cluster], Cluster],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow launches, NICs and messages, so that each may save something."""
    slow = with_hardware(cluster, message_s=1e-6, collective_launch_s=3e-5)
    asked = (
        tiny_model(trace),
        contiguous(dispatch=dispatch),
        trace,
        Workload(phase="prefill", tokens_per_rank=40, steps=1, reuse=True),
    )
    plain = simulate(slow, *asked, network=network, max_fluid_steps=1)
    if better is half_the_launches:  # a proxy's post is launching, too, and stands in no hardware table
        monkeypatch.setattr(stage_tasks, "NETWORK_POST_s", stage_tasks.NETWORK_POST_s / 2)
    built = simulate(better(slow), *asked, network=network, max_fluid_steps=1, gains=False)
    if name == "copy issue" and dispatch != "per_choice":
        assert name not in plain.gains  # nothing issues copies one by one
    else:
        gain = 1 - built.step_times_s[0] / plain.step_times_s[0]  # type: ignore[index]
        assert plain.gains[name] == pytest.approx(gain, abs=1e-9)


@pytest.mark.parametrize(("dispatch", "phase"), [("per_choice", "decode"), ("per_rank", "prefill")])
def test_copies_that_cost_half_are_asked_of_fitted_costs(
    dispatch: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gain is that of kernels whose fitted cost of a copy is half; the hardware table's own is not read there."""
    cluster = kernels_on(load_cluster("dgx-h100", nodes=1), kernels="fitted")
    trace = small_trace(tokens=8000, experts=64, choices=6)
    model = replace(tiny_model(trace), hidden=1024, expert_intermediate=64)
    plan = Plan.contiguous(layers=3, experts=64, choices=6, ep=8).with_(dispatch=dispatch)
    work = Workload(phase=phase, tokens_per_rank=2048, steps=1, reuse=True)
    plain = simulate(cluster, model, plan, trace, work, network="bound")
    unread = simulate(with_hardware(cluster, message_s=1e-3), model, plan, trace, work, network="bound", gains=False)
    assert unread.step_times_s == plain.step_times_s
    find = carriers.find_parameters

    def halved(*key: str) -> SimpleNamespace:
        found = find(*key).parameters
        names = [name for name in ("token_s", "copy_s", "byte_s") if hasattr(found, name)]
        return SimpleNamespace(parameters=replace(found, **{name: getattr(found, name) / 2 for name in names}))

    monkeypatch.setattr(carriers, "find_parameters", halved)
    cheap = simulate(cluster, model, plan, trace, work, network="bound", gains=False)
    gain = 1 - cheap.step_times_s[0] / plain.step_times_s[0]  # type: ignore[index]
    assert plain.gains["copy issue"] == pytest.approx(gain, abs=1e-9)
    assert gain > 0.01


@pytest.mark.parametrize("schedule", ["two-batch", "token-weave", "chunked:2"])
def test_schedules_that_overlap_run_by_fitted_costs(trace: RoutingTrace, schedule: str) -> None:
    """Work beside communication has fewer SMs; communication has its own all the same."""
    cluster = kernels_on(load_cluster("dgx-h200", nodes=2), kernels="fitted")
    tensor = {"tp": 8, "sequence_parallel": False} if schedule == "token-weave" else {}
    work = Workload(phase="prefill", tokens_per_rank=40, steps=1, reuse=True)
    asked = tiny_model(trace), contiguous(schedule=schedule, dispatch="per_rank", **tensor), trace, work
    assert simulate(cluster, *asked, network="bound", gains=False).step_time_s > 0


@pytest.mark.parametrize("network", ["bound", "fluid"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_what_is_not_timed_again_could_not_save_as_much(
    cluster: Cluster, trace: RoutingTrace, monkeypatch: pytest.MonkeyPatch, network: str, phase: str
) -> None:
    left_out = 0
    for tokens in (1, 64):
        workload = Workload(phase=phase, tokens_per_rank=tokens, steps=1, reuse=True)
        args = cluster, tiny_model(trace), contiguous(), trace, workload
        found = {}
        for least in (0.0, gains.LEAST, 0.05, 0.1):
            with monkeypatch.context() as patch:
                patch.setattr(gains, "LEAST", least)
                found[least] = simulate(*args, network=network).gains
            missing = found[0.0].keys() - found[least].keys()
            assert {name: found[0.0][name] for name in found[least]} == found[least]
            assert max((found[0.0][name] for name in missing), default=0.0) < max(least, 1e-9)
            left_out += len(missing)
    assert left_out > 2


@given(st.dictionaries(st.text(max_size=5), st.floats(1e-6, 1e3), max_size=8), st.floats(1e-6, 1e3))
@settings(deadline=None)
def test_signs_are_kept_and_the_largest_is_named(times_s: dict[str, float], step_s: float) -> None:
    found = marginal_gains(times_s, step_s)
    assert found.keys() == times_s.keys()
    for name, time_s in times_s.items():
        assert (found[name] < 0) == (time_s > step_s)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    best = bottleneck_of(found)
    if not found:
        assert best == "nothing tried"
    elif min(times_s.values()) >= step_s:
        assert best == "no single resource"
    else:
        assert times_s[best] == min(times_s.values())
    assert listed_gains(found) == {name: gain for name, gain in found.items() if abs(gain) >= 0.01}


def test_traffic_is_counted_once(cluster: Cluster, trace: RoutingTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-timing lays flows out anew, but where tokens go does not depend on how fast they get there."""
    counted = []
    count = ForwardPass.of
    monkeypatch.setattr(ForwardPass, "of", lambda *args: counted.append(1) or count(*args))
    workload = Workload(phase="prefill", tokens_per_rank=8, steps=3)
    prediction = simulate(cluster, tiny_model(trace), contiguous(), trace, workload, network="bound")
    assert isinstance(prediction, Prediction)
    assert prediction.gains
    assert len(counted) == 3


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_even_experts_are_even_over_the_ep_group_and_not_over_ranks_that_share_tokens(
    cluster: Cluster, trace: RoutingTrace, sequence_parallel: bool
) -> None:
    model, plan = tiny_model(trace), contiguous(tp=2, sequence_parallel=sequence_parallel)
    work = Workload(phase="prefill", tokens_per_rank=1000, steps=1, reuse=True)
    few = trace.experts_TLK % 6  # ten experts of sixteen have nothing to do
    trace = replace(trace, experts_TLK=np.where(few == few[:, :, ::-1], trace.experts_TLK, few).astype(np.uint16))
    slow = {"bf16": 1e12, "fp8": 2e12}
    cluster = replace(cluster, hardware=replace(cluster.hardware, peak_flop_per_s=slow))
    [step] = draw_steps(trace, work, ranks=plan.dp)
    program = step_program(cluster, model, plan, trace, step)
    even = [
        replace(task, seconds_R=np.full(task.n_ranks, task.seconds_R.mean()))
        if isinstance(task, Compute) and task.kind == "expert"
        else task
        for task in program.tasks
    ]
    plain_s, even_s = (Bound().run(each).step_time_s for each in (program, replace(program, tasks=tuple(even))))
    found = simulate(cluster, model, plan, trace, work, network="bound").gains[gains.PEERS]
    assert found == pytest.approx(1 - even_s / plain_s, rel=1e-9, abs=1e-12)
