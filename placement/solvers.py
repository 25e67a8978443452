"""The solvers, by name. To add one: a file with a class that satisfies `Solver`, and an entry in `SOLVERS`."""

from __future__ import annotations

from dataclasses import replace

from moecast.errors import MoecastError
from moecast.placement.balance import Balance
from moecast.placement.contiguous import Contiguous
from moecast.placement.eplb import Eplb
from moecast.placement.exact import Exact
from moecast.placement.joint import Joint
from moecast.placement.round_robin import RoundRobin
from moecast.placement.solver import LoadSolver, Solved, Solver

LOAD_SOLVERS: tuple[LoadSolver, ...] = (Contiguous(), RoundRobin(), Eplb(), Balance())
SOLVERS: tuple[Solver, ...] = (Contiguous(), RoundRobin(), Eplb(), Balance(), Joint(), Exact())


def find_solver(name: str, *, balance_weight: float | None = None, full: bool = False) -> Solver:
    """Find a solver by name.

    Parameters
    ----------
    balance_weight
        For the joint search (see `moecast.placement.joint.Joint`).
    full
        Every slot must be used: the joint search then looks for such plans only.

    Raises
    ------
    MoecastError
        There is none, or it takes no weight.
    """
    for solver in SOLVERS:
        if solver.name == name:
            if isinstance(solver, Joint):
                return replace(solver, balance_weight=balance_weight, full=full)
            if balance_weight is None:
                return solver
            raise MoecastError("only the joint search takes one", field="balance_weight", value=balance_weight)
    raise MoecastError(f"one of {', '.join(solver.name for solver in SOLVERS)}", field="solver", value=name)


def find_load_solver(name: str) -> LoadSolver:
    """Find a solver that needs no tokens by name.

    Raises
    ------
    MoecastError
        There is none, or it looks at which experts tokens choose together, which counts do not say.
    """
    for solver in LOAD_SOLVERS:
        if solver.name == name:
            return solver
    names = ", ".join(solver.name for solver in LOAD_SOLVERS)
    if any(solver.name == name for solver in SOLVERS):
        rule = f"it places by which experts tokens choose together, which counts do not say: use one of {names}"
        raise MoecastError(rule, field="solver", value=name)
    raise MoecastError(f"one of {names}", field="solver", value=name)


__all__ = ["LOAD_SOLVERS", "SOLVERS", "LoadSolver", "Solved", "Solver", "find_load_solver", "find_solver"]
