"""Linear programs of whole numbers, solved by CBC through PuLP within what is left of a budget."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moecast.placement.limit import Budget

DEFAULT_NODES = 2_000  # of branch and bound, for one program without any limit
LEAST_S = 0.1


def solve_by_cbc(
    program: Any, budget: Budget, *, programs_left: int = 1, gap: float = 0.0, absolute: float | None = None
) -> bool | None:
    """Solve one of several programs with its part of the budget, from the variables' initial values on.

    Parameters
    ----------
    program
        A `pulp.LpProblem` whose variables of whole numbers all have initial values.
    programs_left
        Programs among which what is left is shared, this one included. A work limit counts nodes.
    gap, absolute
        How far from the proved bound is good enough: in parts of the objective, and in its own
        unit.

    Returns
    -------
    Whether the values are proved to be within the gap of the best; None where CBC found none in
    time.
    """
    import pulp

    nodes = DEFAULT_NODES if budget.limit.work is None else max(1, budget.work_left(0) // programs_left)
    limit_s = None
    if budget.seconds_left < float("inf"):
        limit_s = max(budget.seconds_left / programs_left, LEAST_S)
    with warnings.catch_warnings():
        # PuLP 4 will no longer bring CBC along; 3 is asked for
        warnings.simplefilter("ignore", DeprecationWarning)
        solver = pulp.PULP_CBC_CMD(
            msg=False, threads=1, timeLimit=limit_s, maxNodes=nodes, gapRel=gap, gapAbs=absolute, warmStart=True
        )
        program.solve(solver)
    budget.spend(nodes)
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None
    return bool(program.sol_status == pulp.LpSolutionOptimal)
