"""The search for a layout: what is legal, what fits, what none can beat, and which is best."""

from moecast.placement.layouts.serving_layout import ServingLayout
from moecast.placement.layouts.serving_question import ServingQuestion
from moecast.placement.layouts.space import Space
from moecast.placement.layouts.step_floor import StepFloors, step_floors

__all__ = ["ServingLayout", "ServingQuestion", "Space", "StepFloors", "step_floors"]
