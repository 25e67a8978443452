"""The solvers, by name. To add one: a file with a class that satisfies `Solver`, and an entry in `SOLVERS`."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

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


S = TypeVar("S", Solver, LoadSolver)


def find_solver(
    solver: str | Solver,
    *,
    balance_weight: float | None = None,
    full: bool = False,
    expert_groups: int | None = None,
) -> Solver:
    """Find a solver by name, or take one that is not ours.

    Parameters
    ----------
    solver
        A name of `SOLVERS`, or any object that satisfies `Solver`.
    balance_weight
        For the joint search (see `moecast.placement.joint.Joint`).
    full
        Every slot must be used: the joint search then looks for such plans only.
    expert_groups
        For EPLB (see `moecast.placement.eplb.Eplb`).

    Raises
    ------
    MoecastError
        There is none, the object is no solver, or it takes no weight or no groups.
    """
    if isinstance(solver, str):
        chosen = next((known for known in SOLVERS if known.name == solver), None)
        if chosen is None:
            raise MoecastError(f"one of {', '.join(known.name for known in SOLVERS)}", field="solver", value=solver)
    else:
        chosen = _checked(solver, "solve")
    chosen = _with_groups(chosen, expert_groups)
    if isinstance(chosen, Joint) and isinstance(solver, str):
        return replace(chosen, balance_weight=balance_weight, full=full)
    if balance_weight is not None:
        rule = "only the joint search takes one, when it is asked for by name"
        raise MoecastError(rule, field="balance_weight", value=balance_weight)
    return chosen


def _checked(solver: S, finds: str) -> S:
    """The error must name what is missing: an object of another kind would fail much later."""
    has_name = not isinstance(solver, type) and isinstance(getattr(solver, "name", None), str)
    missing = [] if has_name else ["name"]
    missing += [method for method in ("supports", finds) if not callable(getattr(solver, method, None))]
    if missing:
        rule = f"a name, or an object with name, supports and {finds}; this one lacks {', '.join(missing)}"
        raise MoecastError(rule, field="solver", value=type(solver).__name__)
    return solver


def _with_groups(solver: S, expert_groups: int | None) -> S:
    if expert_groups is None:
        return solver
    if not isinstance(solver, Eplb):
        raise MoecastError("only eplb takes groups", field="expert_groups", value=expert_groups)
    if expert_groups < 1:
        raise MoecastError("at least 1", field="expert_groups", value=expert_groups)
    return replace(solver, expert_groups=expert_groups)


def find_load_solver(solver: str | LoadSolver, *, expert_groups: int | None = None) -> LoadSolver:
    """Find a solver that needs no tokens by name, or take one that is not ours; `expert_groups` as in `find_solver`.

    Raises
    ------
    MoecastError
        There is none, the object is no solver, or it looks at which experts tokens choose together, which counts do not
        say.
    """
    if not isinstance(solver, str):
        return _with_groups(_checked(solver, "spread"), expert_groups)
    for known in LOAD_SOLVERS:
        if known.name == solver:
            return _with_groups(known, expert_groups)
    names = ", ".join(known.name for known in LOAD_SOLVERS)
    if any(known.name == solver for known in SOLVERS):
        rule = f"it places by which experts tokens choose together, which counts do not say: use one of {names}"
        raise MoecastError(rule, field="solver", value=solver)
    raise MoecastError(f"one of {names}", field="solver", value=solver)


__all__ = ["LOAD_SOLVERS", "SOLVERS", "LoadSolver", "Solved", "Solver", "find_load_solver", "find_solver"]
