"""What must hold for every solver and every certificate, over generated problems."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement import SOLVERS, Objective, PlacementProblem, certificate_s, place
from moecast.sim import ModelShape, Plan, Workload, load_model
from moecast.topology import Cluster, load_cluster
from moecast.traces import PHASES, RoutingTrace, TraceMeta

ANY_SIZE = [s.name for s in SOLVERS if s.name not in ("exact", "exflow", "exflow-strong")]
MODES = ("per_choice", "per_rank", "per_domain", "nccl", "stay")


def small_model(layers: int, experts: int, choices: int) -> ModelShape:
    return load_model("olmoe-1b-7b").with_routing("small", layers=layers, experts=experts, choices=choices)


def skewed_trace(seed: int, *, layers: int, experts: int, choices: int, tokens: int, phase: str) -> RoutingTrace:
    """Some experts are hot, in every layer others; sequences of 8 tokens."""
    rng = np.random.default_rng(seed)
    score = rng.normal(scale=1.5, size=(1, layers, experts)) + rng.gumbel(size=(tokens, layers, experts))
    at = np.arange(tokens)
    return RoutingTrace(
        meta=TraceMeta(model="small", layers=layers, experts=experts, choices=choices),
        experts_TLK=np.argsort(-score, axis=2)[:, :, :choices].astype(np.uint16),
        sequence_T=(at // 8).astype(np.uint32),
        position_T=(at % 8).astype(np.uint32),
        phase_T=np.full(tokens, PHASES.index(phase), np.uint8),
        topics=(),
        topic_T=np.full(tokens, -1, np.int16),
        step_T=None,
        source_rank_T=None,
        token_id_T=None,
        weights_TLK=None,
    )


def small_cluster(nodes: int) -> Cluster:
    fabric = "single-switch" if nodes > 1 else None
    return load_cluster("dgx-h100", nodes=nodes, fabric=fabric)


@st.composite
def problems(draw: st.DrawFn) -> PlacementProblem:
    """Few experts on few ranks, in every mode and phase, with and without spare slots."""
    experts, choices, layers = draw(st.integers(3, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    ep, phase = draw(st.sampled_from([2, 3])), draw(st.sampled_from(["prefill", "decode"]))
    slots = -(-experts // ep) + draw(st.integers(0, 1))
    across = draw(st.booleans())  # half of the ranks in another domain
    layout = Plan.contiguous(layers=layers, experts=experts, choices=choices, ep=ep, slots_per_rank=slots)
    layout = layout.with_(
        dispatch=draw(st.sampled_from(MODES)),
        replica_rule=draw(st.sampled_from(["round_robin", "nearest", "fixed", "by_rank"])),
        gpu_of_rank=tuple(8 * (r % 2) + r if across else r for r in range(ep)),
    )
    return PlacementProblem(
        cluster=small_cluster(2),
        model=small_model(layers, experts, choices),
        trace=skewed_trace(
            draw(st.integers(0, 9999)), layers=layers, experts=experts, choices=choices, tokens=240, phase=phase
        ),
        workload=Workload(phase=phase, tokens_per_rank=draw(st.sampled_from([1, 4, 8])), steps=2),
        wanted=layout,
    )


def random_plans(problem: PlacementProblem, seed: int, count: int) -> list[np.ndarray]:
    """Legal placements drawn at random; spare slots hold replicas or nothing, wasted ones included."""
    rng = np.random.default_rng(seed)
    layout = problem.wanted
    plans = []
    for _ in range(count):
        table = np.full((layout.layers, layout.ep * layout.max_slots), -1, np.int32)
        for row in table:
            spare = len(row) - layout.experts
            row[: layout.experts] = np.arange(layout.experts)
            row[layout.experts :] = rng.integers(-1, layout.experts, spare)
            rng.shuffle(row)
        plans.append(table.reshape(layout.layers, layout.ep, layout.max_slots))
    return plans


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 9999))
def test_certificate_is_below_every_legal_plan(problem: PlacementProblem, seed: int) -> None:
    """Invariant 8, against plans drawn at random."""
    objective = Objective(problem)
    certificate = certificate_s(problem, objective.judged)
    assert certificate > 0
    for slots_LGP in random_plans(problem, seed, 8):
        assert certificate <= objective.step_s(slots_LGP)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_certificate_is_below_the_best_of_all_plans(mode: str, phase: str) -> None:
    """Invariant 8, against all placements of one layer of four experts on two ranks."""
    layout = Plan.contiguous(layers=1, experts=4, choices=2, ep=2, slots_per_rank=2).with_(dispatch=mode)
    problem = PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(1, 4, 2),
        trace=skewed_trace(1, layers=1, experts=4, choices=2, tokens=240, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=8, steps=3),
        wanted=layout,
    )
    objective = Objective(problem)
    best = min(
        objective.step_s(np.array(order, np.int32).reshape(1, 2, 2)) for order in itertools.permutations(range(4))
    )
    assert certificate_s(problem, objective.judged) <= best


@settings(max_examples=30, deadline=None)
@given(problem=problems(), seed=st.integers(0, 9999))
def test_certificate_under_renaming_and_more_slots(problem: PlacementProblem, seed: int) -> None:
    """Invariant 9: other names of experts change no certificate; one more slot never raises it."""
    certificate = certificate_s(problem)
    renamed_E = np.random.default_rng(seed).permutation(problem.wanted.experts).astype(np.uint16)
    trace = problem.trace
    other = RoutingTrace(**{**trace.columns(), "meta": trace.meta, "experts_TLK": renamed_E[trace.experts_TLK]})
    again = PlacementProblem(
        cluster=problem.cluster, model=problem.model, trace=other, workload=problem.workload, wanted=problem.wanted
    )
    assert certificate_s(again) == pytest.approx(certificate, rel=1e-9)
    layout = problem.wanted
    wider = Plan.contiguous(
        layers=layout.layers,
        experts=layout.experts,
        choices=layout.choices,
        ep=layout.ep,
        slots_per_rank=layout.max_slots + 1,
    ).with_(dispatch=layout.dispatch, gpu_of_rank=layout.gpu_of_rank)
    more = PlacementProblem(
        cluster=problem.cluster, model=problem.model, trace=trace, workload=problem.workload, wanted=wider
    )
    assert certificate_s(more) <= certificate * (1 + 1e-9)


SMALL = {"layers": 2, "experts": 12, "choices": 3}


def small_place(solver: str, *, slots: int = 3, work: int | None = 20_000, **more: object) -> object:
    trace = skewed_trace(3, **SMALL, tokens=1024, phase="prefill")
    workload = Workload(phase="prefill", tokens_per_rank=24, steps=3)
    return place(
        small_cluster(1),
        small_model(**SMALL),
        trace,
        workload,
        solver=solver,
        slots_per_rank=slots,
        work_limit=work,
        **more,
    )


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("solver", ANY_SIZE)
def test_plans_are_legal_and_waste_nothing(solver: str, slots: int) -> None:
    """Invariant 7; engines' balancers are what they are."""
    placement = small_place(solver, slots=slots)
    placement.plan.check_legal()
    assert placement.legal
    assert placement.wasted_slots == placement.plan.wasted_slots()
    if solver not in ("eplb", "sglang-vec"):
        assert placement.wasted_slots == 0
    assert 0 < placement.bound_s <= placement.objective_s
    assert placement.gap == pytest.approx(1 - placement.bound_s / placement.objective_s)
    assert placement.plan.made_by.solver == solver


@pytest.mark.parametrize("solver", ANY_SIZE)
def test_same_work_limit_same_plan(solver: str) -> None:
    """Invariant 6: same input, seed and work limit, same plan."""
    first, second = (small_place(solver, seed=5).plan.to_json() for _ in range(2))
    assert first == second


def test_local_search_is_never_slower_than_the_simple_solvers_on_the_planning_part() -> None:
    found = small_place("local-search").objective_s
    for solver in ("contiguous", "round-robin", "eplb", "balance"):
        assert found <= small_place(solver).objective_s * (1 + 1e-12)


def test_an_expert_chosen_twice_is_no_problem_to_search() -> None:
    """Searches count each expert of a token once, and number what stands in the slots in 16 bits."""
    trace = skewed_trace(0, layers=1, experts=8, choices=2, tokens=240, phase="prefill")
    twice_TLK = trace.experts_TLK.copy()
    twice_TLK[5, 0] = 3
    asked: dict[str, Any] = {
        "cluster": small_cluster(1),
        "model": small_model(1, 8, 2),
        "workload": Workload(phase="prefill", tokens_per_rank=4, steps=2),
        "wanted": Plan.contiguous(layers=1, experts=8, choices=2, ep=4),
    }
    with pytest.raises(MoecastError, match="token 5, layer 0: expert 3 is chosen twice"):
        PlacementProblem(trace=replace(trace, experts_TLK=twice_TLK), **asked)
    problem = PlacementProblem(trace=trace, **asked)
    for slots in ([[[2**32 + e for e in range(2)]] * 4], [[[0.0, 1.0]] * 4], [[[8, 0]] * 4], [[[-2, 0]] * 4]):
        with pytest.raises(ValueError, match="slots"):
            problem.plan(np.array(slots))
