"""Training steps: what their passes cost, what ranks send each other for gradients, what stands in memory.

Pure functions of a model's shape, the degrees of a layout and the hardware; schedules put them in
order.
"""

from moecast.sim.training.activations import Kept
from moecast.sim.training.flop import model_flop_per_token, model_tflops_per_gpu
from moecast.sim.training.gradients import ZERO_LEVELS, Reduction, reductions
from moecast.sim.training.host import HostWait
from moecast.sim.training.memory import training_memory
from moecast.sim.training.optimizer import OPTIMIZERS, Adam, Muon, Optimizer
from moecast.sim.training.overlapped import overlaps
from moecast.sim.training.passes import Passes
from moecast.sim.training.precision import BF16, FP8, PRECISIONS, Precision
from moecast.sim.training.prediction import TrainingPrediction, write_training
from moecast.sim.training.recipe import Recipe
from moecast.sim.training.recompute import FULL, NONE, RECOMPUTES, SELECTIVE, Recompute
from moecast.sim.training.shard import Held, Shard
from moecast.sim.training.simulate import TimedTraining, draw_microbatches, simulate_training, time_training
from moecast.sim.training.stage import StageWork, stage_work
from moecast.sim.training.step import training_program
from moecast.sim.training.work import TrainingPass

__all__ = [
    "BF16",
    "FP8",
    "FULL",
    "NONE",
    "OPTIMIZERS",
    "PRECISIONS",
    "RECOMPUTES",
    "SELECTIVE",
    "ZERO_LEVELS",
    "Adam",
    "Held",
    "HostWait",
    "Kept",
    "Muon",
    "Optimizer",
    "Passes",
    "Precision",
    "Recipe",
    "Recompute",
    "Reduction",
    "Shard",
    "StageWork",
    "TimedTraining",
    "TrainingPass",
    "TrainingPrediction",
    "draw_microbatches",
    "model_flop_per_token",
    "model_tflops_per_gpu",
    "overlaps",
    "reductions",
    "simulate_training",
    "stage_work",
    "time_training",
    "training_memory",
    "training_program",
    "write_training",
]
