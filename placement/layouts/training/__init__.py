"""The search for a layout of a training job: what is legal, what fits, what none can beat, and which is best."""

from moecast.placement.layouts.fitted import Fitting
from moecast.placement.layouts.training.cuts import own_cut
from moecast.placement.layouts.training.find import find_training
from moecast.placement.layouts.training.fitting import TrainingMemory, fitting
from moecast.placement.layouts.training.found import FoundTraining, TimedLayout, TrainingRunnerUp
from moecast.placement.layouts.training.layout import TrainingLayout
from moecast.placement.layouts.training.layout_answers import TrainingAnswers
from moecast.placement.layouts.training.question import TrainingQuestion
from moecast.placement.layouts.training.scoring import TrainingScores
from moecast.placement.layouts.training.space import TrainingSpace
from moecast.placement.layouts.training.step_floor import TrainingFloors

__all__ = [
    "Fitting",
    "FoundTraining",
    "TimedLayout",
    "TrainingAnswers",
    "TrainingFloors",
    "TrainingLayout",
    "TrainingMemory",
    "TrainingQuestion",
    "TrainingRunnerUp",
    "TrainingScores",
    "TrainingSpace",
    "find_training",
    "fitting",
    "own_cut",
]
