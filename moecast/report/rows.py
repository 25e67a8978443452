"""The rows of the comparison table, once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moecast.report.comparison import Entry, differences
from moecast.sim import Prediction
from moecast.sim.gains import LEAST, PEERS, listed_gains
from moecast.sim.prediction import BREAKDOWN_PARTS
from moecast.units import format_bytes, format_count, format_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    `best` holds the columns with the best value, to be shown as such; empty where no value is better than another.
    """

    group: str
    name: str
    texts: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    group: str
    name: str
    value: Callable[[Prediction], Any]
    text: Callable[[Any], str]
    better: str = ""  # "low", "high" or neither


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _three(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _part(name: str) -> Callable[[Prediction], float]:
    return lambda prediction: prediction.breakdown_s[name]


_LINES = (
    _Line(group="Routing", name="layers × experts × choices", value=lambda p: p.routing_shape, text=_times),
    _Line(group="Routing", name="of a model of", value=lambda p: p.model_shape, text=_times),
    _Line(group="Time", name="time per MoE layer", value=lambda p: p.layer_time_s, text=format_s, better="low"),
    _Line(group="Time", name="step time", value=lambda p: p.step_time_s, text=format_s, better="low"),
    *(_Line(group="Time", name=f"  {part}", value=_part(part), text=format_s) for part in BREAKDOWN_PARTS),
    _Line(
        group="Time", name="tokens/s per GPU", value=lambda p: p.tokens_per_s_per_gpu, text=format_count, better="high"
    ),
    _Line(group="Time", name="latency", value=lambda p: p.latency_s, text=format_s, better="low"),
    _Line(group="Routing", name="balance per step", value=lambda p: p.balance, text=_three, better="high"),
    _Line(group="Routing", name="  5th percentile", value=lambda p: p.balance_p5, text=_three, better="high"),
    _Line(group="Routing", name="  max ÷ mean", value=lambda p: p.overload, text=_three, better="low"),
    _Line(group="Routing", name="balance pooled", value=lambda p: p.balance_pooled, text=_three, better="high"),
    _Line(group="Routing", name="fan-out, ranks", value=lambda p: p.fan_out, text=_three, better="low"),
    _Line(group="Routing", name="fan-out, domains", value=lambda p: p.fan_out_domains, text=_three, better="low"),
    _Line(
        group="Routing",
        name="dispatch bytes per step",
        value=lambda p: p.dispatch_bytes,
        text=format_bytes,
        better="low",
    ),
    _Line(
        group="Memory",
        name="memory per GPU",
        value=lambda p: p.memory_bytes and p.memory_bytes["total"],
        text=format_bytes,
        better="low",
    ),
    _Line(group="Memory", name="fits", value=lambda p: p.fits, text=lambda fits: "yes" if fits else "NO"),
    _Line(group="Limit", name="bottleneck", value=lambda p: p.bottleneck, text=str),
)


def table_rows(columns: Sequence[Entry]) -> list[Row]:
    """The comparison of one phase: a row per quantity, a column per rung and plan.

    Within a rung, the first plan is what speed-ups are counted from, and the best value of each row is marked. Where
    the questions differ, what differs is said first, and nothing is a speed-up or best.
    """
    predictions = [entry.prediction for entry in columns]
    rungs = [prediction.network for prediction in predictions]
    differing = differences(predictions)
    rows = [Row(group="Question", name=f"differs: {name}", texts=texts) for name, texts in differing.items()]
    whole = all(prediction.whole for prediction in predictions)
    for line in _LINES:
        values = [line.value(prediction) for prediction in predictions]
        if line.name == "of a model of" and whole:
            continue
        texts = tuple("–" if value is None else line.text(value) for value in values)
        better = "" if differing else line.better
        best = frozenset(i for rung in dict.fromkeys(rungs) for i in _best(values, texts, rungs, rung, better))
        name = predictions[0].latency_kind if line.name == "latency" else line.name
        if not whole and line.name.startswith("  ") and line.group == "Time":
            name = f"{name}, a layer"
        rows.append(Row(group=line.group, name=name, texts=texts, best=best))
        if line.name == "step time" and len(values) > 1 and not differing:
            rows.append(_speedup([prediction.compared_s for prediction in predictions], rungs))
    return rows + _gain_rows(predictions) + _solver_rows(columns)


def _gain_rows(predictions: Sequence[Prediction]) -> list[Row]:
    """What twice of each resource saves, for those that change some prediction's step by enough to be listed."""
    most: dict[str, float] = {}
    for prediction in predictions:
        for name, gain in listed_gains(prediction.gains).items():
            most[name] = max(gain, most.get(name, gain))
    return [
        Row(
            group="Limit",
            name="  experts evened out" if name == PEERS else f"  {name} twice as fast",
            texts=tuple(_saved(prediction.gains, name) for prediction in predictions),
        )
        for name in listed_gains(most)
    ]


def _saved(gains: Mapping[str, float], name: str) -> str:
    if not gains:
        return "–"
    if name not in gains:  # it could not save as much
        return f"< {100 * LEAST:.0f} %"
    return f"{'saves' if gains[name] >= 0 else 'costs'} {_percent(abs(gains[name]))}"


def _speedup(times: list[float], rungs: list[str]) -> Row:
    firsts = [rungs.index(rung) for rung in rungs]
    texts = tuple("1" if i == first else f"{times[first] / times[i]:.3f}×" for i, first in enumerate(firsts))
    return Row(group="Time", name="  speed-up", texts=texts)


def _best(values: list[Any], texts: tuple[str, ...], rungs: list[str], rung: str, better: str) -> list[int]:
    """The columns of a rung that print the best value; none where all print the same."""
    own = [i for i, name in enumerate(rungs) if name == rung and values[i] is not None]
    if not better or len({texts[i] for i in own}) < 2:
        return []
    aim = (min if better == "low" else max)(own, key=lambda i: values[i])
    return [i for i in own if texts[i] == texts[aim]]


def _solver_rows(columns: Sequence[Entry]) -> list[Row]:
    wasted = tuple(str(entry.prediction.plan.get("wasted_slots", "–")) for entry in columns)
    rows = [Row(group="Placement", name="wasted slots", texts=wasted)]
    made = [entry.placement for entry in columns]
    if not any(made):
        return rows
    lines: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("objective on the planning part", "objective_s", format_s),
        ("certificate: no plan can beat", "bound_s", format_s),
        ("gap", "gap", _percent),
        ("solver's time", "seconds", format_s),
    )
    return rows + [
        Row(
            group="Placement",
            name=name,
            texts=tuple("–" if m is None or m.get(key) is None else text(m[key]) for m in made),
        )
        for name, key, text in lines
    ]
