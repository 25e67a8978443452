"""Ranks on GPUs: named mappings are permutations, differ from each other, and stay only where they are better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.layouts import ServingLayout, ServingQuestion, Slo, Space, StepScores, find_serving
from moecast.placement.layouts.launch import launches
from moecast.placement.layouts.mappings import (
    CONSECUTIVE,
    DEALT,
    Mapping,
    block_of,
    near_ranks,
    other_mappings,
    started_by,
)
from moecast.placement.layouts.scoring import prefill_of
from moecast.placement.layouts.steady import together
from moecast.placement.layouts.training import TrainingLayout, find_training
from moecast.placement.layouts.training.launch import megatron
from moecast.sim import kernels_on
from moecast.sim.layout import Layout
from moecast.topology import Cluster, load_cluster
from tests.layouts import training_cases
from tests.layouts.test_serving import MODEL, question
from tests.topology.clusters import DOMAIN, build

CLUSTERS = [load_cluster("dgx-h100", nodes=4), load_cluster("gb200-nvl72", nodes=2)]
degree = st.sampled_from([1, 2, 3, 4, 8])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Of at most 32 ranks."""
    tp, cp, dp, pp = (draw(degree) for _ in range(4))
    ranks = tp * cp * dp
    etp = draw(st.sampled_from([each for each in (1, 2, 4) if ranks % each == 0]))
    ep = draw(st.sampled_from([each for each in (1, 2, 4, 8) if ranks // etp % each == 0]))
    pp = min(pp, max(32 // ranks, 1))
    return Layout(tp=tp, cp=cp, pp=pp, etp=etp, ep=ep, groups=ranks // etp // ep)


@settings(deadline=None, max_examples=40)
@given(layout=layouts(), place=st.sampled_from(range(len(CLUSTERS))))
def test_a_mapping_is_a_permutation_that_differs(layout: Layout, place: int) -> None:
    cluster = CLUSTERS[place]
    if layout.ranks > cluster.n_gpus:
        with pytest.raises(MoecastError, match="ranks"):
            other_mappings(layout, cluster)
        return
    found = other_mappings(layout, cluster)
    domain_G = cluster.domain_of_gpu_G
    assert len({each.name for each in found}) == len(found) == len({each.gpus for each in found} - {CONSECUTIVE.gpus})
    assert not found or len(set(domain_G[: layout.ranks].tolist())) > 1
    for each in found:
        assert sorted(each.gpus) == list(range(layout.ranks)) != list(each.gpus)
        if each.name in DEALT:
            block = block_of(layout, each.name)
            of_block = domain_G[np.array(each.gpus)].reshape(-1, block)
            assert (of_block == of_block[:, :1]).all()
            assert of_block[0, 0] != of_block[1, 0]  # successive blocks stand in different domains
        tp_ranks = min(near_ranks(each, cluster, layout.tp, 1), near_ranks(CONSECUTIVE, cluster, layout.tp, 1))
        assert each.name == "rails" or tp_ranks == near_ranks(CONSECUTIVE, cluster, layout.tp, 1)


def test_a_pipeline_inside_is_megatrons_order() -> None:
    layout = Layout(tp=2, pp=2, ep=2, groups=4)  # 16 ranks, DP4
    inside = {each.name: each for each in other_mappings(layout, CLUSTERS[0])}["pipeline-inside"]
    # rank = (stage * dp + data) * tp + tensor stands on GPU (data * pp + stage) * tp + tensor
    assert [inside.gpus[(s * 4 + d) * 2 + t] for d in range(4) for s in range(2) for t in range(2)] == list(range(16))


def small_cluster(**domain: float) -> Cluster:
    """Two domains of two GPUs."""
    return build("single-switch", 2, domain=replace(DOMAIN, gpus_per_host=2, nics_per_host=2, **domain))


def small_question(**domain: float) -> ServingQuestion:
    """Of even routing, there."""
    return replace(question("uniform"), cluster=kernels_on(small_cluster(**domain), engine="sglang"))


SLOW_NVLINK = {"nvlink_Bps": 1e9, "nvlink_latency_s": 50e-6}
DEGREES = [{"tp": 2, "pp": 2}, {"tp": 2, "dp": 2}, {"dp": 2, "pp": 2}]


@pytest.mark.parametrize("degrees", DEGREES)
def test_no_permutation_of_few_gpus_is_faster_than_the_best_with_a_name(degrees: dict[str, int]) -> None:
    asked = small_question()
    layout = ServingLayout(**degrees, sequence_parallel=False, dispatch="per_rank", batch=8)
    scores = StepScores(question=asked)

    def step_s(mapping: Mapping) -> float:
        return scores.step_s(replace(layout, mapping=mapping), "decode")

    named = [CONSECUTIVE, *other_mappings(layout.plan(MODEL).layout, asked.cluster)]
    assert len(named) > 1
    every = [step_s(Mapping("any", gpus)) for gpus in permutations(range(4))]
    assert min(map(step_s, named)) == pytest.approx(min(every), rel=1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Only(Space):
    """A space of a few layouts."""

    some: tuple[ServingLayout, ...] = ()

    def layouts(self) -> Iterator[ServingLayout]:
        """These."""
        return iter(self.some)


def served(asked: ServingQuestion, layout: ServingLayout) -> float:
    """Tokens/s of a GPU by `bound`, prompts and decode together, experts in order."""
    scores, prompts = StepScores(question=asked), prefill_of(layout, asked.isl)
    times = scores.step_s(layout, "decode"), scores.step_s(prompts, "prefill")
    return together(layout, prompts, *times, gpus=4, isl=asked.isl, osl=asked.osl).tokens_per_s_per_gpu


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("domain", [{}, SLOW_NVLINK])
def test_serving_keeps_the_mapping_that_serves_most(degrees: dict[str, int], domain: dict[str, float]) -> None:
    asked = small_question(**domain)
    layout = ServingLayout(**degrees, sequence_parallel=False, etp=2, batch=8)
    space = Only(model=MODEL, gpus=4, some=(layout,))
    found = find_serving(asked, 4, Slo(), space=space, modes=("agg",), network="bound")
    ways = [replace(layout, mapping=each) for each in other_mappings(layout.plan(MODEL).layout, asked.cluster)]
    every = {way.mapping.name: served(asked, way) for way in (layout, *ways)}
    assert found.winner.tokens_per_s_per_gpu == pytest.approx(max(every.values()), rel=1e-12)
    assert every[found.winner.mapping] == max(every.values())
    assert found.plan.gpu_of_rank == found.winner.decode.gpu_of_rank
    told = {one.name: one.change for one in found.mappings}
    assert told == pytest.approx(
        {way.mapping.name: every[way.mapping.name] / served(asked, layout) - 1 for way in ways}
    )
    assert found.to_json()["mapping"]["name"] == found.winner.mapping
    if found.winner.mapping == "consecutive":  # today's result
        assert found.winner.decode == layout
    for launch in launches(found.winner.decode, experts=16, n_layers=4, started_by="srun"):
        assert ("ranks rails (srun)" in launch.cannot) == (found.winner.mapping == "rails")


def test_prompts_apart_have_a_mapping_of_their_own() -> None:
    asked = small_question()
    layout = ServingLayout(tp=2, batch=8, sequence_parallel=False, etp=2)
    space = Only(model=MODEL, gpus=4, some=(layout,))
    found = find_serving(asked, 4, Slo(), space=space, modes=("disagg",), network="bound")
    assert (found.winner.mapping, found.mappings) == ("consecutive", ())  # instances inside a domain


@pytest.mark.parametrize("domain", [{}, SLOW_NVLINK])
def test_training_keeps_the_mapping_with_the_shortest_step(domain: dict[str, float]) -> None:
    asked = training_cases.question("uniform", batch=8)
    asked = replace(asked, cluster=kernels_on(small_cluster(**domain), engine="megatron"))
    space = replace(training_cases.SMALL, most_tp=1, schedules=("1f1b",), microbatches=(1,), virtual=(1,))
    found = find_training(asked, 4, space=space, scored=40, timed=40, recut=0)
    layout = found.winner.layout
    others = other_mappings(layout.plan(training_cases.MODEL).layout, asked.cluster)
    every = {each.name: training_cases.step_s(asked, replace(layout, mapping=each)) for each in (CONSECUTIVE, *others)}
    assert found.winner.step_s == min(every.values()) == every[layout.mapping.name]
    changes = {each.name: every["consecutive"] / every[each.name] - 1 for each in others}
    assert {one.name: one.change for one in found.mappings} == pytest.approx(changes)


def test_what_puts_ranks_there_is_told() -> None:
    asked = training_cases.question()
    layout = TrainingLayout(tp=2, pp=2, dp=4, ep=2, schedule="1f1b", dispatch="nccl")
    ranks = layout.plan(training_cases.MODEL).layout
    ways = {each.name: each for each in other_mappings(ranks, asked.cluster)}
    inside = megatron(replace(layout, mapping=ways["pipeline-inside"]), asked.recipe, training_cases.MODEL)
    assert "--use-tp-pp-dp-mapping" in inside.command
    assert "ranks" not in inside.cannot
    assert "--use-tp-pp-dp-mapping" not in megatron(layout, asked.recipe, training_cases.MODEL).command
    by = started_by(ranks, asked.cluster, "rails")
    rails = megatron(replace(layout, mapping=ways["rails"]), asked.recipe, training_cases.MODEL, started_by=by)
    assert "ranks rails (srun --distribution=plane=1" in rails.cannot
    wide = replace(layout, ep=4, mapping=ways["pipeline-inside"])  # Megatron-LM wants EP x ETP = TP x CP for it
    assert "ranks pipeline-inside" in megatron(wide, asked.recipe, training_cases.MODEL).cannot


def test_stages_that_are_not_even_are_told_to_engines() -> None:
    layout = ServingLayout(tp=2, pp=4, etp=2, sequence_parallel=False, batch=8)
    sglang, vllm, trtllm = launches(layout, experts=16, n_layers=61)
    assert sglang.command.startswith("SGLANG_PP_LAYER_PARTITION=16,15,15,15 python -m sglang")
    assert vllm.command.startswith("VLLM_PP_LAYER_PARTITION=16,15,15,15 vllm serve")
    assert "pp_partition: [16, 15, 15, 15]" in trtllm.config
    assert "PARTITION" not in launches(layout, experts=16, n_layers=60)[0].command
