"""The last steps of a search against every placement of small layers, timed one by one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moecast.placement import Budget, Limit, Objective
from moecast.placement.finalists import DOUBT
from moecast.placement.polish import neighbours, polished, settled

ROOT = Path(__file__).parents[2]


def small_cases() -> ModuleType:
    """The benchmark that times hundreds of such cases."""
    spec = importlib.util.spec_from_file_location("small_cases", ROOT / "benchmarks" / "small_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_cases"] = module
    spec.loader.exec_module(module)
    return module


CASES = small_cases()


@pytest.mark.slow
def test_the_search_finds_the_least_step_time_or_nearly() -> None:
    problems = [CASES.case(number) for number in range(9) if number != 7]  # that one has 2,520 placements
    gaps = [
        CASES.gap(problem, list(CASES.every_filling(problem.wanted.experts, problem.slots_G))) for problem in problems
    ]
    assert np.mean(gaps) <= 0.0015
    assert max(gaps) <= 0.02


@pytest.mark.parametrize("full", [True, False])
def test_neighbours_are_legal_and_lead_to_every_placement(full: bool) -> None:
    """Of four experts in two ranks of three slots, from any one of them."""
    slots_G = np.array([3, 3], np.int32)
    start = np.array([[0, 1, 2], [3, 0, 1]], np.int32)
    seen, todo = set(), [start]
    while todo:
        table = todo.pop()
        key = tuple(frozenset(row[row >= 0].tolist()) for row in table)
        if key in seen:
            continue
        seen.add(key)
        todo += neighbours(table, slots_G, 4, full=full)
    every = CASES.every_filling(4, slots_G)
    wanted = {tuple(frozenset(row[row >= 0].tolist()) for row in table) for table in every}
    assert seen == ({key for key in wanted if all(len(row) == 3 for row in key)} if full else wanted)


def test_polishing_ends_where_no_neighbour_is_faster() -> None:
    problem = CASES.case(3)
    objective = Objective(problem)
    start = objective.estimate(problem.any_plan().slots_DLGP[0])
    best = polished(problem, objective, [start], Budget(), full=False)[0]
    near = neighbours(best.slots_LGP[0], problem.slots_G, problem.wanted.experts, full=False)
    assert best.step_s <= min(objective.estimate(table[None]).step_s for table in near)
    assert best.step_s <= start.step_s


def test_out_of_time_it_gives_what_it_was_given() -> None:
    problem = CASES.case(3)
    objective = Objective(problem)
    start = objective.estimate(problem.any_plan().slots_DLGP[0])
    (found,) = polished(problem, objective, [start], Budget(Limit(time_s=1e-9)), full=False)
    np.testing.assert_array_equal(found.slots_LGP, start.slots_LGP)


def test_no_neighbour_of_a_settled_plan_is_timed_faster() -> None:
    problem = CASES.case(3)
    objective = Objective(problem)
    start = problem.any_plan().slots_DLGP[0]
    found = settled(problem, objective, start, Budget(), full=False)
    assert objective.expected_s(found) <= objective.expected_s(start)
    most_s = (1 + DOUBT) * objective.estimate(found).step_s
    near = [table[None] for table in neighbours(found[0], problem.slots_G, problem.wanted.experts, full=False)]
    close = [table for table in near if objective.estimate(table).step_s <= most_s]
    assert objective.expected_s(found) <= min(objective.expected_s(table) for table in close) * (1 + 1e-9)
    stopped = settled(problem, objective, start, Budget(Limit(time_s=1e-9)), full=False)
    np.testing.assert_array_equal(stopped, start)
