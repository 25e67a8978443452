"""What moecast wrote itself and people edit: predictions, comparisons, measurements, calibrations."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from moecast.report.comparison import Comparison, Entry, differences, read_comparison
from moecast.report.comparison_page import render
from moecast.sim import read_prediction, write_prediction
from moecast.validate import read_measurement
from tests.fuzz.mutations import write_json
from tests.fuzz.runner import Target
from tests.sim.test_prediction import predictions
from tests.validate.cases import question
from tests.validate.test_ladder import measurement


def _writer(name: str) -> Any:
    def write(value: Any, rng: Random, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(write_json(value, rng))
        return path

    return write


def _read_prediction(path: Path) -> object:
    prediction = read_prediction(path)
    write_prediction(prediction, path.parent / "again.json")
    assert read_prediction(path.parent / "again.json") == prediction
    return prediction


def _comparisons() -> st.SearchStrategy[Any]:
    entry = st.builds(
        lambda plan, prediction: Entry(plan=plan, prediction=prediction, placement={"bound_s": 1.0}),
        st.sampled_from(["contiguous", "local-search"]),
        predictions(),
    )
    made = st.builds(
        lambda entries: Comparison(title="t", entries=tuple(entries)), st.lists(entry, min_size=1, max_size=2)
    )
    return made.map(lambda one: one.to_json())


def _read_comparison(path: Path) -> object:
    found = read_comparison([path])
    return differences([entry.prediction for entry in found.entries])


def _read_report(path: Path) -> object:
    return render(read_comparison([path]))


def _measurements() -> st.SearchStrategy[Any]:
    asked = question(ranks=4)
    one = {"steps": 1, "dispatch_s_WLG": (((1e-3,) * 4,) * 3,), "combine_s_WLG": (((0.0,) * 4,) * 3,)}
    return st.sampled_from([measurement(asked).to_json(), measurement(asked, **one).to_json()])


def _read_measurement(path: Path) -> object:
    found = read_measurement(path)
    return found.exchange_s, found.layer_s("dispatch"), found.to_json()


TARGETS = (
    Target(
        name="prediction",
        documents=lambda: predictions().map(lambda one: one.to_json()),
        write=_writer("p.json"),
        read=_read_prediction,
        share=0.8,
    ),
    Target(
        name="comparison", documents=_comparisons, write=_writer("comparison.json"), read=_read_comparison, share=0.5
    ),
    Target(name="report", documents=_comparisons, write=_writer("comparison.json"), read=_read_report, share=0.05),
    Target(name="measurement", documents=_measurements, write=_writer("m.json"), read=_read_measurement),
)
