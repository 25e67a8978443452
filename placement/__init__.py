"""Placement: solvers that make Plans, certificates of what no plan can beat, and engines' placement files."""

from moecast.placement.by_load import LoadPlacement, LoadProblem, place_by_load
from moecast.placement.certificates import certificate_s
from moecast.placement.eplb import rebalance
from moecast.placement.limit import Budget, Limit
from moecast.placement.migration import Migration, migration
from moecast.placement.objective import Objective
from moecast.placement.place import place
from moecast.placement.placement import Placement
from moecast.placement.problem import PlacementProblem
from moecast.placement.replan import Replanning, replan
from moecast.placement.replanned import Replanned
from moecast.placement.solver import LoadSolver, Solved, Solver
from moecast.placement.solvers import LOAD_SOLVERS, SOLVERS, find_load_solver, find_solver

__all__ = [
    "LOAD_SOLVERS",
    "SOLVERS",
    "Budget",
    "Limit",
    "LoadPlacement",
    "LoadProblem",
    "LoadSolver",
    "Migration",
    "Objective",
    "Placement",
    "PlacementProblem",
    "Replanned",
    "Replanning",
    "Solved",
    "Solver",
    "certificate_s",
    "find_load_solver",
    "find_solver",
    "migration",
    "place",
    "place_by_load",
    "rebalance",
    "replan",
]
