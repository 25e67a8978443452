"""Certificates against all plans of tiny problems, and what must not change or raise them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import Objective, PlacementProblem, certificate_s, place
from moecast.sim import Plan, Workload
from moecast.traces import NO_CHOICE, RoutingTrace

from .test_invariants import MODES, problems, skewed_trace, small_cluster, small_model


def every_plan(experts: int, ep: int, slots: int) -> list[np.ndarray]:
    """All legal ways to fill one layer's slots, up to the order inside a rank: int32 [1, G, P], -1 for empty."""
    rows = list(itertools.combinations_with_replacement(range(-1, experts), slots))
    plans = itertools.product(rows, repeat=ep)
    return [np.array([plan], np.int32) for plan in plans if set(range(experts)) <= {e for row in plan for e in row}]


def tiny(mode: str, phase: str, *, seed: int = 1, rule: str = "round_robin", slots: int = 2) -> PlacementProblem:
    """Three experts on two ranks, with a slot to spare."""
    layout = Plan.contiguous(layers=1, experts=3, choices=2, ep=2, slots_per_rank=slots)
    return PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(1, 3, 2),
        trace=skewed_trace(seed, layers=1, experts=3, choices=2, tokens=240, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=8, steps=2),
        wanted=layout.with_(dispatch=mode, replica_rule=rule),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("rule", ["round_robin", "nearest"])
def test_no_plan_with_replicas_is_below_the_certificate(mode: str, phase: str, rule: str) -> None:
    """Invariant 8, against every plan there is: empty slots, replicas and wasted ones."""
    problem = tiny(mode, phase, rule=rule)
    objective = Objective(problem)
    certificate = certificate_s(problem, objective.judged)
    assert 0 < certificate <= min(objective.step_s(slots_LGP) for slots_LGP in every_plan(3, 2, 2))


@settings(max_examples=25, deadline=None)
@given(problem=problems(), seed=st.integers(0, 9999))
def test_renaming_gpus_of_a_group_changes_no_certificate(problem: PlacementProblem, seed: int) -> None:
    """Invariant 9: the same domains, other GPUs in them, and the domains' names exchanged."""
    layout, rng = problem.wanted, np.random.default_rng(seed)
    inside = [8 * node + rng.permutation(8) for node in rng.permutation(2)]
    gpus = tuple(int(inside[gpu // 8][gpu % 8]) for gpu in layout.gpu_of_rank)
    again = replace_layout(problem, layout.with_(gpu_of_rank=gpus))
    assert certificate_s(again) == pytest.approx(certificate_s(problem), rel=1e-9)


def replace_layout(problem: PlacementProblem, layout: Plan) -> PlacementProblem:
    return PlacementProblem(
        cluster=problem.cluster, model=problem.model, trace=problem.trace, workload=problem.workload, wanted=layout
    )


@settings(max_examples=25, deadline=None)
@given(problem=problems(), share=st.floats(0.1, 0.9), seed=st.integers(0, 9999))
def test_fewer_choices_never_raise_a_certificate(problem: PlacementProblem, share: float, seed: int) -> None:
    """Dropped tokens leave less to serve and less to send."""
    trace = problem.trace
    dropped_TLK = np.random.default_rng(seed).random(trace.experts_TLK.shape) < share
    experts_TLK = np.where(dropped_TLK, np.uint16(NO_CHOICE), trace.experts_TLK)
    thinner = RoutingTrace(**{**trace.columns(), "meta": trace.meta, "experts_TLK": experts_TLK})
    fewer = PlacementProblem(
        cluster=problem.cluster, model=problem.model, trace=thinner, workload=problem.workload, wanted=problem.wanted
    )
    if problem.wanted.dispatch != "stay":  # there, attention is done where the plan put the tokens
        assert certificate_s(fewer) <= certificate_s(problem) * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(problem=problems())
def test_a_certificate_is_the_mean_of_its_steps(problem: PlacementProblem) -> None:
    alone = [certificate_s(problem, [step]) for step in problem.steps]
    assert certificate_s(problem) == pytest.approx(np.mean(alone), rel=1e-12)


def test_a_hot_expert_raises_the_certificate_where_ranks_wait_for_each_other() -> None:
    """With a barrier in every layer all wait for the rank that holds it; a slot more halves what it must serve."""
    trace = skewed_trace(0, layers=1, experts=8, choices=1, tokens=16384, phase="prefill")
    hot = replace(trace, experts_TLK=np.where(trace.position_T[:, None, None] < 7, np.uint16(0), trace.experts_TLK))
    asked = {"cluster": small_cluster(1), "workload": Workload(phase="prefill", tokens_per_rank=1024, steps=2)}
    found = {}
    for name, routed, slots in (("even", trace, 1), ("hot", hot, 1), ("replicas", hot, 2)):
        layout = Plan.contiguous(layers=1, experts=8, choices=1, ep=8, slots_per_rank=slots).with_(dispatch="nccl")
        problem = PlacementProblem(model=small_model(1, 8, 1), trace=routed, wanted=layout, **asked)
        found[name] = certificate_s(problem)
        assert found[name] <= Objective(problem).step_s(problem.any_plan().slots_DLGP[0])
    assert found["hot"] > 1.2 * found["even"]
    assert found["replicas"] < found["hot"]


def test_ranks_that_share_tokens_wait_for_each_other_only() -> None:
    """All-reduces of four ranks hold up no others: the slow experts of two layers may work at the same time."""
    trace = skewed_trace(0, layers=2, experts=8, choices=1, tokens=16, phase="decode")
    experts_TLK = np.full(trace.experts_TLK.shape, NO_CHOICE, np.uint16)
    odd_T = trace.sequence_T % 2 == 1
    experts_TLK[~odd_T, 0], experts_TLK[odd_T, 1] = 0, 1  # each sequence has a layer of its own
    shape = Plan.contiguous(layers=2, experts=8, choices=1, ep=8, slots_per_rank=1)
    problem = PlacementProblem(
        cluster=small_cluster(1),
        model=replace(small_model(2, 8, 1), expert_intermediate=2**16),
        trace=replace(trace, experts_TLK=experts_TLK),
        workload=Workload(phase="decode", tokens_per_rank=1, steps=1),
        wanted=shape.with_(tp=4, dp=2, dispatch="per_choice", sequence_parallel=False),
        network="bound",
    )
    objective = Objective(problem)
    placed = []
    for first, second in itertools.product(range(8), repeat=2):  # the ranks of expert 0 in the one, of 1 in the other
        experts_LG = np.array([np.roll(np.arange(8), first), np.roll(np.arange(8), second - 1)], np.int32)
        placed.append(objective.step_s(experts_LG[:, :, None]))
    assert 0 < certificate_s(problem, objective.judged) <= min(placed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("seed", range(3))
def test_no_plan_without_replicas_is_below_the_proved_certificate(mode: str, phase: str, seed: int) -> None:
    """Every way to put six experts on three ranks, two layers of them at once; stopped early or not."""
    layout = Plan.contiguous(layers=1, experts=6, choices=3, ep=3, slots_per_rank=2)
    problem = PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(1, 6, 3),
        trace=skewed_trace(seed, layers=1, experts=6, choices=3, tokens=480, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=8, steps=2),
        wanted=layout.with_(dispatch=mode),
    )
    objective = Objective(problem)
    orders = (np.array(order, np.int32).reshape(1, 3, 2) for order in itertools.permutations(range(6)))
    plans = [order for order in orders if (order[0, :, 0] < order[0, :, 1]).all()]
    assert len(plans) == 90
    fastest = min(objective.step_s(slots_LGP) for slots_LGP in plans)
    counted = certificate_s(problem, objective.judged)
    for nodes in (1, 10**6):
        proved = certificate_s(problem, objective.judged, prove_nodes=nodes)
        assert counted <= proved <= fastest


def test_a_proof_says_which_layer_it_is_at_and_how_good_it_is_so_far() -> None:
    """Two EP groups of two layers."""
    said: list[str] = []
    place(
        small_cluster(1),
        small_model(2, 8, 2),
        skewed_trace(0, layers=2, experts=8, choices=2, tokens=480, phase="prefill"),
        Workload(phase="prefill", tokens_per_rank=16, steps=1),
        solver="balance",
        ep=4,
        prove_nodes=1000,
        say=said.append,
    )
    proving = [words for words in said if words.startswith("proved")]
    assert ["layer 1 of 4, gaps to" in proving[0], "left" in proving[0]] == [True, True]
    assert ["layer 4 of 4, gaps to" in proving[3], "left" in proving[3]] == [True, False]


@pytest.mark.parametrize("mode", ["per_rank", "nccl", "per_choice", "stay"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_floors_of_several_layers_hold_where_links_are_slow(mode: str, phase: str) -> None:
    """Copies that take most of a step: experts and links overlap between ranks, and no floor may add what overlaps."""
    cluster = small_cluster(1)
    slow = replace(cluster, links=tuple(replace(link, capacity_Bps=link.capacity_Bps / 50) for link in cluster.links))
    layout = Plan.contiguous(layers=3, experts=8, choices=2, ep=4, slots_per_rank=2)
    for seed in range(3):
        problem = PlacementProblem(
            cluster=slow,
            model=small_model(3, 8, 2),
            trace=skewed_trace(seed, layers=3, experts=8, choices=2, tokens=1200, phase=phase),
            workload=Workload(phase=phase, tokens_per_rank=32, steps=2),
            wanted=layout.with_(dispatch=mode),
        )
        objective = Objective(problem)
        proved = certificate_s(problem, objective.judged, prove_nodes=10**6)
        rng = np.random.default_rng(seed)
        plans = [np.stack([rng.permutation(8).reshape(4, 2) for _ in range(3)]).astype(np.int32) for _ in range(25)]
        assert 0 < proved <= min(objective.step_s(slots_LGP) for slots_LGP in plans)


def across_domains(
    mode: str, phase: str, *, seed: int, gpus: tuple[int, ...], slots: int, layers: int, slow: float, network: str
) -> PlacementProblem:
    """Ranks in two domains or three, whose NICs are slower than they are sold."""
    cluster, ep = small_cluster(3), len(gpus)
    links = tuple(
        replace(link, capacity_Bps=link.capacity_Bps / (slow if "nic" in link.kind else 1)) for link in cluster.links
    )
    layout = Plan.contiguous(layers=layers, experts=ep * slots, choices=3, ep=ep, slots_per_rank=slots)
    return PlacementProblem(
        cluster=replace(cluster, links=links),
        model=small_model(layers, ep * slots, 3),
        trace=skewed_trace(seed, layers=layers, experts=ep * slots, choices=3, tokens=1600, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=16 if phase == "decode" else 48, steps=2),
        wanted=layout.with_(dispatch=mode, gpu_of_rank=gpus),
        network=network,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("gpus", [(0, 1, 8), (0, 9, 16)])
def test_no_plan_over_domains_is_below_the_certificate(mode: str, phase: str, gpus: tuple[int, ...]) -> None:
    """Every way to put six experts on three ranks, where some of them, or all, are in domains of their own."""
    problem = across_domains(mode, phase, seed=1, gpus=gpus, slots=2, layers=1, slow=4.0, network="bound")
    objective = Objective(problem)
    orders = (np.array(order, np.int32).reshape(1, 3, 2) for order in itertools.permutations(range(6)))
    fastest = min(objective.step_s(order) for order in orders if (order[0, :, 0] < order[0, :, 1]).all())
    counted = certificate_s(problem, objective.judged)
    proved = certificate_s(problem, objective.judged, prove_nodes=10**6)
    assert 0 < counted <= proved <= fastest
    assert mode == "stay" or proved > 0.5 * fastest


SETTINGS = [
    ((0, 1, 8, 9), "prefill", 30.0, "fluid"),
    ((0, 1, 10, 11), "decode", 1.0, "fluid"),
    ((0, 1, 2, 8, 10, 19), "prefill", 1.0, "bound"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_adversarial_plans_over_domains_are_above_the_certificate(
    mode: str, setting: tuple[tuple[int, ...], str, float, str]
) -> None:
    """Plans climbed to from the best of some drawn at random; relays that are no GPU of the same index, too."""
    gpus, phase, slow, network = setting
    problem = across_domains(mode, phase, seed=3, gpus=gpus, slots=3, layers=2, slow=slow, network=network)
    rng, objective, ep = np.random.default_rng(len(gpus)), Objective(problem), problem.wanted.ep
    proved = certificate_s(problem, objective.judged, prove_nodes=10**5)
    plans = [np.stack([rng.permutation(ep * 3) for _ in range(2)]).astype(np.int32) for _ in range(5)]
    best = min(plans, key=lambda plan_LE: objective.step_s(plan_LE.reshape(2, ep, 3)))
    for _ in range(10):
        other, (a, b), layer = best.copy(), rng.integers(ep * 3, size=2), rng.integers(2)
        other[layer, [a, b]] = other[layer, [b, a]]
        best = min(best, other, key=lambda plan_LE: objective.step_s(plan_LE.reshape(2, ep, 3)))
    assert 0 < proved <= objective.step_s(best.reshape(2, ep, 3))
