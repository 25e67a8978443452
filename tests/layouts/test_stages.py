"""Layers on stages: dynamic programming, CP-SAT and trying all cuts agree."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.layouts.stages import StageProblem, by_cp_sat, by_dynamic_programming


def every_cut(layers: int, stages: int) -> list[tuple[int, ...]]:
    cuts = itertools.combinations(range(1, layers), stages - 1)
    return [tuple(sum(layer >= cut for cut in cut_) for layer in range(layers)) for cut_ in cuts]


@st.composite
def problems(draw: st.DrawFn) -> StageProblem:
    layers = draw(st.integers(1, 8))
    times = draw(st.lists(st.integers(0, 9000), min_size=layers, max_size=layers))
    sizes = draw(st.lists(st.integers(0, 50), min_size=layers, max_size=layers))
    return StageProblem(
        seconds_H=[time * 1e-6 for time in times], bytes_H=sizes, stages=draw(st.integers(1, layers)),
        usable_bytes=draw(st.integers(20, 150)), first_s=1e-3, last_s=draw(st.sampled_from([0.0, 4e-3])), last_bytes=7,
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_all_three_agree(problem: StageProblem) -> None:
    cuts = [cut for cut in every_cut(len(problem.seconds_H), problem.stages) if problem.fits(cut)]
    if not cuts:
        for solve in (by_dynamic_programming, by_cp_sat):
            with pytest.raises(MoecastError, match="no cut of"):
                solve(problem)
        return
    best_s = min(map(problem.slowest_s, cuts))
    for solve in (by_dynamic_programming, by_cp_sat):
        found = solve(problem)
        assert found in cuts
        assert problem.slowest_s(found) == pytest.approx(best_s, abs=1e-8)


def test_a_stage_of_slow_layers_gets_fewer_of_them() -> None:
    problem = StageProblem(seconds_H=[1e-3] * 4 + [3e-3] * 2, bytes_H=[1] * 6, stages=2, usable_bytes=10)
    assert by_dynamic_programming(problem) == (0, 0, 0, 0, 1, 1)
    assert by_cp_sat(problem) == (0, 0, 0, 0, 1, 1)


def test_memory_moves_the_cut() -> None:
    times = [1e-3] * 6
    problem = StageProblem(seconds_H=times, bytes_H=[1, 1, 1, 3, 3, 3], stages=2, usable_bytes=7)
    assert by_dynamic_programming(problem) == (0, 0, 0, 0, 1, 1)


@pytest.mark.parametrize(
    "wrong",
    [{"stages": 0}, {"stages": 4}, {"bytes_H": [1]}, {"seconds_H": [1.0, -1.0, 1.0]}, {"seconds_H": [1, 1, 1e400]}],
)
def test_what_is_no_problem_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MoecastError):
        StageProblem(**({"seconds_H": [1.0] * 3, "bytes_H": [1] * 3, "stages": 2, "usable_bytes": 9} | wrong))  # type: ignore[arg-type]
