"""Ranks trade what they hold: nothing else changes, and no other trade finds more tokens at home."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import PlacementProblem, place
from moecast.placement.near_requests import near_requests, tokens_found
from moecast.sim import ModelShape, Plan, Workload, simulate
from moecast.topology import load_cluster
from tests.cli.conftest import CONFIG, small_trace

from .test_invariants import skewed_trace, small_cluster, small_model


def problem_of(seed: int, gpu_of_rank: tuple[int, ...]) -> PlacementProblem:
    layout = Plan.contiguous(layers=2, experts=8, choices=2, ep=4).with_(gpu_of_rank=gpu_of_rank, dispatch="per_rank")
    return PlacementProblem(
        cluster=small_cluster(2),
        model=small_model(2, 8, 2),
        trace=skewed_trace(seed, layers=2, experts=8, choices=2, tokens=256, phase="prefill"),
        workload=Workload(phase="prefill", tokens_per_rank=16, steps=2),
        wanted=layout,
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999))
def test_no_trade_finds_more_tokens_at_home(seed: int) -> None:
    problem = problem_of(seed, (0, 1, 2, 3))
    slots_LGP = problem.any_plan().slots_DLGP[0]
    traded_LGP = near_requests(slots_LGP, problem)
    windows = problem.windows
    for before_GP, after_GP, layer in zip(slots_LGP, traded_LGP, range(2), strict=True):
        assert sorted(map(tuple, before_GP.tolist())) == sorted(map(tuple, after_GP.tolist()))
        chosen_TK = problem.trace.experts_TLK[windows.row_T, layer]
        home = [
            int(np.isin(chosen_TK[windows.rank_T == g], before_GP[h]).any(1).sum()) for g in range(4) for h in range(4)
        ]
        found_GH = tokens_found(chosen_TK, windows.rank_T, before_GP, 8)
        np.testing.assert_array_equal(found_GH.ravel(), home)
        most = max(sum(found_GH[g, h] for g, h in enumerate(order)) for order in itertools.permutations(range(4)))
        assert np.trace(tokens_found(chosen_TK, windows.rank_T, after_GP, 8)) == most


def test_domains_trade_whole() -> None:
    """What stood in one domain stands in one domain afterwards: what travels between them only changes its name."""
    problem = problem_of(1, (0, 1, 8, 9))
    slots_LGP = problem.any_plan().slots_DLGP[0]
    for before_GP, after_GP in zip(slots_LGP, near_requests(slots_LGP, problem), strict=True):
        held = {frozenset(before_GP[:2].ravel().tolist()), frozenset(before_GP[2:].ravel().tolist())}
        assert {frozenset(after_GP[:2].ravel().tolist()), frozenset(after_GP[2:].ravel().tolist())} == held


def test_requests_by_topic_send_less_away() -> None:
    """Two topics that like other experts: on ranks of their own they find more of them at home."""
    model = ModelShape.from_config(CONFIG, name="small")
    cluster, trace, seen = load_cluster("dgx-h200"), small_trace(), {}
    for placed in ("any", "topic"):
        workload = Workload(phase="prefill", tokens_per_rank=96, steps=2, request_placement=placed)
        found = place(cluster, model, trace, workload, solver="eplb", dispatch="per_rank", network="bound")
        seen[placed] = simulate(cluster, model, found.plan, trace, workload, network="bound", gains=False)
    assert seen["topic"].remote_fan_out < 0.97 * seen["any"].remote_fan_out
