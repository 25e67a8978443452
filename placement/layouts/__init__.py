"""The search for a layout: what is legal, what fits, what none can beat, and which is best."""

from moecast.placement.layouts.find_serving import find_serving
from moecast.placement.layouts.found_serving import FoundServing
from moecast.placement.layouts.layout_answers import LayoutAnswers
from moecast.placement.layouts.scoring import Score, StepScores
from moecast.placement.layouts.serving_layout import ServingLayout
from moecast.placement.layouts.serving_question import ServingQuestion
from moecast.placement.layouts.space import Space
from moecast.placement.layouts.steady import Slo, Steady
from moecast.placement.layouts.step_floor import StepFloors, step_floors

__all__ = [
    "FoundServing",
    "LayoutAnswers",
    "Score",
    "ServingLayout",
    "ServingQuestion",
    "Slo",
    "Space",
    "Steady",
    "StepFloors",
    "StepScores",
    "find_serving",
    "step_floors",
]
