"""The rows of the comparison table, once for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moecast.report.comparison import Entry
from moecast.sim import Prediction
from moecast.units import format_bytes, format_count, format_s

LATENCY_NAMES = {"inter-token": "inter-token latency", "first-token": "time to first token"}


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


_LINES = (
    _Line(group="Time", name="step time", value=lambda p: p.step_time_s, text=format_s, better="low"),
    *(
        _Line(group="Time", name=f"  {part}", value=lambda p, part=part: p.breakdown_s[part], text=format_s)
        for part in ("attention", "router", "dispatch", "expert", "combine", "other", "idle")
    ),
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


def table_rows(entries: dict[str, Entry]) -> list[Row]:
    """The comparison of one phase on one rung: a row per quantity, a column per plan; the first plan is the base."""
    predictions = [entry.prediction for entry in entries.values()]
    rows = []
    for line in _LINES:
        values = [line.value(p) for p in predictions]
        name = LATENCY_NAMES.get(predictions[0].latency_kind, line.name) if line.name == "latency" else line.name
        texts = tuple(line.text(value) for value in values)
        rows.append(Row(group=line.group, name=name, texts=texts, best=_best(values, texts, line.better)))
        if line.name == "step time" and len(values) > 1:
            rows.append(_speedup(values))
    return rows + _solver_rows(entries)


def _speedup(times: list[float]) -> Row:
    texts = tuple("1" if i == 0 else f"{times[0] / time:.3f}×" for i, time in enumerate(times))
    return Row(group="Time", name="  speed-up", texts=texts)


def _best(values: list[Any], texts: tuple[str, ...], better: str) -> frozenset[int]:
    if not better or len(set(texts)) < 2:
        return frozenset()
    aim = min(values) if better == "low" else max(values)
    best_text = texts[values.index(aim)]
    return frozenset(i for i, text in enumerate(texts) if text == best_text)


def _solver_rows(entries: dict[str, Entry]) -> list[Row]:
    made = [entry.placement for entry in entries.values()]
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
