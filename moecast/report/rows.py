"""The rows of the comparison table, once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moecast.report.comparison import Entry
from moecast.sim import Prediction
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


def _three(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _part(name: str) -> Callable[[Prediction], float]:
    return lambda prediction: prediction.breakdown_s[name]


_LINES = (
    _Line(group="Time", name="step time", value=lambda p: p.step_time_s, text=format_s, better="low"),
    *(_Line(group="Time", name=f"  {part}", value=_part(part), text=format_s) for part in BREAKDOWN_PARTS),
    _Line(
        group="Time", name="tokens/s per GPU", value=lambda p: p.tokens_per_s_per_gpu, text=format_count, better="high"
    ),
    _Line(group="Time", name="latency", value=lambda p: p.latency_s, text=format_s, better="low"),
    _Line(group="Routing", name="balance per step", value=lambda p: p.balance, text=_three, better="high"),
    _Line(group="Routing", name="  5th percentile", value=lambda p: p.balance_p5, text=_three, better="high"),
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
        group="Memory", name="memory per GPU", value=lambda p: p.memory_bytes["total"], text=format_bytes, better="low"
    ),
    _Line(group="Memory", name="fits", value=lambda p: p.fits, text=lambda fits: "yes" if fits else "NO"),
    _Line(group="Limit", name="bottleneck", value=lambda p: p.bottleneck, text=str),
)


def table_rows(columns: Sequence[Entry]) -> list[Row]:
    """The comparison of one phase: a row per quantity, a column per rung and plan.

    Within a rung, the first plan is what speed-ups are counted from, and the best value of each row is marked.
    """
    predictions = [entry.prediction for entry in columns]
    rungs = [prediction.network for prediction in predictions]
    rows = []
    for line in _LINES:
        values = [line.value(prediction) for prediction in predictions]
        texts = tuple(line.text(value) for value in values)
        best = frozenset(i for rung in dict.fromkeys(rungs) for i in _best(values, texts, rungs, rung, line.better))
        name = predictions[0].latency_kind if line.name == "latency" else line.name
        rows.append(Row(group=line.group, name=name, texts=texts, best=best))
        if line.name == "step time" and len(values) > 1:
            rows.append(_speedup(values, rungs))
    return rows + _solver_rows(columns)


def _speedup(times: list[float], rungs: list[str]) -> Row:
    firsts = [rungs.index(rung) for rung in rungs]
    texts = tuple("1" if i == first else f"{times[first] / times[i]:.3f}×" for i, first in enumerate(firsts))
    return Row(group="Time", name="  speed-up", texts=texts)


def _best(values: list[Any], texts: tuple[str, ...], rungs: list[str], rung: str, better: str) -> list[int]:
    """The columns of a rung that print the best value; none where all print the same."""
    own = [i for i, name in enumerate(rungs) if name == rung]
    if not better or len({texts[i] for i in own}) < 2:
        return []
    aim = (min if better == "low" else max)(own, key=lambda i: values[i])
    return [i for i in own if texts[i] == texts[aim]]


def _solver_rows(columns: Sequence[Entry]) -> list[Row]:
    made = [entry.placement for entry in columns]
    if not any(made):
        return []
    lines: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("objective on the planning part", "objective_s", format_s),
        ("certificate: no plan can beat", "bound_s", format_s),
        ("gap", "gap", _percent),
        ("solver's time", "seconds", format_s),
        ("wasted slots", "wasted_slots", str),
    )
    return [
        Row(
            group="Placement",
            name=name,
            texts=tuple("–" if m is None or m.get(key) is None else text(m[key]) for m in made),
        )
        for name, key, text in lines
    ]
