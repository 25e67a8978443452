"""Rule lplb against closed forms, the linear program's dual by brute force, and the other rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement import Objective, PlacementProblem, certificate_s, place
from moecast.sim import Plan, Sites, Workload, count_traffic
from moecast.sim.lplb import split_layer
from moecast.sim.serving_ranks import ServingRanks
from moecast.topology import load_cluster
from moecast.validate.served import serve
from tests.placement.test_invariants import skewed_trace, small_cluster, small_model


def plan_of(slots: object, *, groups: int = 1, choices: int = 1) -> Plan:
    """One layer, the given experts in the slots of each rank."""
    table = np.array(slots, np.int32)
    return Plan(
        experts=int(table.max()) + 1,
        choices=choices,
        layer_ids=(0,),
        slots_DLGP=np.broadcast_to(table[None, None], (groups, 1, *table.shape)),
        gpu_of_rank=tuple(range(groups * len(table))),
        replica_rule="lplb",
    )


def loads(plan: Plan, experts_T: list[int], home_T: list[int] | None = None) -> list[int]:
    """Choices that each rank serves."""
    sites = Sites.of(load_cluster("dgx-h200", nodes=1), plan)
    home = np.zeros(len(experts_T), np.int32) if home_T is None else np.array(home_T, np.int32)
    chosen_TLK = np.array(experts_T, np.uint16)[:, None, None]
    traffic = count_traffic(plan, sites, chosen_TLK, np.arange(len(experts_T)), home)
    return [int(load) for load in traffic.rank_load_LG[0]]


def test_a_shared_expert_fills_the_emptier_rank_up() -> None:
    """Expert 0 on both ranks with 100 choices, expert 1 on rank 0 with 40: 70 each; with 160: nothing helps."""
    plan = plan_of([[0, 1], [0, 2]])
    assert loads(plan, [0] * 100 + [1] * 40) == pytest.approx([70, 70], abs=1)
    assert loads(plan, [0] * 100 + [1] * 160) == pytest.approx([160, 100], abs=0)


def test_loads_travel_along_a_chain_of_replicas() -> None:
    """LPLB's ring: each expert also on the next rank; all load on one expert's ranks, or handed on around the ring."""
    ring = plan_of([[0, 3], [1, 0], [2, 1], [3, 2]])
    assert loads(ring, [0] * 80) == pytest.approx([40, 40, 0, 0], abs=2)
    assert loads(ring, [0] * 60 + [1] * 60 + [2] * 60) == pytest.approx([45, 45, 45, 45], abs=2)


def test_groups_are_split_each_for_itself() -> None:
    plan = plan_of([[0, 1], [0, 2]], groups=2)
    load = loads(plan, [0] * 100 + [1] * 40 + [0] * 60 + [2] * 20, [0] * 70 + [1] * 70 + [2] * 40 + [3] * 40)
    assert load == pytest.approx([70, 70, 40, 40], abs=1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), experts=st.integers(2, 7), ranks=st.integers(2, 4), spare=st.integers(0, 4))
def test_the_fullest_rank_is_as_the_dual_says(seed: int, experts: int, ranks: int, spare: int) -> None:
    """The least maximum is, over sets of ranks, the load that has nowhere else to go ÷ the ranks of the set."""
    rng = np.random.default_rng(seed)
    slots = -(-(experts + spare) // ranks)
    held = np.concatenate([np.arange(experts), rng.integers(0, experts, ranks * slots - experts)])
    slot_expert = rng.permutation(held)
    load_E = rng.integers(0, 50, experts)
    order = np.argsort(slot_expert, kind="stable").astype(np.int32)
    count_E = np.bincount(slot_expert, minlength=experts)
    share_X = split_layer(load_E, np.cumsum(count_E) - count_E, count_E, order, slots, ranks)
    expert_X = np.repeat(np.arange(experts), count_E)
    taken_X = np.where(load_E[expert_X] > 0, share_X, 0.0)
    np.testing.assert_allclose(np.bincount(expert_X, taken_X, experts), load_E, atol=1e-6)
    least = 0.0
    for size in range(1, ranks + 1):
        for chosen in itertools.combinations(range(ranks), size):
            inside = [np.isin(order[expert_X == e] // slots, chosen).all() for e in range(experts)]
            least = max(least, float(load_E[np.array(inside)].sum()) / size)
    assert np.bincount(order // slots, taken_X, ranks).max() == pytest.approx(least, abs=1e-6)


def replicated(seed: int, rule: str) -> tuple[Plan, np.ndarray, np.ndarray]:
    """A plan with spare slots, and a step's choices and homes."""
    rng = np.random.default_rng(seed)
    slots = np.concatenate([rng.permutation(12), rng.integers(0, 12, 4)]).reshape(4, 4).astype(np.int32)
    plan = Plan(
        experts=12,
        choices=3,
        layer_ids=(0, 1),
        slots_DLGP=np.stack([slots, slots[::-1]])[None],
        gpu_of_rank=(0, 1, 8, 9),
        replica_rule=rule,
    )
    trace = skewed_trace(seed, layers=2, experts=12, choices=3, tokens=400, phase="prefill")
    return plan, trace.experts_TLK, np.sort(rng.integers(0, 4, 400)).astype(np.int32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), stay=st.booleans())
def test_every_choice_is_served_once_and_no_rule_is_more_even(seed: int, stay: bool) -> None:
    cluster = load_cluster("dgx-h200", nodes=2)
    fullest = {}
    for rule in ("lplb", "round_robin", "fixed"):
        plan, experts_TLK, home_T = replicated(seed, rule)
        traffic = count_traffic(plan, Sites.of(cluster, plan), experts_TLK, np.arange(400), home_T, stay=stay)
        for layer in range(2):
            held_GP = plan.slots_DLGP[0, layer]
            served_E = np.bincount(held_GP.ravel(), traffic.load_LGP[layer].ravel(), 12)
            np.testing.assert_array_equal(served_E, np.bincount(experts_TLK[:, layer].ravel(), minlength=12))
        fullest[rule] = traffic.rank_load_LG.max(1)
    rounding = 6  # four shares, cut to whole choices
    assert (fullest["lplb"] <= np.minimum(fullest["round_robin"], fullest["fixed"]) + rounding).all()


def test_what_the_hardware_would_replay_is_what_is_counted() -> None:
    plan, experts_TLK, home_T = replicated(3, "lplb")
    cluster = load_cluster("dgx-h200", nodes=2)
    sites = Sites.of(cluster, plan)
    traffic = count_traffic(plan, sites, experts_TLK, np.arange(400), home_T)
    replayed = serve(plan, sites.domain_G, experts_TLK, home_T)
    for layer in range(2):
        load_G = np.bincount(replayed.rank_TLK[:, layer].ravel(), minlength=4)
        np.testing.assert_array_equal(load_G, traffic.rank_load_LG[layer])


def test_without_steps_it_is_refused() -> None:
    with pytest.raises(MoecastError, match="replica_rule = 'lplb': lplb splits the load of a step"):
        ServingRanks(replicated(0, "lplb")[0], np.zeros(4, np.int32))


def test_plans_are_made_for_it_and_the_certificate_holds() -> None:
    """EPLB's plan is faster under lplb than with replicas in turns, and no faster than the certificate."""
    trace = skewed_trace(1, layers=2, experts=16, choices=4, tokens=2048, phase="prefill")
    workload = Workload(phase="prefill", tokens_per_rank=128, steps=2)
    asked = {"solver": "eplb", "ep": 8, "slots_per_rank": 3, "network": "bound"}
    model, cluster = small_model(2, 16, 4), small_cluster(1)
    in_turns = place(cluster, model, trace, workload, replica_rule="round_robin", **asked)
    split = place(cluster, model, trace, workload, replica_rule="lplb", **asked)
    assert split.plan.replica_rule == "lplb"
    assert Plan.from_json(split.plan.to_json()).replica_rule == "lplb"
    assert split.objective_s < in_turns.objective_s
    problem = PlacementProblem(
        cluster=cluster, model=model, trace=trace, workload=workload, wanted=split.plan, network="bound"
    )
    objective = Objective(problem)
    assert certificate_s(problem, objective.judged) <= objective.step_s(split.plan.slots_DLGP[0])
