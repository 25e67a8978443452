"""Migration: what moves is what is new to a rank; seconds are of the busiest link; back and forth moves the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.keep_ranks import keep_ranks
from moecast.placement.migration import migration
from moecast.sim import Plan

from .test_invariants import small_cluster, small_model


def plan_of(slots_LGP, *, experts: int, gpus=None) -> Plan:
    slots_LGP = np.array(slots_LGP, np.int32)
    layers, ep, slots = slots_LGP.shape
    plan = Plan.contiguous(layers=layers, experts=experts, choices=1, ep=ep, slots_per_rank=slots)
    changes = {} if gpus is None else {"gpu_of_rank": tuple(gpus)}
    return plan.with_(slots_DLGP=slots_LGP[None], **changes)


def test_bytes_by_hand_on_four_ranks() -> None:
    # Layer 0: ranks 0 and 1 swap an expert, rank 2 only turns its slots round. Layer 1: rank 3 takes a replica of 0.
    before = plan_of([[[0, 1], [2, 3], [4, 5], [6, 7]], [[0, 1], [2, 3], [4, 5], [6, 6]]], experts=8)
    after = plan_of([[[0, 2], [1, 3], [5, 4], [6, 7]], [[0, 1], [2, 3], [4, 5], [6, 0]]], experts=8)
    model = small_model(2, 8, 1)
    found = migration(small_cluster(1), model, before, after)
    expected_GG = np.zeros((4, 4), np.int64)
    expected_GG[0, 1] = expected_GG[1, 0] = expected_GG[0, 3] = model.expert_bytes
    np.testing.assert_array_equal(found.bytes_GG, expected_GG)
    assert sorted(zip(found.layer_M, found.expert_M, found.source_M, found.destination_M, strict=True)) == [
        (0, 1, 0, 1),
        (0, 2, 1, 0),
        (1, 0, 0, 3),
    ]
    # One expert on the busiest link of either layer, one layer after the other.
    cluster = small_cluster(1)
    hardware = cluster.hardware
    at_least_s = 2 * model.expert_bytes / max(cluster.capacity_J)
    setup_s = 2 * (hardware.collective_launch_s + hardware.barrier_s)
    nvlink_Bps = min(
        link for link, kind in zip(cluster.capacity_J, cluster.link_kind_J, strict=True) if kind == "nvlink-out"
    )
    assert found.seconds >= at_least_s
    assert found.seconds == pytest.approx(setup_s + 2 * model.expert_bytes / nvlink_Bps, rel=0.2)


def test_a_replica_comes_from_its_own_domain() -> None:
    before = plan_of([[[0, 1], [2, 0], [2, 3], [4, 5]]], experts=6, gpus=(0, 8, 9, 1))
    after = plan_of([[[0, 1], [2, 0], [0, 3], [4, 5]]], experts=6, gpus=(0, 8, 9, 1))
    assert migration(small_cluster(2), small_model(1, 6, 1), before, after).source_M.tolist() == [1]


@st.composite
def pairs_of_plans(draw: st.DrawFn) -> tuple[Plan, Plan]:
    ep, slots, layers = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    order = st.permutations(range(ep * slots))
    tables = [np.array([draw(order) for _ in range(layers)]).reshape(layers, ep, slots) for _ in range(2)]
    gpus = [8 * (rank % 2) + rank for rank in range(ep)]
    return plan_of(tables[0], experts=ep * slots, gpus=gpus), plan_of(tables[1], experts=ep * slots, gpus=gpus)


@settings(max_examples=25, deadline=None)
@given(pairs_of_plans())
def test_back_moves_what_there_moved(plans: tuple[Plan, Plan]) -> None:
    cluster, before, after = small_cluster(2), *plans
    model = small_model(before.layers, before.experts, 1)
    there, back = migration(cluster, model, before, after), migration(cluster, model, after, before)
    np.testing.assert_array_equal(there.bytes_GG, back.bytes_GG.T)
    same = migration(cluster, model, before, before)
    assert (same.bytes, same.seconds) == (0, 0.0)
    fluid = migration(cluster, model, before, after, network="fluid")
    assert there.seconds <= fluid.seconds * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(pairs_of_plans())
def test_ranks_that_trade_keep_most(plans: tuple[Plan, Plan]) -> None:
    before, after = (plan.slots_DLGP[0] for plan in plans)
    domain_G = np.arange(before.shape[1]) % 2
    kept = keep_ranks(before, after, domain_G=domain_G, slots_G=np.full(len(domain_G), before.shape[2]))
    for first_GP, then_GP, kept_GP in zip(before, after, kept, strict=True):
        orders = [o for o in itertools.permutations(range(len(domain_G))) if (domain_G[list(o)] == domain_G).all()]
        stay = [sum(len({*a} & {*b}) for a, b in zip(first_GP, then_GP[list(o)], strict=True)) for o in orders]
        assert sum(len({*a} & {*b}) for a, b in zip(first_GP, kept_GP, strict=True)) == max(stay)
        assert any((kept_GP == then_GP[list(o)]).all() for o in orders)


def test_plans_of_different_layouts_are_refused() -> None:
    four, two = (Plan.contiguous(layers=1, experts=8, choices=1, ep=ep) for ep in (4, 2))
    with pytest.raises(MoecastError, match="gpu_of_rank"):
        migration(small_cluster(1), small_model(1, 8, 1), four, two)
    empty = plan_of([[[0, 1], [2, 3], [4, 5], [6, -1]]], experts=8)
    with pytest.raises(MoecastError, match="no rank of the EP group"):
        migration(small_cluster(1), small_model(1, 8, 1), empty, four)
