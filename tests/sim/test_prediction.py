"""The Prediction as JSON: there and back, its keys, and files that are none."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Prediction, read_prediction, write_prediction
from moecast.sim.prediction import MEMORY_PARTS
from moecast.sim.program import BREAKDOWN_PARTS
from moecast.sim.quantities import quantities_of

PROMISED = {
    "step_time_s", "breakdown_s", "tokens_per_s", "tokens_per_s_per_gpu", "latency_s", "memory_bytes", "fits",
    "balance", "balance_pooled", "fan_out", "fan_out_domains", "dispatch_bytes", "bottleneck", "network",
}  # fmt: skip

numbers = st.floats(0, 1e15, allow_nan=False)


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    text = st.text(max_size=8)
    times = tuple(draw(st.lists(numbers, min_size=1, max_size=3)))
    return Prediction(
        cluster=draw(text),
        model=draw(text),
        network="fluid",
        phase="decode",
        plan={"ep": draw(st.integers(1, 8)), "made_by": {"solver": draw(text)}},
        workload={"topics": None},
        trace={"topics": [draw(text)]},
        seed=draw(st.integers(0, 9)),
        routing_shape=(2, 8, 2),
        model_shape=(2, 8, 2),
        layer_time_s=draw(numbers),
        steps=4,
        steps_simulated=tuple(range(len(times))),
        step_time_s=float(np.mean(times)),
        step_times_s=times,
        breakdown_s={part: draw(numbers) for part in BREAKDOWN_PARTS},
        overlapped_s=0.0,
        held_up_s=0.0,
        critical_path=dict.fromkeys(BREAKDOWN_PARTS, 0.0),
        tokens_per_s=draw(numbers),
        tokens_per_s_per_gpu=draw(numbers),
        latency_s=draw(numbers),
        latency_kind="inter-token latency",
        memory_bytes={part: draw(st.integers(0, 2**40)) for part in MEMORY_PARTS},
        fits=draw(st.booleans()),
        balance=draw(numbers),
        balance_p5=draw(numbers),
        overload=draw(numbers),
        balance_pooled=draw(numbers),
        fan_out=draw(numbers),
        remote_fan_out=draw(numbers),
        fan_out_domains=draw(numbers),
        crossings=draw(numbers),
        dispatch_bytes=draw(numbers),
        bottleneck=draw(text),
        gains={draw(text): draw(numbers)},
        traffic_SD=((0.0, draw(numbers)), (1.0, 0.0)),
        link_utilisation=({"name": draw(text), "kind": "nic-out", "bytes": draw(numbers), "utilisation": 0.5},),
        rank_load=(draw(numbers), 2.0),
        rank_load_LG=((draw(numbers), 1.0), (0.0, 1.0)),
        labels=(draw(text),),
        warnings=(),
    )


@settings(max_examples=15, deadline=None)
@given(predictions())
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, prediction: Prediction) -> None:
    assert Prediction.from_json(json.loads(json.dumps(prediction.to_json()))) == prediction
    path = tmp_path_factory.getbasetemp() / "prediction.json"
    write_prediction(prediction, path)
    assert read_prediction(path) == prediction


@settings(max_examples=30, deadline=None)
@given(predictions())
def test_any_prediction_prints_and_shows_itself(prediction: Prediction) -> None:
    text, html = str(prediction), prediction._repr_html_()
    for name, value in prediction.table_rows():
        assert name in text
        assert value in text
        assert escape(value) in html
    assert html.count("<tr>") == len(prediction.table_rows())


@settings(max_examples=1, deadline=None)
@given(predictions())
def test_keys_that_others_call(prediction: Prediction) -> None:
    value = prediction.to_json()
    assert set(value) >= PROMISED
    assert list(value)[1:] == [field.name for field in fields(Prediction)]
    assert tuple(value["breakdown_s"]) == ("attention", "router", "dispatch", "expert", "combine", "other", "idle")
    assert tuple(value["memory_bytes"]) == ("weights", "slots", "kv", "activations", "total", "usable", "capacity")


@pytest.mark.parametrize(
    ("field", "bad", "line"),
    [
        ("step_time_s", "fast", "step_time_s = 'fast': must be a finite number"),
        ("step_time_s", float("inf"), "must be a finite number"),
        ("step_time_s", True, "must be a finite number"),
        ("seed", 1.5, "seed = 1.5: must be a whole number"),
        ("fits", 1, "fits = 1: must be true or false"),
        ("model", None, "model: must be text"),
        ("memory_bytes", {"weights": "many"}, "memory_bytes.weights = 'many': must be a whole number"),
        ("breakdown_s", {"attention": 1.0}, "breakdown_s: has exactly the parts attention"),
        ("rank_load_LG", [["x"]], "rank_load_LG = 'x'"),
        ("step_times_s", 3, "must be an object or list"),
        ("schema", 99, "schema = 99: this moecast reads prediction schema 4"),
        ("colour", "red", "colour: unknown field"),
        ("balance", 10**400, "must be a finite number"),
        ("routing_shape", [2, 8], "routing_shape: three numbers"),
        ("traffic_SD", [[0.0, 1.0]], "traffic_SD: as many destinations as sources"),
        ("rank_load_LG", [], "rank_load_LG: for each layer one number for each of the 2 ranks"),
        ("rank_load_LG", [[1.0, 2.0], [1.0]], "rank_load_LG: for each layer"),
        ("link_utilisation", [{"name": "a"}], "link_utilisation: each has a name, a kind and a utilisation"),
    ],
)
@settings(max_examples=1, deadline=None)
@given(prediction=predictions())
def test_wrong_values_are_named(prediction: Prediction, field: str, bad: object, line: str) -> None:
    value = {**prediction.to_json(), field: bad}
    with pytest.raises(MoecastError) as error:
        Prediction.from_json(value, file="p.json")
    assert str(error.value).startswith("p.json: ")
    assert line in str(error.value)


@settings(max_examples=1, deadline=None)
@given(predictions())
def test_missing_field_is_named(prediction: Prediction) -> None:
    value = prediction.to_json()
    del value["fan_out"]
    with pytest.raises(MoecastError, match="fan_out: missing"):
        Prediction.from_json(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not JSON"),
        ("[]", "not a moecast prediction"),
        ("[" * 100_000, "not JSON"),
        ('{"schema": 1, "recipe": {}, "in_flight_P": [], "breakdown_s": {}}', "is a forecast of `moecast train`, not"),
        ('{"varied": {}, "points": []}', "is a sweep, whose points hold predictions"),
        ('{"collective": "all-reduce", "rows": []}', "is a table of `moecast collective`"),
        ('{"request_throughput": 1.0, "moecast": {}}', "is a run of `moecast serve`, not"),
        ('{"winner": {}, "front": []}', "is what `moecast plan` found, not"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(MoecastError, match=line):
        read_prediction(path)


@settings(max_examples=1, deadline=None)
@given(predictions())
def test_a_number_that_json_has_not_is_never_written(prediction: Prediction) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_prediction(replace(prediction, latency_s=float("nan")), "/dev/null/x")


@settings(max_examples=15, deadline=None)
@given(predictions(), st.sampled_from([0.5, 0.85, 0.9, 1.0]))
def test_fits_says_of_how_much_memory(prediction: Prediction, fraction: float) -> None:
    memory = {**dict.fromkeys(MEMORY_PARTS, 0), "usable": int(fraction * 80 * 2**30), "capacity": 80 * 2**30}
    said = {True: "yes, within", False: "NO, over"}[bool(prediction.fits)]
    (line,) = [q for q in quantities_of([prediction]) if q.name == "fits"]
    assert line.shown(replace(prediction, memory_bytes=memory)) == f"{said} {100 * fraction:g} % of 80.00 GiB"
