"""The page of a comparison: predictions side by side, as tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moecast.files import write_text
from moecast.report import figures
from moecast.report.comparison import Comparison, differences
from moecast.report.html import Picture, render_page
from moecast.report.rows import Row, table_rows
from moecast.sim import Prediction
from moecast.sim.accuracy import difference_of
from moecast.sim.accuracy.grounds import grounds_text
from moecast.sim.collectives.links import ISSUE_KIND
from moecast.sim.gains import EXPLAINED, ISSUE
from moecast.units import format_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """One phase: its table on each rung and its pictures on the truest."""

    phase: str
    headline: str
    rungs: tuple[tuple[str, int, str], ...]  # name, columns, steps
    plans: tuple[str, ...]  # of each column
    rows: tuple[Row, ...]
    pictures: tuple[Picture, ...]
    warnings: tuple[str, ...]


def write_report(comparison: Comparison, path: str | Path) -> None:
    """Write a comparison as one self-contained HTML file, whole or not at all."""
    write_text(path, render(comparison))


def render(comparison: Comparison) -> str:
    """The page as text."""
    return render_page(
        "comparison.html.j2",
        title=comparison.title,
        comparison=comparison,
        notes=_notes(comparison),
        sections=[_section(comparison, phase) for phase in comparison.phases()],
        router=_router_picture(comparison),
        inputs=_inputs(comparison),
    )


def headline(comparison: Comparison, phase: str) -> str:
    """The answer in one sentence: what the best plan is worth against the first.

    A winner is named among equal questions only: a run that serves half the batch is no faster one.
    """
    entries = comparison.of(phase, comparison.best_rung(phase))
    predictions = {plan: entry.prediction for plan, entry in entries.items()}
    differing = differences(list(predictions.values()))
    if differing:
        names = ", ".join(differing)
        return f"Different questions were asked ({names}): no winner; see throughput per GPU against latency."
    whole = all(prediction.whole for prediction in predictions.values())
    times = {plan: prediction.compared_s for plan, prediction in predictions.items()}
    what = f"a {phase} step" if whole else f"a MoE layer in {phase}"
    base, *others = times
    best = min(times, key=lambda plan: times[plan])
    unit = format_s(times[best])
    if not others:
        return f"{what[0].upper()}{what[1:]} takes {format_s(times[base])}."
    if best == base:
        return f"No plan tried beats {base}: {what} takes {unit}."
    difference = difference_of(predictions[best], predictions[base])
    if difference.shown is False:
        return (
            f"No difference shown: {best} is {difference.ratio:.3f}× as fast as {base} by the "
            f"forecast, inside the 80 % interval of their difference ({difference.low:.3f} to "
            f"{difference.high:.3f}×); {what} takes {unit}."
        )
    between = f" (80 %: {difference.text})" if difference.shown else ""
    return f"{best} is fastest: {what} takes {unit}, {times[base] / times[best]:.2f}× faster than {base}{between}."


def _section(comparison: Comparison, phase: str) -> _Section:
    columns = comparison.columns(phase)
    truest = comparison.of(phase, comparison.best_rung(phase))
    predictions = {plan: entry.prediction for plan, entry in truest.items()}
    rungs = []
    for rung in comparison.rungs(phase):
        own = [entry.prediction for entry in columns if entry.prediction.network == rung]
        rungs.append((rung, len(own), f"{len(own[0].steps_simulated)} of {own[0].steps} steps"))
    return _Section(
        phase=phase,
        headline=headline(comparison, phase),
        rungs=tuple(rungs),
        plans=tuple(entry.plan for entry in columns),
        rows=tuple(table_rows(columns)),
        pictures=tuple(_pictures(predictions)),
        warnings=tuple(_warnings(predictions)),
    )


def _notes(comparison: Comparison) -> list[str]:
    """The comparison's own notes, and what every prediction in it must say with its numbers: whose routing it is."""
    told = [
        (entry.plan, label)
        for entry in comparison.entries
        for label in entry.prediction.labels
        if label not in comparison.notes
    ]
    return [*comparison.notes, *_once(told, {entry.plan for entry in comparison.entries})]


def _warnings(predictions: figures.Predictions) -> list[str]:
    """What times and their differences rest on, then what each prediction warns of."""
    told = [(plan, grounds_text(prediction.rests_on)) for plan, prediction in predictions.items()]
    told = [(plan, text) for plan, text in told if text]
    base, *others = predictions
    if others and not differences(list(predictions.values())):
        found = {plan: difference_of(predictions[plan], predictions[base]) for plan in others}
        told += [(plan, f"speed-up over {base}: {difference.why}") for plan, difference in found.items()]
    told += [(plan, text) for plan, prediction in predictions.items() for text in prediction.warnings]
    return _once(told, set(predictions))


def _once(told: Iterable[tuple[str, str]], plans: set[str]) -> list[str]:
    """Each text once, with the plans it is of where it is not of all."""
    plans_of: dict[str, dict[str, None]] = {}
    for plan, text in told:
        plans_of.setdefault(text, {})[plan] = None
    return [text if set(of) == plans else f"{', '.join(of)}: {text}" for text, of in plans_of.items()]


def _pictures(predictions: figures.Predictions) -> list[Picture]:
    wide = [
        Picture(figure=draw(predictions), title=title, caption=caption) for title, caption, draw in _wide(predictions)
    ]
    return wide + _narrow(predictions)


def _wide(predictions: figures.Predictions) -> list[tuple[str, str, Callable[[figures.Predictions], go.Figure]]]:
    """The title and the caption of each picture of all plans, and what draws it."""
    shown = list(predictions.values())
    whole = all(prediction.whole for prediction in shown)
    step = "the step" if whole else "a MoE layer"
    kinds = _explained(link["kind"] for prediction in shown for link in prediction.link_utilisation)
    wide: list[tuple[str, str, Callable[[figures.Predictions], go.Figure]]] = [
        (
            f"Where {step} goes",
            f"Mean over ranks; waiting for peers that compute is idle; the parts add up to the time of {step}.",
            figures.breakdown,
        ),
        ("Load over ranks", "For each rank, its worst layer: choices served ÷ the layer's mean.", figures.rank_load),
        ("The fullest link of each kind", f"Share of its capacity used over the whole step. {kinds}", figures.links),
    ]
    if any(prediction.gains for prediction in shown):
        caption = "Part of the step that twice of each resource saves, alone; below 0 it takes longer. "
        caption += "What cannot save 1 % is left out. "
        caption += _explained(name for prediction in shown for name in prediction.gains)
        wide.insert(1, ("What would help", caption, figures.gains))
    if whole:
        wide.insert(1, ("Every step", "Each point is one simulated step.", figures.step_times))
    if whole and differences(shown):
        caption = "Of different questions: up serves more, left answers sooner; neither alone is better."
        wide.insert(0, ("Throughput against latency", caption, figures.throughput))
    return wide


def _narrow(predictions: figures.Predictions) -> list[Picture]:
    """What stands side by side, the first plan beside the last."""
    compared = {plan: predictions[plan] for plan in (next(iter(predictions)), list(predictions)[-1])}
    balance = figures.trade_off(predictions)
    pictures = [("Balance against fan-out", "Up is even, left is local; neither is a time.", balance)]
    if all(prediction.whole for prediction in predictions.values()):
        pictures.append(("Memory", "Of the fullest GPU, by part.", figures.memory(predictions)))
    for plan, prediction in compared.items():
        title = f"Load of each rank and layer: {plan}"
        pictures.append((title, "Red ranks make the others wait.", figures.load_heatmap(prediction)))
    most = max(_most_sent(prediction) for prediction in predictions.values())
    for plan, prediction in compared.items():
        title, caption = f"Who sends how much to whom: {plan}", "Dispatched bytes per step, the same colours in both."
        pictures.append((title, caption, figures.traffic(prediction, most)))
    return [Picture(figure=figure, title=title, caption=text, wide=False) for title, text, figure in pictures]


def _explained(names: Iterable[str]) -> str:
    """Say what those of these resources and kinds of link are that have no name in the field."""
    known = {**EXPLAINED, ISSUE_KIND: EXPLAINED[ISSUE]}
    return " ".join(f"{name}: {known[name]}." for name in dict.fromkeys(names) if name in known)


def _most_sent(prediction: Prediction) -> float:
    """The largest of what one rank sends another."""
    bytes_SD = np.array(prediction.traffic_SD, float)
    np.fill_diagonal(bytes_SD, 0.0)
    return float(bytes_SD.max(initial=0.0))


def _router_picture(comparison: Comparison) -> Picture | None:
    trace = comparison.trace
    if trace is None or "load" not in trace:
        return None
    return Picture(
        figure=figures.expert_load(np.asarray(trace["load"])),
        title="What the router does",
        caption="Choices of each expert in each MoE layer ÷ the layer's mean, over the whole trace.",
    )


def _inputs(comparison: Comparison) -> list[tuple[str, str]]:
    """What was asked, in words: enough to ask it again."""
    first = comparison.entries[0].prediction
    listed = [("cluster", first.cluster), ("model", first.model)]
    for phase in comparison.phases():
        prediction = next(e.prediction for e in comparison.entries if e.prediction.phase == phase)
        listed.append((f"workload, {phase}", _words(prediction.workload)))
        for plan, entry in comparison.of(phase, comparison.best_rung(phase)).items():
            listed.append((f"plan, {phase}: {plan}", _words(entry.prediction.plan)))
    trace = comparison.trace or first.trace
    return [*listed, ("trace", _words({key: value for key, value in trace.items() if key != "load"}))]


def _words(value: Any) -> str:
    """A value of plain JSON as text, unknown parts left out."""
    if isinstance(value, Mapping):
        return "; ".join(
            f"{key.replace('_', ' ')}: {_words(v)}" for key, v in value.items() if v not in (None, "", [], {})
        )
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
