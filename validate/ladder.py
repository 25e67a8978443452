"""The ladder: one question, rung by rung from the cheapest to the truest, and how far each is from the one above.

Axes: L MoE layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from moecast.sim import RUNGS, ModelShape, Plan, Step, mode_of, step_program
from moecast.topology import Cluster
from moecast.traces import RoutingTrace
from moecast.validate.compare import layer_errors, layer_seconds
from moecast.validate.measurement import Measurement

# What each rung of docs/design.md, 2 needs where this process did not run it.
NOT_RUN = {
    "packet": "this version has no packet rung",
    "lab": "this version has no lab rung",
    "hardware": "start it under torchrun, or give --measurement",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RungResult:
    """What one rung says.

    Parameters
    ----------
    rung
        "bound", "fluid", "packet", "lab" or "hardware".
    step_time_s
        The whole step, mean over steps; None where only exchanges were measured.
    exchange_s
        The sum of all dispatches and combines of a step, the ranks beginning each together; mean
        over steps.
    cost_s
        How long the rung itself took to answer, per step; of hardware nothing is said.
    step_error, exchange_error
        (This - the next rung above that has the number) / that; None at the top.
    not_run
        Why there are no numbers; empty where there are.
    elsewhere
        Hardware that is not the cluster's, by name: nothing is held against its times. Empty where
        it is.
    """

    rung: str
    step_time_s: float | None = None
    exchange_s: float | None = None
    cost_s: float | None = None
    step_error: float | None = None
    exchange_error: float | None = None
    not_run: str = ""
    elsewhere: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """All rungs for one plan, cheapest first.

    Parameters
    ----------
    question
        Cluster, model, dispatch mode, phase and the number of steps.
    rungs
        In the order of docs/design.md, 2.
    layer_errors
        Where the cluster's hardware was measured: by rung and exchange, the mean over layers of
        |this - hardware| / hardware.
    labels
        What every output must say with the numbers.
    """

    question: Mapping[str, Any]
    rungs: tuple[RungResult, ...]
    layer_errors: Mapping[str, Mapping[str, float]]
    labels: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The question in a line."""
        asked = self.question
        steps = "1 step" if asked["steps"] == 1 else f"{asked['steps']} steps"
        return f"{asked['phase']} on {asked['cluster']}, dispatch {asked['dispatch']}, {steps}"

    def to_json(self) -> dict[str, Any]:
        """Give the ladder as plain JSON values."""
        return asdict(self)


def climb(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    steps: Sequence[Step],
    *,
    measurement: Measurement | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> Ladder:
    """Ask every rung that exists for the time of the same steps.

    Parameters
    ----------
    measurement
        What hardware said; None: that rung is listed as not run.
    labels
        What the question is, where the numbers alone would mislead.
    seed
        Of the hash that picks paths.
    """
    programs = [step_program(cluster, model, plan, trace, step, seed=seed) for step in steps]
    results, by_rung = [], {}
    for rung in RUNGS:
        start_s = time.perf_counter()
        step_time_s = math.fsum(rung.run(program).step_time_s for program in programs) / len(steps)
        cost_s = (time.perf_counter() - start_s) / len(steps)
        by_rung[rung.name] = layer_seconds(programs, rung, layers=plan.layers)
        exchange_s = math.fsum(math.fsum(layers_L) for layers_L in by_rung[rung.name].values())
        results.append(RungResult(rung=rung.name, step_time_s=step_time_s, exchange_s=exchange_s, cost_s=cost_s))
    results += [RungResult(rung=name, not_run=why) for name, why in NOT_RUN.items()]
    if measurement is not None:
        elsewhere = other_hardware(cluster, measurement)
        results[-1] = RungResult(rung="hardware", exchange_s=measurement.exchange_s, elsewhere=elsewhere)
    return Ladder(
        question={
            "cluster": cluster.name,
            "model": model.name,
            "dispatch": mode_of(plan.dispatch, steps[0].kernels).name,
            "phase": steps[0].phase,
            "steps": len(steps),
        },
        rungs=with_errors(results),
        layer_errors={} if measurement is None or results[-1].elsewhere else layer_errors(by_rung, measurement),
        labels=tuple(labels),
    )


def other_hardware(cluster: Cluster, measurement: Measurement) -> str:
    """Name the first device of a measurement that is not one of the cluster's GPUs; empty where all are."""
    model = cluster.hardware.name.split()[0]
    return next((f"{measurement.backend} on {name}" for name in measurement.hardware if model not in name), "")


def with_errors(rungs: Sequence[RungResult]) -> tuple[RungResult, ...]:
    """Hold each rung against the next one above that has the number for the same hardware."""
    done: list[RungResult] = []
    for index, rung in enumerate(rungs):
        above = [other for other in rungs[index + 1 :] if not other.elsewhere]
        done.append(
            replace(
                rung,
                step_error=_error(rung.step_time_s, [other.step_time_s for other in above]),
                exchange_error=_error(rung.exchange_s, [other.exchange_s for other in above]),
            )
        )
    return tuple(done)


def _error(value: float | None, above: Sequence[float | None]) -> float | None:
    truer = next((other for other in above if other is not None), None)
    if value is None or not truer:
        return None
    return (value - truer) / truer
