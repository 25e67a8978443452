"""The simulator: what a plan's routing costs on a cluster, from traffic to a Prediction."""

from moecast.sim.collectives import (
    COLLECTIVES,
    DEFAULT_MODE,
    KINDS,
    MODES,
    OPERATIONS,
    CollectiveTime,
    collective_for,
    even_all_to_all,
    mode_of,
    time_collective,
)
from moecast.sim.cost import kernels_on
from moecast.sim.drawn_steps import draw_steps, fit_workload
from moecast.sim.engines import ENGINES, Engine, find_engine
from moecast.sim.forecaster import Forecaster, bound_objective_s
from moecast.sim.forward import ForwardPass
from moecast.sim.layout import Layout
from moecast.sim.load_model import list_models, load_model
from moecast.sim.made_by import MadeBy
from moecast.sim.memory import fits, memory_by_part
from moecast.sim.model import ModelShape
from moecast.sim.network import RUNGS, Fluid, Rung, find_rung, usual_rung
from moecast.sim.placed_model import PlacedModel
from moecast.sim.plan import DISPATCH_MODES, REPLICA_RULES, Plan, read_plan, write_plan
from moecast.sim.prediction import Prediction, read_prediction, write_prediction
from moecast.sim.program import Compute, Exchange, Flows, StepProgram, StepTimes
from moecast.sim.question import Question
from moecast.sim.replicas import ReplicaTable
from moecast.sim.schedules import SCHEDULES
from moecast.sim.simulate import simulate, simulate_question, simulate_step, step_program
from moecast.sim.sites import Sites
from moecast.sim.step import Step
from moecast.sim.timeline import program_timeline, step_timeline, write_timeline
from moecast.sim.traffic import LayerTraffic, StepTraffic, count_traffic
from moecast.sim.workload import Workload

__all__ = [
    "COLLECTIVES",
    "DEFAULT_MODE",
    "DISPATCH_MODES",
    "ENGINES",
    "KINDS",
    "MODES",
    "OPERATIONS",
    "REPLICA_RULES",
    "RUNGS",
    "SCHEDULES",
    "CollectiveTime",
    "Compute",
    "Engine",
    "Exchange",
    "Flows",
    "Fluid",
    "Forecaster",
    "ForwardPass",
    "LayerTraffic",
    "Layout",
    "MadeBy",
    "ModelShape",
    "PlacedModel",
    "Plan",
    "Prediction",
    "Question",
    "ReplicaTable",
    "Rung",
    "Sites",
    "Step",
    "StepProgram",
    "StepTimes",
    "StepTraffic",
    "Workload",
    "bound_objective_s",
    "collective_for",
    "count_traffic",
    "draw_steps",
    "even_all_to_all",
    "find_engine",
    "find_rung",
    "fit_workload",
    "fits",
    "kernels_on",
    "list_models",
    "load_model",
    "memory_by_part",
    "mode_of",
    "program_timeline",
    "read_plan",
    "read_prediction",
    "simulate",
    "simulate_question",
    "simulate_step",
    "step_program",
    "step_timeline",
    "time_collective",
    "usual_rung",
    "write_plan",
    "write_prediction",
    "write_timeline",
]
