"""How far off forecasts were on rows that nobody fitted, and what that says of the next one: intervals and grounds."""

from moecast.sim.accuracy.collectives import collective_grounds, collective_text
from moecast.sim.accuracy.difference import Difference, difference_of, layouts_apart
from moecast.sim.accuracy.grounds import Grounds, grounds_of, steady_grounds, training_grounds
from moecast.sim.accuracy.interval import LEVEL, Interval, error_interval, interval_of
from moecast.sim.accuracy.known_errors import (
    SERVED,
    STEADY,
    JudgedRow,
    KnownErrors,
    KnownFamily,
    PairedErrors,
    known_errors,
    request_errors,
    steady_errors,
)
from moecast.sim.accuracy.served import served_grounds, served_text

__all__ = [
    "LEVEL",
    "SERVED",
    "STEADY",
    "Difference",
    "Grounds",
    "Interval",
    "JudgedRow",
    "KnownErrors",
    "KnownFamily",
    "PairedErrors",
    "collective_grounds",
    "collective_text",
    "difference_of",
    "error_interval",
    "grounds_of",
    "interval_of",
    "known_errors",
    "layouts_apart",
    "request_errors",
    "served_grounds",
    "served_text",
    "steady_errors",
    "steady_grounds",
    "training_grounds",
]
