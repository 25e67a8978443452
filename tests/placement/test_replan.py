"""Re-planning: it wins where the traffic drifts and loses where weights are large and steps are few."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.placement import PlacementProblem
from moecast.placement.replan import Replanning, cut, replan
from moecast.placement.replanned import Course, Replanned, break_even_steps
from moecast.sim import Plan, Workload
from moecast.traces import PHASES, RoutingTrace

from .test_invariants import skewed_trace, small_cluster, small_model

LAYERS, EXPERTS, WINDOWS = 2, 16, 4


def drifting(windows: int, *, tokens: int = 1024) -> RoutingTrace:
    """In each window other experts are hot."""
    parts = [
        skewed_trace(seed, layers=LAYERS, experts=EXPERTS, choices=2, tokens=tokens, phase="prefill")
        for seed in range(windows)
    ]
    at = np.arange(windows * tokens)
    return replace(
        parts[0],
        experts_TLK=np.concatenate([part.experts_TLK for part in parts]),
        sequence_T=(at // 8).astype(np.uint32),
        position_T=(at % 8).astype(np.uint32),
        phase_T=np.full(len(at), parts[0].phase_T[0], np.uint8),
        topic_T=np.full(len(at), -1, np.int16),
    )


def problem(trace: RoutingTrace, *, tokens: int = 64, steps: int = 2, nodes: int = 1) -> PlacementProblem:
    layout = Plan.contiguous(layers=LAYERS, experts=EXPERTS, choices=2, ep=4)
    return PlacementProblem(
        cluster=small_cluster(nodes),
        model=small_model(LAYERS, EXPERTS, 2),
        trace=trace,
        workload=Workload(phase="prefill", tokens_per_rank=tokens, steps=steps),
        wanted=layout.with_(gpu_of_rank=tuple(8 * (rank % nodes) + rank for rank in range(4))),
        network="bound",
    )


def test_break_even_is_where_the_gain_has_paid() -> None:
    assert break_even_steps(3.0, 0.5) == 6.0
    assert break_even_steps(3.0, 0.0) is None
    assert break_even_steps(3.0, -0.5) is None
    assert break_even_steps(0.0, -0.5) == 0.0


def test_windows_keep_sequences_whole_and_in_order() -> None:
    trace = drifting(3)
    parts = cut(trace, 5)
    np.testing.assert_array_equal(np.concatenate([part.experts_TLK for part in parts]), trace.experts_TLK)
    sequences = [set(part.sequence_T.tolist()) for part in parts]
    assert sum(map(len, sequences)) == len(set.union(*sequences)) == len(np.unique(trace.sequence_T))
    assert max(part.n_tokens for part in parts) - min(part.n_tokens for part in parts) <= 8
    half_T = np.arange(trace.n_tokens) < trace.n_tokens // 2
    phases = replace(trace, phase_T=np.where(half_T, PHASES.index("prefill"), PHASES.index("decode")).astype(np.uint8))
    for part in cut(phases, 2):
        assert np.bincount(part.phase_T, minlength=3)[1:].tolist() == [trace.n_tokens // 4] * 2
    with pytest.raises(MoecastError, match="windows"):
        cut(trace.select(slice(0, 16)), 3)


def test_drift_makes_replanning_win() -> None:
    # Windows come in pairs of one kind of text: every other time, the last one predicts the next.
    trace = drifting(WINDOWS, tokens=8192)
    asked = Replanning(windows=2 * WINDOWS, window_steps=100_000, periods=(1, 2))
    found = replan(problem(trace, tokens=512), asked)
    assert found.best in found.replanned
    assert found.words()[0].startswith("rebalance every")
    even = found.break_even(found.best)
    assert even is not None
    assert 0 < even["steps"] < asked.window_steps
    assert even["tokens"] == pytest.approx(even["steps"] * 4 * 512)
    kept = replan(problem(trace, tokens=512), replace(asked, keep_ranks=True))
    for course, traded in zip(found.replanned, kept.replanned, strict=True):
        assert sum(moved.bytes for moved in traded.migrations) < sum(moved.bytes for moved in course.migrations)
    assert json.loads(json.dumps(found.to_json()))["replanned"][0]["every_steps"] == 100_000


def test_24_rearrangements_of_large_weights_between_small_steps_lose_threefold() -> None:
    trace = skewed_trace(0, layers=LAYERS, experts=EXPERTS, choices=2, tokens=26 * 64, phase="prefill")
    asked, question = Replanning(windows=26, window_steps=1, periods=(1,)), problem(trace, tokens=4, steps=1, nodes=2)
    found = replan(question, asked)
    (often,) = found.replanned
    assert len(often.migrations) == 24
    ratio = found.total_s(often) / found.total_s(found.static)
    assert ratio == pytest.approx((often.step_s_W.sum() + often.added_s) / found.static.step_s_W.sum())
    assert ratio > 3
    assert found.words()[0].startswith("rebalance: n")
    slower = replan(question, replace(asked, engine_s=0.25)).replanned[0]
    assert slower.added_s == pytest.approx(often.added_s + 24 * 0.25)
    beside = replan(question, replace(asked, paused=False))
    assert beside.replanned[0].added_s < often.added_s


def test_a_plan_that_stays_moves_nothing() -> None:
    trace = drifting(1, tokens=4096)
    found = replan(problem(trace), Replanning(windows=4), solver="contiguous")
    assert [course.period for course in found.replanned] == [1, 2]
    for course in found.replanned:
        assert course.added_s == 0.0
        np.testing.assert_array_equal(course.step_s_W, found.contiguous.step_s_W)
    assert found.best is found.contiguous
    assert found.words()[0].startswith("rebalance: never")


@pytest.mark.parametrize(
    "wrong", [{"windows": 1}, {"periods": (0,)}, {"order": "random"}, {"engine_s": -1.0}, {"window_steps": -1}]
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MoecastError, match=next(iter(wrong))):
        Replanning(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step_s", "added_s", "said"),
    [(0.8, 1.0, "rebalance every 10 steps"), (0.8, 50.0, "rebalance: not so often"), (0.99, 1.0, "rebalance: never")],
)
def test_words_follow_the_total_and_the_gain(step_s: float, added_s: float, said: str) -> None:
    def course(period: int, step_s: float, added_s: float = 0.0) -> Course:
        return Course(period=period, step_s_W=np.full(4, step_s), migrations=(), added_s=added_s)

    found = Replanned(
        window_steps=10,
        tokens_per_step=64.0,
        paused=True,
        order="recorded",
        contiguous=course(0, 1.1),
        static=course(0, 1.0),
        replanned=(course(1, step_s, added_s),),
    )
    assert found.words()[0].startswith(said)
