"""What plans are judged by: the rung's mean over judged steps, and an estimate that adds up over layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.placement import Objective, PlacementProblem
from moecast.sim import simulate_step

from .test_invariants import problems, random_plans


@settings(max_examples=12, deadline=None)
@given(problem=problems(), seed=st.integers(0, 9999))
def test_the_objective_is_the_mean_of_the_rungs_times(problem: PlacementProblem, seed: int) -> None:
    objective = Objective(problem)
    (slots_LGP,) = random_plans(problem, seed, 1)
    plan = problem.plan(slots_LGP)
    times = [
        simulate_step(
            problem.cluster, problem.model, plan, problem.trace, step, network=problem.network, seed=problem.seed
        )[1].step_time_s
        for step in objective.judged
    ]
    assert objective.step_s(slots_LGP) == pytest.approx(np.mean(times), rel=1e-12)
    assert objective.step_s(np.asfortranarray(slots_LGP)) == objective.step_s(slots_LGP)


@settings(max_examples=12, deadline=None)
@given(problem=problems(), seed=st.integers(0, 9999))
def test_estimates_add_up_over_layers(problem: PlacementProblem, seed: int) -> None:
    """So that the best of each layer make the plan with the least estimate; not where tokens stay, and so move on."""
    if problem.wanted.dispatch == "stay":
        return
    objective = Objective(problem)
    one, other = (objective.estimate(slots_LGP) for slots_LGP in random_plans(problem, seed, 2))
    best_L = np.where(one.layer_s_L <= other.layer_s_L, 0, 1)
    mixed = np.stack([(one, other)[best].slots_LGP[layer] for layer, best in enumerate(best_L)])
    found = objective.estimate(mixed)
    np.testing.assert_allclose(found.layer_s_L, np.minimum(one.layer_s_L, other.layer_s_L), rtol=1e-12)
    assert found.step_s <= min(one.step_s, other.step_s) * (1 + 1e-12)
