"""The tokens that searches look at: counted by hand, shared out over windows, and served as the replica rules say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import PlacementProblem
from moecast.placement.replicas import longest_first, replica_counts
from moecast.placement.windows import MAX_WINDOWS, Windows, draw_more
from moecast.sim import Plan, Workload, draw_steps
from moecast.traces import NO_CHOICE, PHASES, RoutingTrace

from .served import served
from .test_invariants import problems, skewed_trace, small_cluster, small_model


def topical(trace: RoutingTrace, topics: int) -> RoutingTrace:
    """Sequences take turns at the topics."""
    names = tuple("abcdefghij"[:topics])
    return replace(trace, topics=names, topic_T=(trace.sequence_T % topics).astype(np.int16))


@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_every_choice_of_the_drawn_steps_is_in_one_window(problem: PlacementProblem) -> None:
    """Against counts in plain Python, by step and EP group."""
    windows, layout, trace = problem.windows, problem.wanted, problem.trace
    steps, _ = draw_more(trace, problem.workload, problem.steps, ranks=problem.sources)
    drawn = Counter((number, int(row)) for number, step in enumerate(steps) for row in step.token_T)
    there = zip(windows.step_T // layout.groups, windows.row_T, strict=True)
    assert Counter((int(step), int(row)) for step, row in there) == drawn
    for layer in range(layout.layers):
        wanted = Counter(
            (int(window), int(expert))
            for window, row in zip(windows.window_T, windows.row_T, strict=True)
            for expert in trace.experts_TLK[row, layer]
            if expert != NO_CHOICE
        )
        found = windows.load_LWE[layer]
        assert {(w, e): int(found[w, e]) for w, e in np.argwhere(found)} == wanted
    assert windows.step_share_W.sum() == pytest.approx(1)
    assert windows.n <= MAX_WINDOWS
    assert windows.n_steps == len(steps) * layout.groups
    assert ((windows.rank_T >= 0) & (windows.rank_T < layout.ep)).all()
    for step in np.unique(windows.step_T):  # a step of an EP group is never torn apart
        assert len(np.unique(windows.window_T[windows.step_T == step])) == 1


def test_counted_tokens_stand_for_all_of_their_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecast.placement.windows.MAX_TOKENS", 100)
    trace = skewed_trace(2, layers=1, experts=8, choices=2, tokens=1024, phase="prefill")
    layout = Plan.contiguous(layers=1, experts=8, choices=2, ep=4)
    steps = draw_steps(trace, Workload(phase="prefill", tokens_per_rank=16, steps=8), ranks=4)
    windows = Windows.of(trace, steps, layout)
    assert windows.counted_T.sum() == 100
    for window in range(windows.n):
        counted_T = windows.counted_T[windows.window_T == window]
        assert windows.counted_share_W[window] == pytest.approx(counted_T.mean())
        assert counted_T.any()


def test_steps_of_one_topic_share_windows_by_topic_only() -> None:
    trace = topical(skewed_trace(1, layers=1, experts=8, choices=2, tokens=4096, phase="decode"), 3)
    workload = Workload(phase="decode", tokens_per_rank=2, steps=30, one_topic_per_step=True)
    steps = draw_steps(trace, workload, ranks=4)
    windows = Windows.of(trace, steps, Plan.contiguous(layers=1, experts=8, choices=2, ep=2, groups=2))
    assert 3 <= windows.n <= MAX_WINDOWS
    for window in range(windows.n):
        in_window = np.unique(windows.step_T[windows.window_T == window]) // 2
        assert {steps[step].topic for step in in_window} == {"abc"[windows.topic_W[window]]}
    pooled = windows.pooled()
    assert pooled.n == 3
    np.testing.assert_array_equal(pooled.load_LWE.sum(1), windows.load_LWE.sum(1))
    np.testing.assert_allclose(pooled.step_share_W.sum(), 1)
    for topic in range(3):
        rows = windows.row_T[windows.topic_W[windows.window_T] == topic]
        np.testing.assert_array_equal(np.sort(rows), np.sort(pooled.row_T[pooled.window_T == topic]))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_plans_are_fitted_to_more_than_is_simulated_and_compared_on_other_drawings(phase: str) -> None:
    trace = skewed_trace(1, layers=1, experts=8, choices=2, tokens=2048, phase=phase)
    workload = Workload(phase=phase, tokens_per_rank=4, steps=2)
    planning = tuple(draw_steps(trace, workload, ranks=4))
    fitted, held_out = draw_more(trace, workload, planning, ranks=4)
    assert len(fitted) > len(planning)
    assert [step.n_tokens for step in (*fitted, *held_out)] == [16] * (len(fitted) + len(held_out))
    for one, other in zip(planning, fitted, strict=False):  # a longer drawing begins as the shorter one does
        np.testing.assert_array_equal(one.token_T, other.token_T)
    seen = {step.token_T.tobytes() for step in fitted}
    assert not [step for step in held_out if step.token_T.tobytes() in seen]
    rows = np.concatenate([step.token_T for step in fitted])
    assert (trace.phase_T[rows] == PHASES.index(phase)).all()


def test_recorded_steps_are_all_there_is() -> None:
    trace = skewed_trace(1, layers=1, experts=8, choices=2, tokens=64, phase="prefill")
    at = np.arange(64)
    trace = replace(trace, step_T=(at // 32).astype(np.uint32), source_rank_T=(at % 4).astype(np.uint16))
    workload = Workload(phase="prefill", tokens_per_rank=8, steps=2, steps_mode="as-recorded")
    steps = tuple(draw_steps(trace, workload, ranks=4))
    assert draw_more(trace, workload, steps, ranks=4) == (steps, steps)


def test_a_trace_without_a_token_to_spare_is_fitted_to_as_it_is() -> None:
    trace = skewed_trace(1, layers=1, experts=8, choices=2, tokens=64, phase="prefill")
    problem = PlacementProblem(
        cluster=small_cluster(1),
        model=small_model(1, 8, 2),
        trace=trace,
        workload=Workload(phase="prefill", tokens_per_rank=16, steps=1),
        wanted=Plan.contiguous(layers=1, experts=8, choices=2, ep=4),
    )
    assert len(problem.steps) == 1
    assert set(problem.windows.row_T.tolist()) == set(range(64))
    assert problem.held_out


@settings(max_examples=40, deadline=None)
@given(problem=problems(), rule=st.sampled_from(["round_robin", "nearest", "fixed", "by_rank"]))
def test_choices_are_served_as_the_rule_says(problem: PlacementProblem, rule: str) -> None:
    """In plain Python: in turn over all replicas, over the near ones, or one for each rank for good."""
    problem = PlacementProblem(
        cluster=problem.cluster,
        model=problem.model,
        trace=problem.trace,
        workload=problem.workload,
        wanted=problem.wanted.with_(replica_rule=rule),
    )
    windows, ep = problem.windows, problem.wanted.ep
    replicas_E = replica_counts(windows.load_LWE[0], slots=int(problem.slots_G.sum()), ranks=ep)
    items = longest_first(windows.load_LWE[0].sum(0), replicas_E, problem.slots_G, problem.domain_G)
    chosen_TK = problem.trace.experts_TLK[windows.row_T, 0]
    found_TK = served(problem, items, chosen_TK, windows)
    place_G = problem.node_G if rule == "fixed" else problem.domain_G
    taken: Counter[tuple[int, int, int]] = Counter()
    for t, (source, step) in enumerate(zip(windows.rank_T.tolist(), windows.step_T.tolist(), strict=True)):
        for k, expert in enumerate(chosen_TK[t].tolist()):
            held = [v for v in range(len(items.rank_V)) if items.expert_V[v] == expert]
            near = [v for v in held if place_G[items.rank_V[v]] == place_G[source]]
            turn = source + taken[step, source, expert] * (rule != "by_rank")
            taken[step, source, expert] += 1
            of = near if near and rule in ("nearest", "fixed") else held
            assert found_TK[t, k] == of[turn % len(of)]
