"""Forecasts held against real processes and published results.

What needs torch is imported from where it stands: `moecast.validate.replay` and
`moecast.validate.job`.
"""

from moecast.validate.ladder import Ladder, RungResult
from moecast.validate.measurement import Measurement, read_measurement, write_measurement
from moecast.validate.validate import validate

__all__ = ["Ladder", "Measurement", "RungResult", "read_measurement", "validate", "write_measurement"]
