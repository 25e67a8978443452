"""The quantities of a Prediction as people read them: once for the terminal, the report and the notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moecast.sim.gains import LEAST, PEERS, listed_gains
from moecast.sim.program import BREAKDOWN_PARTS
from moecast.units import format_bytes, format_count, format_percent, format_s

if TYPE_CHECKING:
    from moecast.sim.prediction_values import PredictionValues


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One line of a table: what it is, of a Prediction, and how it is written.

    Parameters
    ----------
    better
        "low" or "high"; empty where no value is better than another.
    """

    group: str
    name: str
    value: Callable[[PredictionValues], Any]
    text: Callable[[Any], str]
    better: str = ""

    def shown(self, prediction: PredictionValues) -> str:
        """Write the value; a dash where there is none."""
        value = self.value(prediction)
        return "–" if value is None else self.text(value)


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _three(value: float) -> str:
    return f"{value:.3f}"


def _part(name: str) -> Callable[[PredictionValues], float]:
    return lambda prediction: prediction.breakdown_s[name]


def _fit(prediction: PredictionValues) -> str | None:
    """Whether the memory suffices, and how much of the GPU's that is: the rest is kept for the engine."""
    memory = prediction.memory_bytes
    if prediction.fits is None or memory is None:
        return None
    share = f"{100 * memory['usable'] / max(memory['capacity'], 1):.3g} % of {format_bytes(memory['capacity'])}"
    return f"yes, within {share}" if prediction.fits else f"NO, over {share}"


INTERVAL = "80 % interval"
"""Of the step time, by how far off forecasts of measured steps were."""


def _between(interval_s: Sequence[float]) -> str:
    return " to ".join(map(format_s, interval_s))


UNDER_COMPUTE = "communication under compute"
"""Beside the parts of a step, which are what is exposed of it: shown where a schedule overlaps anything."""

HELD_UP = "waiting for the network"
"""Within the parts of exchanges, as idle is waiting for peers that compute."""


def path_text(share: Mapping[str, float]) -> str:
    """The parts of a critical path that take `LEAST` of it, the longest first."""
    parts = sorted(share.items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {format_percent(value)}" for part, value in parts if value >= LEAST) or "–"


QUANTITIES: tuple[Quantity, ...] = (
    Quantity(group="Question", name="layers × experts × choices", value=lambda p: p.routing_shape, text=_times),
    Quantity(group="Question", name="of a model of", value=lambda p: p.model_shape, text=_times),
    Quantity(group="Time", name="time per MoE layer", value=lambda p: p.layer_time_s, text=format_s, better="low"),
    Quantity(group="Time", name="step time", value=lambda p: p.step_time_s, text=format_s, better="low"),
    Quantity(group="Time", name=INTERVAL, value=lambda p: p.interval_s, text=_between),
    *(Quantity(group="Time", name=f"  {part}", value=_part(part), text=format_s) for part in BREAKDOWN_PARTS),
    Quantity(group="Time", name=UNDER_COMPUTE, value=lambda p: p.overlapped_s, text=format_s),
    Quantity(group="Time", name=HELD_UP, value=lambda p: p.held_up_s, text=format_s),
    Quantity(group="Time", name="critical path", value=lambda p: p.critical_path, text=path_text),
    Quantity(
        group="Time", name="tokens/s per GPU", value=lambda p: p.tokens_per_s_per_gpu, text=format_count, better="high"
    ),
    Quantity(group="Time", name="latency", value=lambda p: p.latency_s, text=format_s, better="low"),
    Quantity(group="Routing", name="balance per step", value=lambda p: p.balance, text=_three, better="high"),
    Quantity(group="Routing", name="  5th percentile", value=lambda p: p.balance_p5, text=_three, better="high"),
    Quantity(group="Routing", name="  max ÷ mean", value=lambda p: p.overload, text=_three, better="low"),
    Quantity(group="Routing", name="balance pooled", value=lambda p: p.balance_pooled, text=_three, better="high"),
    Quantity(group="Routing", name="fan-out, ranks", value=lambda p: p.fan_out, text=_three, better="low"),
    Quantity(group="Routing", name="fan-out, domains", value=lambda p: p.fan_out_domains, text=_three, better="low"),
    Quantity(
        group="Routing",
        name="dispatch bytes per step",
        value=lambda p: p.dispatch_bytes,
        text=format_bytes,
        better="low",
    ),
    Quantity(
        group="Memory",
        name="memory per GPU",
        value=lambda p: p.memory_bytes and p.memory_bytes["total"],
        text=format_bytes,
        better="low",
    ),
    Quantity(group="Memory", name="fits", value=_fit, text=str),
    Quantity(group="Limit", name="bottleneck", value=lambda p: p.bottleneck, text=str),
)


def quantities_of(predictions: Sequence[PredictionValues]) -> list[Quantity]:
    """The quantities that predictions of one phase are shown by, side by side or one alone."""
    whole = all(prediction.whole for prediction in predictions)
    overlapped = any(prediction.overlapped_s for prediction in predictions)
    listed = []
    for quantity in QUANTITIES:
        name = quantity.name
        if (name == "of a model of" and whole) or (name == UNDER_COMPUTE and not overlapped):
            continue
        if name == "latency":
            name = predictions[0].latency_kind
        if not whole and quantity.group == "Time" and name.startswith("  "):
            name = f"{name}, a layer"
        listed.append(replace(quantity, name=name))
    return listed + _gains(predictions)


def title_of(prediction: PredictionValues) -> str:
    """What the numbers are of: phase, cluster, rung and steps."""
    return f"{prediction.phase} on {prediction.cluster}, {sample_of(prediction)}"


def sample_of(prediction: PredictionValues) -> str:
    """Which of the steps a rung timed."""
    return f"{prediction.network}: {len(prediction.steps_simulated)} of {prediction.steps} steps"


def _gains(predictions: Sequence[PredictionValues]) -> list[Quantity]:
    """What twice of each resource saves, for those that change some prediction's step by enough to be listed."""
    most: dict[str, float] = {}
    for prediction in predictions:
        for name, gain in listed_gains(prediction.gains).items():
            most[name] = max(gain, most.get(name, gain))
    return [
        Quantity(
            group="Limit",
            name="  even experts" if name == PEERS else f"  2× {name}",
            value=lambda prediction, name=name: _saved(prediction.gains, name),  # type: ignore[misc]
            text=str,
        )
        for name in listed_gains(most)
    ]


def _saved(gains: Mapping[str, float], name: str) -> str | None:
    if not gains:
        return None
    if name not in gains:  # it could not save as much
        return f"< {100 * LEAST:.0f} %"
    return f"{'saves' if gains[name] >= 0 else 'costs'} {format_percent(abs(gains[name]))}"
