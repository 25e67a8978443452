"""The prices of searches: closed forms on one node, and what every problem's must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import PlacementProblem
from moecast.placement.cost import LayerCost
from moecast.sim import Plan, Workload, kernels_on
from moecast.sim.compute import expert_seconds

from .test_invariants import problems, skewed_trace, small_cluster, small_model


def even_problem(
    mode: str, *, nodes: int, ep: int, phase: str = "prefill", slots: int | None = None
) -> PlacementProblem:
    return PlacementProblem(
        cluster=kernels_on(small_cluster(nodes), kernels="roofline"),
        model=small_model(1, 32, 4),
        trace=skewed_trace(0, layers=1, experts=32, choices=4, tokens=8192, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=64, steps=2),
        wanted=Plan.contiguous(layers=1, experts=32, choices=4, ep=ep, slots_per_rank=slots).with_(dispatch=mode),
    )


def link_Bps(problem: PlacementProblem, kind: str) -> float:
    cluster = problem.cluster
    return float(cluster.capacity_J[[name == kind for name in cluster.link_kind_J]].max())


def copy_bytes(problem: PlacementProblem) -> float:
    """Of a token's dispatch and combine together."""
    model = problem.model
    return model.copy_bytes(model.dispatch_type) + model.copy_bytes("bf16")


def test_a_copy_inside_a_node_costs_its_bytes_over_nvlink() -> None:
    """Every rank sends all others one: seven of eight copies that a rank takes in have come over its link."""
    problem = even_problem("per_rank", nodes=1, ep=8)
    cost = LayerCost.of(problem)
    assert cost.copy_s == pytest.approx(7 / 8 * copy_bytes(problem) / link_Bps(problem, "nvlink-in"))
    assert cost.domain_copy_s == 0


def test_a_relayed_copy_is_paid_for_by_domain() -> None:
    """One copy crosses the NIC for each other domain; inside it goes by NVLink to those that want it."""
    problem = even_problem("per_domain", nodes=2, ep=16)
    cost = LayerCost.of(problem)
    assert cost.domain_copy_s >= copy_bytes(problem) / link_Bps(problem, "nic-in") / 16 * (1 - 1e-9)
    straight = LayerCost.of(even_problem("per_rank", nodes=2, ep=16))
    assert straight.domain_copy_s == 0
    assert cost.copy_s < straight.copy_s


def test_where_choices_travel_by_themselves_their_way_is_part_of_their_price() -> None:
    by_choice = LayerCost.of(even_problem("per_choice", nodes=1, ep=8))
    by_rank = LayerCost.of(even_problem("per_rank", nodes=1, ep=8))
    assert by_choice.copy_s == by_choice.domain_copy_s == 0
    assert by_choice.choice_s > by_rank.choice_s


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_choice_costs_the_slope_of_the_experts_roofline(phase: str) -> None:
    problem = even_problem("per_rank", nodes=1, ep=8, phase=phase)
    cost = LayerCost.of(problem)
    mean = 4 * 64  # choices of a rank: as many tokens as each rank holds, four choices each
    low, high = (
        float(expert_seconds(problem.model, problem.cluster.hardware, np.full((1, 4), round(load / 4)), phase=phase)[0])
        for load in (0.5 * mean, 1.5 * mean)
    )
    assert cost.choice_s == pytest.approx(max((high - low) / mean, 0.0))


def test_replicas_cost_the_reading_of_their_weights_where_steps_are_short() -> None:
    assert LayerCost.of(even_problem("per_rank", nodes=1, ep=8, phase="decode")).replica_s == 0  # none to spare
    spare = LayerCost.of(even_problem("per_rank", nodes=1, ep=8, phase="decode", slots=6))
    model = small_model(1, 32, 4)
    read_s = model.expert_bytes / small_cluster(1).hardware.memory_Bps
    assert 0.5 * read_s < spare.replica_s < 3 * read_s


@settings(max_examples=25, deadline=None)
@given(problem=problems(), weight=st.floats(0, 100))
def test_prices_are_finite_and_not_negative_and_weights_weigh_the_experts(
    problem: PlacementProblem, weight: float
) -> None:
    cost = LayerCost.of(problem)
    prices = (cost.choice_s, cost.replica_s, cost.copy_s, cost.domain_copy_s)
    assert all(math.isfinite(price) and price >= 0 for price in prices)
    weighed = cost.weighted(weight, mean_share=0.5)
    assert (weighed.choice_s, weighed.replica_s) == (cost.choice_s * weight, cost.replica_s * weight)
    assert (weighed.copy_s, weighed.domain_copy_s, weighed.mean_share) == (cost.copy_s, cost.domain_copy_s, 0.5)
