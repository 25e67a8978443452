"""Layers on stages: dynamic programming, CP-SAT and trying all cuts agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.layouts.stages import StageProblem, by_cp_sat, by_dynamic_programming

Solver = Callable[[StageProblem], tuple[int, ...]]


def every_cut(layers: int, stages: int) -> list[tuple[int, ...]]:
    cuts = itertools.combinations(range(1, layers), stages - 1)
    return [tuple(sum(layer >= cut for cut in cut_) for layer in range(layers)) for cut_ in cuts]


@st.composite
def problems(draw: st.DrawFn, *, folded: bool = False) -> StageProblem:
    """Layers with times, sizes, activations, and a wish; `folded`: each rank has the two stages of a fold."""
    layers = draw(st.integers(2 if folded else 1, 7))
    row = {"min_size": layers, "max_size": layers}
    stages = draw(st.sampled_from([2, *([4] if layers > 3 else [])])) if folded else draw(st.integers(1, layers))
    stages_R = [(rank, stages - 1 - rank) for rank in range(stages // 2)] if folded else []
    ranks = len(stages_R) or stages
    return StageProblem(
        seconds_H=[time * 1e-6 for time in draw(st.lists(st.integers(0, 9000), **row))],
        bytes_H=draw(st.lists(st.integers(0, 50), **row)),
        stages=stages,
        usable_bytes=draw(st.integers(20, 200)),
        first_s=1e-3,
        last_s=draw(st.sampled_from([0.0, 4e-3])),
        last_bytes=7,
        kept_bytes_H=draw(st.lists(st.integers(0, 9), **row)),
        in_flight_R=draw(st.lists(st.sampled_from([0.5, 1, 2, 3]), min_size=ranks, max_size=ranks)),
        stages_R=stages_R,
        wanted_H=draw(st.one_of(st.just([]), st.lists(st.booleans(), **row))),
    )


def check_agreement(problem: StageProblem, solvers: tuple[Solver, ...]) -> None:
    """All solvers find a cut that trying every cut finds none better than, or all say that there is none."""
    cuts = [cut for cut in every_cut(len(problem.seconds_H), problem.stages) if problem.fits(cut)]
    if not cuts:
        for solve in solvers:
            with pytest.raises(MoecastError, match="no cut of"):
                solve(problem)
        return
    best_s = min(map(problem.slowest_s, cuts))
    for solve in solvers:
        found = solve(problem)
        assert found in cuts
        assert problem.slowest_s(found) == pytest.approx(best_s, abs=1e-8)


@settings(deadline=None, max_examples=200)
@given(problem=problems())
def test_all_three_agree(problem: StageProblem) -> None:
    check_agreement(problem, (by_dynamic_programming, by_cp_sat))


@settings(deadline=None, max_examples=60)
@given(problem=problems(folded=True))
def test_ranks_of_several_stages_are_cut_by_cp_sat(problem: StageProblem) -> None:
    check_agreement(problem, (by_cp_sat,))


def test_dynamic_programming_refuses_ranks_of_several_stages() -> None:
    problem = StageProblem(seconds_H=[1.0] * 4, bytes_H=[1] * 4, stages=2, usable_bytes=9, stages_R=[(0, 1)])
    with pytest.raises(MoecastError, match="CP-SAT"):
        by_dynamic_programming(problem)


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
    [
        {"stages": 0},
        {"stages": 4},
        {"bytes_H": [1]},
        {"seconds_H": [1.0, -1.0, 1.0]},
        {"seconds_H": [1, 1, 1e400]},
        {"kept_bytes_H": [1]},
        {"in_flight_R": [1.0]},
        {"stages_R": [(0,)]},
        {"wanted_H": [True]},
    ],
)
def test_what_is_no_problem_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MoecastError):
        StageProblem(**({"seconds_H": [1.0] * 3, "bytes_H": [1] * 3, "stages": 2, "usable_bytes": 9} | wrong))  # type: ignore[arg-type]
