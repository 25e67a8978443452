"""What a forecast rests on: which measured rows speak for a question of its kind, or that none does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.sim.accuracy.interval import Interval, interval_of
from moecast.sim.accuracy.known_errors import (
    PROMPTS,
    STEADY,
    JudgedRow,
    KnownErrors,
    known_errors,
    request_errors,
    steady_errors,
)
from moecast.sim.cost.gpus import GPUS, gpu_key
from moecast.sim.engines import find_engine
from moecast.sim.parts import Part
from moecast.units import format_percent

if TYPE_CHECKING:
    from moecast.sim.plan import Plan
    from moecast.sim.question import Question
    from moecast.sim.training.recipe import Recipe
    from moecast.topology import Hardware
    from moecast.traces import RoutingTrace

DECODE = ("decode steps", "decode steps beside little prefill")
"""Families of whole decode steps; the second where only it has rows of the engine and GPU."""
PREFILL = "prefill steps"
TRAINING = "training steps"
NO_ROWS = "no measured rows stand behind this"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """The family of errors that speaks for a question.

    Parameters
    ----------
    family
        Empty where none does.
    why_not
        Why there is no interval; empty where there is one.
    source
        "engine on GPU" of the question.
    own_rows
        Rows of the family that are of this source.
    interval
        Factors on the forecast.
    about
        Who priced kernels, the engine and its version, the routing.
    """

    family: str
    why_not: str
    source: str
    own_rows: int
    interval: Interval | None
    about: Mapping[str, str]

    def interval_s(self, time_s: float | None) -> tuple[float, ...] | None:
        """The 80 % interval of a time; None where there is none."""
        return None if self.interval is None or time_s is None else self.interval.of(time_s)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a Prediction has them in `rests_on`."""
        known = known_errors()
        rows = () if self.interval is None else self.interval.rows
        numbers: dict[str, Any] = {
            "rows": len(rows),
            "configurations": len({row.configuration for row in rows}),
            "sources": len({row.source for row in rows}),
            "own_rows": self.own_rows,
            **_errors(rows),
        }
        which = {"errors": self.family, "of": self.interval.source if self.interval else "", "source": self.source}
        judged_by = {"judged_by": known.network}
        return {**which, "why_not": self.why_not, **numbers, **judged_by, **self.about}


def _errors(rows: tuple[JudgedRow, ...]) -> dict[str, float | None]:
    """Median, p90 and bias of relative errors of time."""
    if not rows:
        return {"median": None, "p90": None, "bias": None}
    error_R = np.exp([-row.error for row in rows]) - 1
    size_R = np.abs(error_R)
    return {
        "median": float(np.median(size_R)),
        "p90": float(np.quantile(size_R, 0.9)),
        "bias": float(np.median(error_R)),
    }


def grounds_of(asked: Question) -> Grounds:
    """Find what stands behind the step time of a serving question."""
    hardware = asked.cluster.hardware
    known = known_errors()
    family = _serving_family(asked.workload.kernels, source_of(hardware), known)
    if family == PREFILL and interval_of(known.of(PREFILL)) is None:
        known, family = request_errors(), PROMPTS
    return grounds_in(known, family, asked, unmeasured(asked))


def steady_grounds(asked: Question) -> Grounds:
    """Find what stands behind serving where prompts and decode steps of the same GPUs take turns.

    The workload is the decode step. Factors are on GPU seconds of an output token, and on the time
    of one.
    """
    return grounds_in(steady_errors(), STEADY, asked, unmeasured(asked))


def grounds_in(known: KnownErrors, family: str, asked: Question, why_not: str) -> Grounds:
    """What a family of known errors says of a question; `why_not`: why it says nothing."""
    hardware = asked.cluster.hardware
    return grounds_of_family(known, family, source_of(hardware), why_not, _about(hardware, asked.trace))


def source_of(hardware: Hardware) -> str:
    """Whose rows of serving a question is like."""
    return f"{hardware.engine} on {gpu_key(hardware)}"


def unmeasured(asked: Question) -> str:
    """What of a question of serving no measured row has; empty where each part is in some."""
    return _unmeasured_serving(asked) or unmeasured_hardware(asked.cluster.hardware)


def training_grounds(hardware: Hardware, plan: Plan, recipe: Recipe, trace: RoutingTrace) -> Grounds:
    """Find what stands behind the time of a training step."""
    why = unmeasured_hardware(hardware)
    if not recipe.host:
        why = why or "hosts launch measured training steps, and none is counted here (--host-launch)"
    if plan.layout.cp > 1:
        why = why or "training with context parallelism"
    return grounds_of_family(known_errors(), TRAINING, f"training on {gpu_key(hardware)}", why, _about(hardware, trace))


def grounds_of_family(known: KnownErrors, family: str, source: str, why: str, about: Mapping[str, str]) -> Grounds:
    """What a family of known errors says of a source's question; `why`: why it says nothing."""
    rows = () if why else known.of(family)
    interval = interval_of(rows, source=source)
    if not why and interval is None:
        configurations = len({row.configuration for row in rows})
        why = too_few(len(rows), configurations)
    own = sum(row.source == source for row in rows)
    return Grounds(
        family=family if rows else "", why_not=why, source=source, own_rows=own, interval=interval, about=about
    )


def too_few(rows: int, configurations: int) -> str:
    """Say that rows are too few for an interval."""
    if not rows:
        return "no row"
    many = "" if configurations == 1 else "s"
    return f"{rows} rows of {configurations} configuration{many} are too few for an interval"


def _serving_family(part: Part, source: str, known: KnownErrors) -> str:
    if part is Part.PREFILL:
        return PREFILL
    of_source = (family for family in DECODE if any(row.source == source for row in known.of(family)))
    return next(of_source, DECODE[0])


def _unmeasured_serving(asked: Question) -> str:
    """What of a question no measured row has."""
    plan, work = asked.plan, asked.workload
    checks = (
        (not asked.model.is_whole, "the time of some layers, not of a step of the model"),
        (len(work.parts) > 1, "mixed steps"),
        (bool(work.speculate), "speculative decoding"),
        (plan.layout.stages * plan.microbatches > 1, "a pipeline in serving"),
        (plan.layout.cp > 1, "context parallelism in serving"),
        (plan.schedule != "sequential", f"schedule {plan.schedule}"),
        (plan.dispatch == "stay", "tokens that stay"),
    )
    return next((why for found, why in checks if found), "")


def unmeasured_hardware(hardware: Hardware) -> str:
    """What of a GPU or of who prices its kernels no measured row has."""
    if hardware.name not in {known.name for known in GPUS.values()}:
        return f"GPU {hardware.name}"
    return "" if hardware.kernels == "fitted" else f"kernels by {hardware.kernels.partition(':')[0]}"


def _about(hardware: Hardware, trace: RoutingTrace) -> dict[str, str]:
    engine = find_engine(hardware.engine)
    made = isinstance(trace.meta.source.get("made"), Mapping) or trace.meta.source.get("synthesis") is not None
    return {
        "kernels": hardware.kernels,
        "engine": engine.name,
        "engine_version": engine.version,
        "routing": "made" if made else "recorded",
    }


_TEXTS = ("errors", "of", "source", "why_not", "judged_by", "kernels", "engine", "engine_version", "routing")
_COUNTS = ("rows", "configurations", "sources", "own_rows")
_ERRORS = ("median", "p90", "bias")


def check_rests_on(value: Mapping[str, Any]) -> None:
    """Check the `rests_on` of a saved prediction; it may be empty.

    Raises
    ------
    ValueError
        A part is missing or of another kind.
    """
    if not value:
        return
    if set(value) != {*_TEXTS, *_COUNTS, *_ERRORS}:
        raise ValueError(f"rests_on: has exactly the parts {', '.join((*_TEXTS, *_COUNTS, *_ERRORS))}")
    bad = [name for name in _TEXTS if not isinstance(value[name], str)]
    bad += [name for name in _COUNTS if type(value[name]) is not int]
    missing = bool(value["why_not"])
    bad += [
        name for name in _ERRORS if not (missing and value[name] is None) and not isinstance(value[name], int | float)
    ]
    if bad:
        raise ValueError(f"rests_on.{bad[0]} = {value[bad[0]]!r}: not what it is in a prediction")


def grounds_text(rests_on: Mapping[str, Any]) -> str:
    """Say in a sentence or two what a forecast rests on, from the `rests_on` of a prediction; empty where unknown."""
    if not rests_on:
        return ""
    if rests_on["why_not"]:
        return f"{NO_ROWS}: {rests_on['why_not']}"
    version = f" {rests_on['engine_version']}" if rests_on["engine_version"] else ""
    own = rests_on["own_rows"]
    whose = f"{own} of {rests_on['source']}" if own else f"none of {rests_on['source']}"
    return (
        f"80 %: by {rests_on['rows']} rows of {rests_on['configurations']} configurations that set "
        f"nothing ({rests_on['errors']}; median error {format_percent(rests_on['median'])}, p90 "
        f"{format_percent(rests_on['p90'])}), {whose}, judged by "
        f"{rests_on['judged_by']}{_routing_text(rests_on)}; here {rests_on['kernels']} kernels of "
        f"engine {rests_on['engine']}{version}, {rests_on['routing']} routing"
    )


def _routing_text(rests_on: Mapping[str, Any]) -> str:
    """How the family's rows were routed when they were asked."""
    family = rests_on["errors"]
    if family == TRAINING:
        return " with even routing"
    return " with routing of one kind of text" if family in (*DECODE, STEADY, PROMPTS) else ""
