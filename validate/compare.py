"""A forecast beside a measurement, exchange by exchange.

Axes: L MoE layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from moecast.sim import Exchange, StepProgram
from moecast.sim.network import Rung
from moecast.validate.measurement import Measurement

EXCHANGES = ("dispatch", "combine")

LayerSeconds = Mapping[str, Sequence[float]]
"""Seconds of each layer's "dispatch" and "combine"; mean over steps."""


def layer_seconds(programs: Sequence[StepProgram], rung: Rung, *, layers: int) -> dict[str, list[float]]:
    """Time every dispatch and combine by itself, all ranks beginning together, as a replay does.

    An exchange of counts ahead of a dispatch belongs to it.
    """
    total = {name: [0.0] * layers for name in EXCHANGES}
    for program in programs:
        exchanges = [stage for stage in program.tasks if isinstance(stage, Exchange) and stage.kind in EXCHANGES]
        for (kind, layer), stages in groupby(exchanges, key=lambda stage: (stage.kind, stage.layer)):
            alone = rung.run(replace(program, tasks=tuple(stages)))
            total[kind][layer] += alone.step_time_s / len(programs)
    return total


def layer_errors(by_rung: Mapping[str, LayerSeconds], measurement: Measurement) -> dict[str, dict[str, float]]:
    """Mean over layers of the relative distance from what was measured, by rung and exchange."""
    return {
        rung: {
            name: math.fsum(
                abs(relative_error(forecast, measured))
                for forecast, measured in zip(seconds[name], measurement.layer_s(name), strict=True)
            )
            / measurement.layers
            for name in EXCHANGES
        }
        for rung, seconds in by_rung.items()
    }


def relative_error(forecast: float, measured: float) -> float:
    """Say how far a forecast is off: +0.1 is ten per cent too much; of a measured zero, infinite."""
    if measured == 0:
        return 0.0 if forecast == 0 else math.copysign(math.inf, forecast)
    return (forecast - measured) / measured
