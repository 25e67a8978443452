"""The solvers, by name. To add one: a file with a class that satisfies `Solver`, and an entry in `SOLVERS`.

A solver is a frozen dataclass whose fields beside `name` are its options; it checks them itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

from moecast.errors import MoecastError
from moecast.placement.balance import Balance
from moecast.placement.contiguous import Contiguous
from moecast.placement.eplb import Eplb
from moecast.placement.exact import Exact
from moecast.placement.exflow import Exflow
from moecast.placement.local_search import LocalSearch
from moecast.placement.moetuner import MoeTuner
from moecast.placement.random_places import RandomPlaces
from moecast.placement.round_robin import RoundRobin
from moecast.placement.sglang_vec import SglangVec
from moecast.placement.solver import LoadSolver, Solved, Solver

LOAD_SOLVERS: tuple[LoadSolver, ...] = (Contiguous(), RoundRobin(), Eplb(), Balance())
SOLVERS: tuple[Solver, ...] = (
    Contiguous(),
    RoundRobin(),
    RandomPlaces(),
    Eplb(),
    SglangVec(),
    Balance(),
    LocalSearch(),
    Exact(),
    MoeTuner(),
    Exflow(),
    Exflow(name="exflow-strong", strong=True),
)


S = TypeVar("S", Solver, LoadSolver)


def find_solver(solver: str | Solver, options: Mapping[str, Any] | None = None) -> Solver:
    """Find a solver by name, or take one that is not ours.

    Parameters
    ----------
    solver
        A name of `SOLVERS`, or any object that satisfies `Solver`.
    options
        Values for the solver's own fields; None leaves one as it is.

    Raises
    ------
    MoecastError
        There is none, the object is no solver, or it has no such option or not that value.
    """
    if not isinstance(solver, str):
        return _with(_checked(solver, "solve"), options or {})
    for known in SOLVERS:
        if known.name == solver:
            return _with(known, options or {})
    raise MoecastError(f"one of {_names(SOLVERS)}", field="solver", value=solver)


def find_load_solver(solver: str | LoadSolver, options: Mapping[str, Any] | None = None) -> LoadSolver:
    """Find a solver that needs no tokens by name, or take one that is not ours.

    `options` as in `find_solver`.

    Raises
    ------
    MoecastError
        There is none, the object is no solver, or it looks at which experts tokens choose together,
        which counts do not say.
    """
    if not isinstance(solver, str):
        return _with(_checked(solver, "spread"), options or {})
    for known in LOAD_SOLVERS:
        if known.name == solver:
            return _with(known, options or {})
    rule = f"one of {_names(LOAD_SOLVERS)}"
    if any(known.name == solver for known in SOLVERS):
        rule = f"it places by which experts tokens choose together, which counts do not say: use {rule}"
    raise MoecastError(rule, field="solver", value=solver)


def takes(solver: Solver | LoadSolver, option: str) -> bool:
    """Whether a solver has an option of this name."""
    return option != "name" and option in getattr(solver, "__dataclass_fields__", {})


def _names(solvers: Iterable[Solver | LoadSolver]) -> str:
    return ", ".join(solver.name for solver in solvers)


def _checked(solver: S, finds: str) -> S:
    """The error must name what is missing: an object of another kind would fail much later."""
    has_name = not isinstance(solver, type) and isinstance(getattr(solver, "name", None), str)
    missing = [] if has_name else ["name"]
    missing += [method for method in ("supports", finds) if not callable(getattr(solver, method, None))]
    if missing:
        rule = f"a name, or an object with name, supports and {finds}; this one lacks {', '.join(missing)}"
        raise MoecastError(rule, field="solver", value=type(solver).__name__)
    return solver


def _with(solver: S, options: Mapping[str, Any]) -> S:
    """The solver with other values of its options."""
    asked = {name: value for name, value in options.items() if value is not None}
    for name, value in asked.items():
        if not takes(solver, name):
            takers = _names(known for known in SOLVERS if takes(known, name))
            rule = f"only {takers} takes it, {solver.name} does not"
            raise MoecastError(rule, field=name, value=value)
    return cast(S, replace(cast(Any, solver), **asked)) if asked else solver


__all__ = ["LOAD_SOLVERS", "SOLVERS", "LoadSolver", "Solved", "Solver", "find_load_solver", "find_solver"]
