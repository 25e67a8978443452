"""The search for a layout of a training job: what is legal, what fits, what none can beat, and which is best."""

from moecast.placement.layouts.training.fitting import Fitting, TrainingMemory, fitting
from moecast.placement.layouts.training.layout import TrainingLayout
from moecast.placement.layouts.training.question import TrainingQuestion
from moecast.placement.layouts.training.space import TrainingSpace

__all__ = ["Fitting", "TrainingLayout", "TrainingMemory", "TrainingQuestion", "TrainingSpace", "fitting"]
