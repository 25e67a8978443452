"""A Prediction and a Placement as tables: the command line's rows, letters that the terminal has, nothing unescaped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape

import pytest

from moecast.placement import Placement, place, place_by_load
from moecast.report import Entry
from moecast.report.rows import table_rows
from moecast.sim import Plan, Prediction, Workload, simulate
from moecast.sim.shown import ShownAsTable
from moecast.topology import load_cluster
from moecast.traces import LoadTable, load_LE
from tests.sim.plan_cases import contiguous, small_trace, tiny_model

HOSTILE = "<script>alert('x')</script> & [/bold]"


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    trace = small_trace()
    workload = Workload(phase="prefill", tokens_per_rank=8, steps=1)
    return simulate(load_cluster("dgx-h200", nodes=2), tiny_model(trace), contiguous(), trace, workload)


@pytest.fixture(scope="module")
def placement() -> Placement:
    trace = small_trace()
    workload = Workload(phase="decode", tokens_per_rank=1, steps=1)
    return place(load_cluster("dgx-h200"), tiny_model(trace), trace, workload, solver="contiguous")


@pytest.fixture(scope="module")
def by_load() -> ShownAsTable:
    trace = small_trace()
    return place_by_load(LoadTable(meta=trace.meta, load_LE=load_LE(trace)), ep=8)


def rows_of_html(html: str) -> list[tuple[str, str]]:
    cells = re.findall(r"<tr><td[^>]*>(.*?)</td><td>(.*?)</td></tr>", html)
    return [(unescape(name).strip(), unescape(text)) for name, text in cells]


def test_a_prediction_prints_the_rows_of_the_command_line(prediction: Prediction) -> None:
    text = str(prediction)
    lines = text.splitlines()
    assert lines[0] == "tiny: prefill on 2 x dgx-h200 rail:1, fluid: 1 of 1 steps"
    shown = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines[1:]]
    rows = [row for row in table_rows([Entry(plan="p", prediction=prediction)]) if row.group != "Placement"]
    assert shown[: len(rows)] == [[row.name.strip(), row.texts[0]] for row in rows]
    grounds, *notes = lines[len(rows) + 1 :]
    assert grounds.startswith("80 %: by ")
    assert notes == [*prediction.labels, *(f"warning: {text}" for text in prediction.warnings)]
    assert "bottleneck" in text
    assert prediction.bottleneck in text
    starts = {line.rindex("  ") for line in lines[1 : len(rows) + 1]}
    assert len(starts) == 1  # the texts stand below each other


@pytest.mark.parametrize("name", ["prediction", "placement", "by_load"])
def test_the_notebook_shows_the_same_rows(name: str, request: pytest.FixtureRequest) -> None:
    value: ShownAsTable = request.getfixturevalue(name)
    assert rows_of_html(value._repr_html_()) == [(row.strip(), text) for row, text in value.table_rows()]
    for row, text in value.table_rows():
        assert f"{row} " in str(value)
        assert f" {text}" in str(value)
    assert isinstance(repr(value), str)
    assert repr(value).startswith(type(value).__name__)


def test_a_notebook_runs_nothing_that_names_say(prediction: Prediction, placement: Placement) -> None:
    texts = dict.fromkeys(("model", "cluster", "network", "bottleneck"), HOSTILE)
    bad = replace(prediction, gains={HOSTILE: 0.5}, labels=(HOSTILE,), warnings=(HOSTILE,), **texts)
    for value in (bad, replace(placement, solver=HOSTILE, note=HOSTILE)):
        html = value._repr_html_()
        assert "<script" not in html
        assert HOSTILE in unescape(html)
        assert HOSTILE in str(value)


def test_routing_of_another_shape_has_dashes(prediction: Prediction) -> None:
    nothing = dict.fromkeys(
        ("step_time_s", "step_times_s", "tokens_per_s", "tokens_per_s_per_gpu", "latency_s", "memory_bytes", "fits")
    )
    part = replace(prediction, model_shape=(9, 9, 9), **nothing)
    rows = dict(part.table_rows())
    assert rows["of a model of"] == "9×9×9"
    assert rows["step time"] == rows["fits"] == "–"
    assert rows["  dispatch, a layer"] != "–"


ASKED = """
from tests.sim.test_shown import asked
print(asked())
"""


def asked() -> Prediction:
    """A prediction whose table holds µs, × and ÷."""
    trace = small_trace()
    return simulate(
        load_cluster("dgx-h200"),
        tiny_model(trace),
        Plan.contiguous(layers=3, experts=16, choices=2, ep=8),
        trace,
        Workload(phase="decode", tokens_per_rank=1, steps=1),
        network="bound",
    )


@pytest.mark.parametrize(("encoding", "times"), [("ascii", "3x16x2"), ("utf-8", "3×16×2")])
def test_it_prints_on_any_terminal(encoding: str, times: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert times in text
    assert "?" not in text
    assert (" us" if encoding == "ascii" else " µs") in text
