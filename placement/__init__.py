"""Placement: solvers that make Plans, certificates of what no plan can beat, and engines' placement files."""

from moecast.placement.certificate import certificate_s
from moecast.placement.eplb import rebalance
from moecast.placement.limit import Budget, Limit
from moecast.placement.objective import Objective
from moecast.placement.place import Placement, place
from moecast.placement.problem import PlacementProblem
from moecast.placement.solver import Solved, Solver
from moecast.placement.solvers import SOLVERS, find_solver

__all__ = [
    "SOLVERS",
    "Budget",
    "Limit",
    "Objective",
    "Placement",
    "PlacementProblem",
    "Solved",
    "Solver",
    "certificate_s",
    "find_solver",
    "place",
    "rebalance",
]
