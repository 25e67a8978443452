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
from moecast.placement.solver import Solved, Solver

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


__all__ = ["SOLVERS", "Solved", "Solver", "find_solver"]
