"""Several predictions of one question, side by side: what the table, the report and the demo show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_json, write_text
from moecast.sim import Prediction

KIND = "moecast comparison"
OTHERS = {
    "moecast plan": "what `moecast plan` found is a page of its own: give this file alone",
    "moecast": "a run of `moecast serve`: its page is what `moecast serve --report` draws",
    "varied": "a table of `moecast sweep`: read its --csv or --parquet; single points are `moecast simulate --out`",
}
"""Files of other commands, by their kind or a field that only they have, and where their pages are."""
SOLVER_NUMBERS = ("objective_s", "bound_s", "gap", "seconds")
"""What a table shows of an entry's `placement`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One plan's prediction on one rung, with what the solver said of the plan (None: not made by `place`)."""

    plan: str
    prediction: Prediction
    placement: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Predictions of one cluster, model and trace, by phase, rung and plan.

    Parameters
    ----------
    title
        The report's heading.
    entries
        In the order in which plans are shown; the first plan of a phase is what others are compared
        with.
    notes
        Sentences a reader must know: labels of the routing, what was planned and measured on which
        part.
    trace
        Facts of the trace for the report: name, tokens, topics, load [L][E], provenance.
    """

    title: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    trace: dict[str, Any] | None = None

    def phases(self) -> list[str]:
        """The phases compared, in order of appearance."""
        return list(dict.fromkeys(entry.prediction.phase for entry in self.entries))

    def rungs(self, phase: str) -> list[str]:
        """The network rungs a phase was predicted on, cheapest first."""
        return list(dict.fromkeys(e.prediction.network for e in self.entries if e.prediction.phase == phase))

    def of(self, phase: str, network: str) -> dict[str, Entry]:
        """The entries of one phase and rung by plan."""
        return {e.plan: e for e in self.entries if e.prediction.phase == phase and e.prediction.network == network}

    def best_rung(self, phase: str) -> str:
        """The truest rung of a phase."""
        return self.rungs(phase)[-1]

    def columns(self, phase: str) -> list[Entry]:
        """The entries of one phase, rung by rung, the plans of a rung side by side."""
        return [entry for network in self.rungs(phase) for entry in self.of(phase, network).values()]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": KIND,
            "title": self.title,
            "notes": list(self.notes),
            "trace": self.trace,
            "entries": [
                {"plan": e.plan, "prediction": e.prediction.to_json(), "placement": e.placement} for e in self.entries
            ],
        }


def question_of(prediction: Prediction) -> dict[str, str]:
    """What was asked, plan and rung apart, as text by name: two predictions compare where all of it is the same."""
    trace = prediction.trace
    # load tables of a model share its name and size
    which = f", {str(trace['hash'])[:8]}" if trace.get("hash") else ""
    asked: dict[str, Any] = {
        "cluster": prediction.cluster,
        "model": prediction.model,
        "layers × experts × choices": "×".join(map(str, prediction.routing_shape)),
        "phase": prediction.phase,
        "routing": f"{trace.get('model')}, {trace.get('tokens')} tokens{which}",
        "ranks": prediction.plan.get("ranks"),
        **prediction.workload,
    }
    named = {name.replace("_", " "): value for name, value in asked.items()}
    # A token of a batch is one of its DP rank: with tensor parallelism, so many fewer ranks hold
    # tokens.
    ranks, tp = prediction.plan.get("ranks"), prediction.plan.get("tp", 1)
    tokens = prediction.workload.get("tokens_per_rank")
    if isinstance(ranks, int) and isinstance(tokens, int) and isinstance(tp, int):
        named["tokens per rank"] = f"{tokens * ranks // max(tp, 1)} on all ranks"
    return {name: _as_text(value) for name, value in named.items()}


def _as_text(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value)


def differences(predictions: Sequence[Prediction]) -> dict[str, tuple[str, ...]]:
    """What differs between the questions of predictions, by name, with each one's own; empty where they are equal."""
    asked = [question_of(prediction) for prediction in predictions]
    names = dict.fromkeys(name for one in asked for name in one)
    values = {name: tuple(one.get(name, "–") for one in asked) for name in names}
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def write_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write a comparison as JSON, whole or not at all."""
    write_text(path, json.dumps(comparison.to_json(), allow_nan=False) + "\n")


def read_comparison(paths: list[Path], *, title: str | None = None) -> Comparison:
    """Read saved predictions, or comparisons, into one comparison.

    Predictions are named by their plan and file.

    Raises
    ------
    MoecastError
        A file is not JSON, or neither a prediction nor a comparison.
    """
    entries: list[Entry] = []
    notes: list[str] = []
    heading, trace = title, None
    for path in paths:
        value = _load(path)
        if value.get("kind") == KIND:
            read = _Saved.read(value, path)
            heading = heading or read.title
            trace = trace or read.trace
            notes += [note for note in read.notes if note not in notes]
            entries += read.entries
        else:
            prediction = Prediction.from_json(value, file=path)
            entries.append(Entry(plan=_free_name(path.stem, prediction, entries), prediction=prediction))
    if not entries:
        raise MoecastError("holds no prediction", file=paths[0])
    return Comparison(title=heading or "Predictions", entries=tuple(entries), notes=tuple(notes), trace=trace)


def _load(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise MoecastError("neither a prediction nor a comparison", file=path)
    for name, what in OTHERS.items():
        if value.get("kind") == name or name in value:
            raise MoecastError(what, file=path)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """A comparison's file, checked field by field."""

    title: str | None
    notes: list[str]
    trace: dict[str, Any] | None
    entries: list[Entry]

    @classmethod
    def read(cls, value: dict[str, Any], path: Path) -> _Saved:
        title, notes, trace = value.get("title"), value.get("notes", []), value.get("trace")
        entries = value.get("entries", [])
        for field, good, rule in (
            ("title", title is None or isinstance(title, str), "must be text"),
            ("notes", isinstance(notes, list) and all(isinstance(note, str) for note in notes), "must be texts"),
            ("trace", trace is None or isinstance(trace, dict), "must be an object"),
            (
                "trace.load",
                _is_table((trace or {}).get("load", [[1]])) if isinstance(trace, dict | None) else True,
                "must be lists of numbers, one for each layer and equally long",
            ),
            ("entries", isinstance(entries, list), "must be a list"),
        ):
            if not good:
                raise MoecastError(rule, file=path, field=field)
        return cls(title=title, notes=notes, trace=trace, entries=[_entry(item, path) for item in entries])


def _is_table(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows)
        and all(_is_number(value) for row in rows for value in row)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _entry(item: Any, path: Path) -> Entry:
    if not isinstance(item, dict) or not {"plan", "prediction"} <= item.keys():
        raise MoecastError("each needs 'plan' and 'prediction'", file=path, field="entries")
    placement = item.get("placement")
    if placement is not None and not isinstance(placement, dict):
        rule = "must be an object"
        raise MoecastError(rule, file=path, field="entries.placement", value=placement)
    for name in SOLVER_NUMBERS:
        number = (placement or {}).get(name)
        if number is not None and not _is_number(number):
            rule = "must be a number"
            raise MoecastError(rule, file=path, field=f"entries.placement.{name}", value=number)
    return Entry(
        plan=str(item["plan"]),
        prediction=Prediction.from_json(item["prediction"], file=path),
        placement=placement,
    )


def _free_name(name: str, prediction: Prediction, entries: list[Entry]) -> str:
    taken = {
        e.plan for e in entries if (e.prediction.phase, e.prediction.network) == (prediction.phase, prediction.network)
    }
    free, number = name, 2
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free
