"""Fitted costs on links: alone in a domain, a collective, a dispatch and a combine take what their families say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecast.sim import Plan, Workload, find_rung, load_model, simulate, time_collective
from moecast.sim.collectives.carriers import Carried, Carrier
from moecast.sim.collectives.choice import candidates, engine_candidates, pick
from moecast.sim.collectives.modes import MODES
from moecast.sim.collectives.tensor_parallel import sum_choices
from moecast.sim.cost import kernels_on
from moecast.sim.cost.collectives import engine_all_reduce_seconds, find_parameters, nccl_seconds
from moecast.sim.cost.dispatch import find_parameters as find_dispatch
from moecast.sim.cost.dispatch import low_latency_seconds, normal_seconds, symmetric_seconds
from moecast.sim.cost.gpus import GPUS, gpu_key
from moecast.sim.cost.nvlink import NOMINAL_Bps, USABLE_Bps
from moecast.sim.degrees import Degrees
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.sites import Sites
from moecast.topology import Cluster, load_cluster
from moecast.validate.published.questions import TokenExchange
from tests.sim.clusters import by_roofline

FLUID = find_rung("fluid")
SIZES = [2.0**power for power in range(9, 30, 4)]


def fitted(preset: str, nodes: int = 1, engine: str | None = None) -> Cluster:
    return kernels_on(load_cluster(preset, nodes=nodes), kernels="fitted", engine=engine)


class Fitted(TokenExchange):
    """A token exchange by fitted kernels."""

    __slots__ = ()

    def _cluster(self) -> Cluster:
        return fitted(self.cluster, self.nodes)


class OverLinks(TokenExchange):
    """A token exchange over links alone."""

    __slots__ = ()

    def _cluster(self) -> Cluster:
        return by_roofline(self.cluster, nodes=self.nodes)


class OfTensorRt(TokenExchange):
    """A token exchange by TensorRT-LLM's kernels."""

    __slots__ = ()

    def _cluster(self) -> Cluster:
        return fitted(self.cluster, self.nodes, engine="trtllm")


def test_presets_have_the_rates_that_parts_are_of() -> None:
    for preset in ("dgx-h100", "dgx-h200", "dgx-b200", "dgx-b300", "gb200-nvl72", "gb300-nvl72"):
        cluster = load_cluster(preset, nodes=1)
        rate = next(link.capacity_Bps for link in cluster.links if link.kind == "nvlink-out")
        assert rate == USABLE_Bps[gpu_key(cluster.hardware)] < NOMINAL_Bps[gpu_key(cluster.hardware)]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("operation", ["all-gather", "reduce-scatter", "all-reduce", "all-to-all"])
def test_a_collective_alone_takes_what_its_family_says(operation: str, ranks: int) -> None:
    parameters = find_parameters("h200_sxm", "nccl").parameters
    wanted = nccl_seconds(parameters, operation, ranks, SIZES, link_Bps=NOMINAL_Bps["h200_sxm"])
    found = [one.time_s for one in time_collective(fitted("dgx-h200"), operation, SIZES, rung=FLUID, ranks=ranks)]
    assert found == pytest.approx(wanted, rel=0.02)


def test_half_of_the_links_give_half_of_the_speed() -> None:
    cluster = fitted("dgx-h100")
    h800 = kernels_on(load_cluster("h800-node"), kernels="fitted")
    [fast], [slow] = (time_collective(one, "all-gather", [2**32], rung=FLUID) for one in (cluster, h800))
    assert slow.time_s / fast.time_s == pytest.approx(370 / 160, rel=0.01)


def test_the_roofline_has_links_alone() -> None:
    cluster = by_roofline("dgx-h200")
    sites = Sites.of(cluster, Plan.contiguous(layers=1, experts=8, choices=1, ep=8))
    everyone_DM = np.arange(8)[None, :]
    assert engine_candidates(sites, everyone_DM) == []
    assert len(candidates(sites, everyone_DM, operation="all-to-all")) == 1
    for mode in MODES:
        carried = Carried(hardware=cluster.hardware, mode=mode, ranks=8, near_ranks=8, choices=8, experts=256)
        assert carried.carriers((7392.0, 14336.0)) == (None, None)


@pytest.mark.parametrize(("preset", "weights", "sent"), [
    ("dgx-h200", "fp8", "bf16"), ("dgx-b200", "fp8", "bf16"), ("dgx-b200", "nvfp4", "nvfp4"),
])  # fmt: skip
@pytest.mark.parametrize("tokens", [1, 8, 64, 512])
def test_tokens_are_gathered_as_nccl_gathers(preset: str, weights: str, sent: str, tokens: int) -> None:
    """Whatever protocol is the fastest for so many, of which each moves another number of bytes in a second.

    TensorRT-LLM quantises to NVFP4 before it gathers, and to FP8 by blocks afterwards.
    """
    cluster, model = fitted(preset, engine="trtllm"), load_model("deepseek-v3").with_types(weight_type=weights)
    plan = Degrees(ep=8).contiguous(model.shape_LEK, model.moe_layer_ids, ranks=8).with_(dispatch="all_gather")
    trace = routing_by_law(
        parse_law("uniform"), model, tokens=8 * tokens, sequence=1, phase="decode", position=0, seed=0
    )
    work = Workload(phase="decode", tokens_per_rank=tokens, steps=1, context=1, seed=0)
    found = simulate(cluster, model, plan, trace, work, network="bound", gains=False).breakdown_s["dispatch"]
    gpu = gpu_key(cluster.hardware)
    size_bytes = 8 * tokens * model.copy_bytes(sent)
    wanted = nccl_seconds(
        find_parameters(gpu, "nccl").parameters, "all-gather", 8, size_bytes, link_Bps=NOMINAL_Bps[gpu]
    )
    assert found / model.layers == pytest.approx(wanted, abs=1.5e-6)


@pytest.mark.parametrize("engine", ["vllm", "trtllm", "neutral"])
def test_sums_of_a_tp_group_are_the_engines_or_ncclss(engine: str) -> None:
    cluster = fitted("dgx-b200", engine=engine)
    plan = Plan.contiguous(layers=1, experts=8, choices=1, ep=8).with_(tp=8, dp=1)
    sites, sizes = Sites.of(cluster, plan), np.array(SIZES)
    choices = list(sum_choices(sites, plan.layout, 1.0))
    found = [pick(choices, sites, [size]).estimate_s(sites, [size]) for size in SIZES]
    own = find_parameters("b200_sxm", engine).parameters
    wanted = engine_all_reduce_seconds(
        own,
        find_parameters("b200_sxm", "nccl").parameters,
        8,
        sizes,
        link_Bps=NOMINAL_Bps["b200_sxm"],
        memory_Bps=GPUS["b200_sxm"].memory_Bps,
    )
    assert found == pytest.approx(wanted, rel=0.07)


@pytest.mark.parametrize("tokens", [1, 128, 1024])
@pytest.mark.parametrize(("exchange", "size"), [("dispatch", 7392.0), ("combine", 14336.0)])
def test_a_dispatch_alone_takes_what_its_family_says(exchange: str, size: float, tokens: int) -> None:
    shared = {"tokens": tokens, "choices": 8, "ranks": 8, "copy_bytes": size, "link_Bps": NOMINAL_Bps["h200_sxm"]}
    asked = {"cluster": "dgx-h200", "ranks": 8, "tokens": tokens, "exchange": exchange}
    low = find_dispatch("h200_sxm", "deepep-ll", exchange).parameters
    found = Fitted(mode="per_choice", **asked).predict(FLUID) / 1e6
    assert found == pytest.approx(float(low_latency_seconds(low, experts=256, sms=132, **shared)), rel=0.05)
    normal = find_dispatch("h200_sxm", "deepep-normal", exchange).parameters
    counts_s = GPUS["h200_sxm"].count_exchange_s if exchange == "dispatch" else 0.0
    found = counts_s + Fitted(mode="per_rank", **asked).predict(FLUID) / 1e6
    assert found == pytest.approx(float(normal_seconds(normal, communication_sms=24, **shared)), rel=0.05)


def test_between_nodes_kernels_start_later() -> None:
    asked = {"cluster": "dgx-h200", "nodes": 2, "ranks": 16, "tokens": 2}
    for mode, least in (("per_choice", 20.0), ("per_domain", 50.0)):
        for exchange in ("dispatch", "combine"):
            question = {"mode": mode, "exchange": exchange, **asked}
            alone = OverLinks(**question).predict(FLUID)  # type: ignore[arg-type]
            assert alone < least < Fitted(**question).predict(FLUID)  # type: ignore[arg-type]


def test_a_carrier_checks_itself() -> None:
    carrier = Carrier(latency_s=1e-6, wire=1.2, copy_s=1e-9, added=True)
    with pytest.raises(ValueError, match=r"wire = 0.5"):
        replace(carrier, wire=0.5)
    with pytest.raises(ValueError, match="far_copy_s = -1"):
        replace(carrier, far_copy_s=-1)


@pytest.mark.parametrize("tokens", [1, 256, 4096])
@pytest.mark.parametrize(("exchange", "size"), [("dispatch", 7392.0), ("combine", 14336.0)])
def test_tensorrt_llm_has_kernels_of_its_own_over_nvlink(exchange: str, size: float, tokens: int) -> None:
    parameters = find_dispatch("gb200", "nvlink-two-sided", exchange).parameters
    wanted = symmetric_seconds(
        parameters, tokens=tokens, choices=8, ranks=16, copy_bytes=size, link_Bps=NOMINAL_Bps["gb200"]
    )
    found = OfTensorRt(
        cluster="gb200-nvl72",
        ranks=16,
        tokens=tokens,
        exchange=exchange,
        mode="per_rank",  # type: ignore[arg-type]
    ).predict(FLUID)
    assert found / 1e6 == pytest.approx(float(wanted), rel=0.06)
