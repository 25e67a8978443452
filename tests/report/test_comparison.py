"""Predictions side by side: who may win, what is drawn of the traffic, and the same bytes for the same predictions."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecast.placement import place
from moecast.report import Comparison, Entry
from moecast.report.comparison_page import headline
from moecast.report.rows import table_rows
from moecast.sim import ModelShape, Plan, Prediction, Workload, draw_steps, simulate, write_prediction
from moecast.topology import load_cluster
from moecast.traces import RoutingTrace
from moecast.units import format_s
from tests.sim.plan_cases import small_trace, tiny_model

WORKLOAD = Workload(phase="prefill", tokens_per_rank=64, steps=2)


@pytest.fixture(scope="module")
def trace() -> RoutingTrace:
    return small_trace()


def heavy_model(trace: RoutingTrace) -> ModelShape:
    """Experts that take a while, so that an even load pays."""
    return replace(tiny_model(trace), hidden=4096, expert_intermediate=8192)


@pytest.fixture(scope="module")
def plans(trace: RoutingTrace) -> dict[str, Plan]:
    """The contiguous plan, and one that was searched for: before and after."""
    cluster, model = load_cluster("dgx-h200", nodes=2), heavy_model(trace)
    placed = [
        place(cluster, model, trace, WORKLOAD, solver=solver, slots_per_rank=2, work_limit=2000).plan
        for solver in ("contiguous", "local-search")
    ]
    return dict(zip(("before", "after"), placed, strict=True))


def ask(trace: RoutingTrace, plan: Plan, workload: Workload = WORKLOAD) -> Prediction:
    return simulate(load_cluster("dgx-h200", nodes=2), heavy_model(trace), plan, trace, workload, network="bound")


@pytest.fixture(scope="module")
def answers(trace: RoutingTrace, plans: dict[str, Plan]) -> dict[str, Prediction]:
    return {name: ask(trace, plan) for name, plan in plans.items()}


def test_what_runs_under_compute_is_shown_where_a_schedule_overlaps(
    trace: RoutingTrace, plans: dict[str, Plan], answers: dict[str, Prediction]
) -> None:
    overlapping = ask(trace, plans["before"].with_(schedule="two-batch"))
    assert overlapping.overlapped_s > 0
    shown = {row.name: row.texts for row in table_rows([Entry(plan="two-batch", prediction=overlapping)])}
    assert shown["communication under compute"] == (format_s(overlapping.overlapped_s),)
    plain = table_rows([Entry(plan="before", prediction=answers["before"])])
    assert "communication under compute" not in {row.name for row in plain}


def report(folder: Path, *predictions: Prediction, env: dict[str, str] | None = None) -> str:
    """The page that the command line makes of predictions in files."""
    files = []
    for number, prediction in enumerate(predictions):
        files.append(f"run-{number}.json")
        write_prediction(prediction, folder / files[-1])
    command = [sys.executable, "-m", "moecast", "report", *files, "--out", "r.html"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **(env or {})})
    assert done.returncode == 0, done.stderr
    return (folder / "r.html").read_text(encoding="utf-8")


def body(page: str) -> str:
    return page.rsplit("</script>\n</head>", 1)[1]


def table_of(page: str) -> dict[str, list[str]]:
    rows = re.findall(r"<tr><td>(.*?)</td>((?:<td[^>]*>.*?</td>)+)</tr>", body(page))
    return {name.strip(): re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in rows}


def test_equal_questions_have_a_winner(tmp_path: Path, answers: dict[str, Prediction]) -> None:
    before, after = answers.values()
    assert before.step_time_s is not None
    assert after.step_time_s is not None
    assert after.step_time_s < before.step_time_s
    page = report(tmp_path, before, after)
    times = before.step_time_s / after.step_time_s
    assert "run-1 is fastest: a prefill step takes" in page
    assert f"{times:.2f}× faster than run-0." in page
    assert table_of(page)["speed-up"] == ["1", f"{times:.3f}×"]
    assert not [name for name in table_of(page) if name.startswith("differs")]
    assert 'class="best' in body(page)


def test_whose_routing_it_is_stands_first(tmp_path: Path, answers: dict[str, Prediction]) -> None:
    before, after = answers.values()
    made = "uniform routing, 2×8×2: made, not recorded"
    page = body(report(tmp_path, *(replace(answer, labels=(made,)) for answer in (before, after))))
    assert page.count(made) == 1
    assert page.index(made) < page.index("<table>")
    mixed = body(report(tmp_path, replace(before, labels=(made,)), after))
    assert f"run-0: {made}" in mixed


def test_half_the_batch_wins_nothing(tmp_path: Path, trace: RoutingTrace, plans: dict[str, Plan]) -> None:
    whole = ask(trace, plans["before"])
    half = ask(trace, plans["before"], replace(WORKLOAD, tokens_per_rank=32))
    assert half.compared_s < whole.compared_s
    page = report(tmp_path, whole, half)
    assert "Different questions were asked (tokens per rank): no winner" in page
    for word in ("fastest", "speed-up", 'class="best'):
        assert word not in body(page)
    rows = table_of(page)
    assert rows["differs: tokens per rank"] == ["1024 on all ranks", "512 on all ranks"]
    assert len([name for name in rows if name.startswith("differs")]) == 1
    assert "Throughput against latency" in page
    assert set(rows) >= {"tokens/s per GPU", "time to first token"}


def test_other_weights_or_other_routing_of_the_same_size_win_nothing(
    trace: RoutingTrace, plans: dict[str, Plan]
) -> None:
    cluster, model, plan = load_cluster("dgx-h200", nodes=2), heavy_model(trace), plans["before"]
    flipped = replace(trace, experts_TLK=np.ascontiguousarray(trace.experts_TLK[:, :, ::-1]))
    asked = {
        "asked": (model, trace),
        "element types": (model.with_types(weight_type="fp8"), trace),
        "routing": (model, flipped),
    }
    entries = {
        name: Entry(
            plan=name, prediction=simulate(cluster, shape, plan, routing, WORKLOAD, network="bound", gains=False)
        )
        for name, (shape, routing) in asked.items()
    }
    for name in ("element types", "routing"):
        said = headline(Comparison(title="t", entries=(entries["asked"], entries[name])), "prefill")
        assert said.startswith(f"Different questions were asked ({name})")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cluster": "another"}, "cluster"),
        ({"model": "another"}, "model"),
        ({"routing_shape": (3, 16, 1)}, "layers × experts × choices"),
        ({"trace": {"model": "random", "tokens": 7}}, "routing"),
        ({"trace": {"model": "the load of server", "tokens": 7, "hash": "another"}}, "routing"),
        ({"plan": {"ranks": 8, "tp": 1}}, "ranks"),
    ],
)
def test_whatever_differs_is_named_and_nobody_wins(
    answers: dict[str, Prediction], changes: dict[str, Any], named: str
) -> None:
    before, after = answers["before"], replace(answers["after"], **changes)
    entries = [Entry(plan="before", prediction=before), Entry(plan="after", prediction=after)]
    said = headline(Comparison(title="t", entries=tuple(entries)), "prefill")
    assert said.startswith("Different questions were asked (")
    assert named in said
    rows = {row.name: row for row in table_rows(entries)}
    assert f"differs: {named}" in rows
    assert "  speed-up" not in rows
    assert not any(row.best for row in rows.values())


def test_every_workload_field_makes_another_question(answers: dict[str, Prediction]) -> None:
    before = answers["before"]
    for name in before.workload:
        other = replace(answers["after"], workload={**before.workload, name: "another"})
        entries = (Entry(plan="before", prediction=before), Entry(plan="after", prediction=other))
        said = headline(Comparison(title="t", entries=entries), "prefill")
        assert f"({name.replace('_', ' ')})" in said


def test_plan_solver_and_rung_are_not_part_of_the_question(answers: dict[str, Prediction]) -> None:
    before, after = answers["before"], answers["after"]
    assert before.plan != after.plan
    entries = (Entry(plan="before", prediction=before), Entry(plan="after", prediction=after))
    assert "after is fastest" in headline(Comparison(title="t", entries=entries), "prefill")


def drawn_matrix(page: str, title: str) -> np.ndarray:
    """The numbers of the heat map under a title, as plotly gets them."""
    text = body(page).split(f"<h3>{title}</h3>", 1)[1]
    [z] = re.findall(r'"z":(\{.*?\})', text.split("</script>", 1)[0])
    value = json.loads(z)
    shape = [int(n) for n in value["shape"].split(",")]
    return np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"])).reshape(shape)


def test_the_heat_maps_are_the_matrices_before_and_after(tmp_path: Path, answers: dict[str, Prediction]) -> None:
    page = report(tmp_path, *answers.values())
    for number, name in enumerate(answers):
        drawn = drawn_matrix(page, f"Who sends how much to whom: run-{number}")
        expected = np.array(answers[name].traffic_SD) / 2**20
        assert expected.shape == (16, 16)
        elsewhere = ~np.eye(16, dtype=bool)
        np.testing.assert_allclose(drawn[elsewhere], expected[elsewhere], rtol=1e-12)
        assert np.isnan(drawn[~elsewhere]).all()  # what stays is no traffic
    assert answers["before"].traffic_SD != answers["after"].traffic_SD


@pytest.mark.parametrize("dispatch", ["per_choice", "per_rank"])
def test_the_matrix_is_every_copy_counted_by_hand(trace: RoutingTrace, dispatch: str) -> None:
    """Each choice of a step's tokens, or each distinct rank, is one copy to the rank that serves it."""
    model, cluster = tiny_model(trace), load_cluster("dgx-h200", nodes=2)
    plan = Plan.contiguous(layers=3, experts=16, choices=2, ep=16).with_(dispatch=dispatch)
    workload = replace(WORKLOAD, steps=1)
    prediction = simulate(cluster, model, plan, trace, workload, network="bound", gains=False)
    [step] = draw_steps(trace, workload, ranks=16)
    copies_SD = np.zeros((16, 16))
    for token, source in zip(step.token_T, step.source_T, strict=True):
        for chosen in trace.experts_TLK[token].tolist():
            for expert in chosen if dispatch == "per_choice" else set(chosen):  # expert e stands on rank e
                copies_SD[source, expert] += 1
    matrix = np.array(prediction.traffic_SD)
    np.testing.assert_allclose(matrix, copies_SD * (matrix.sum() / copies_SD.sum()), rtol=1e-9)
    assert matrix.sum() / copies_SD.sum() == pytest.approx(model.copy_bytes(model.dispatch_type), rel=1e-9)


def test_same_predictions_same_page(tmp_path: Path, answers: dict[str, Prediction]) -> None:
    """Invariant 6, in other processes, in which texts have other hashes; and no two pictures share an id."""
    pages = [report(tmp_path, *answers.values(), env={"PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    assert pages[0] == pages[1]
    ids = re.findall(r'<div id="([^"]+)" class="plotly', pages[0])
    assert ids == [f"picture-{number}" for number in range(1, len(ids) + 1)]
    assert len(ids) > 8


def test_all_that_saves_a_percent_is_listed_and_the_largest_named(answers: dict[str, Prediction]) -> None:
    """Also what makes it slower by as much; the rest stays in the JSON."""
    gains = {"NICs": 0.2, "copy issue": 0.01, "PCIe": 0.0099, "NVLink": -0.03, "waiting for uneven experts": 0.05}
    one = replace(answers["before"], gains=gains, bottleneck="NICs")
    other = replace(answers["after"], gains={"NICs": 0.001, "attention": 0.02}, bottleneck="attention")
    entries = [Entry(plan="a", prediction=one), Entry(plan="b", prediction=other)]
    rows = {row.name: row.texts for row in table_rows(entries)}
    assert rows["bottleneck"] == ("NICs", "attention")
    assert {name: texts for name, texts in rows.items() if name.startswith(("  2×", "  even"))} == {
        "  2× NICs": ("saves 20.0 %", "saves 0.1 %"),
        "  even experts": ("saves 5.0 %", "< 1 %"),
        "  2× attention": ("< 1 %", "saves 2.0 %"),
        "  2× copy issue": ("saves 1.0 %", "< 1 %"),
        "  2× NVLink": ("costs 3.0 %", "< 1 %"),
    }


def test_what_has_no_name_in_the_field_is_explained_where_it_is_shown(
    tmp_path: Path, answers: dict[str, Prediction]
) -> None:
    text = "a GPU&#39;s cost of each copy that low-latency kernels send"
    bare = [replace(answer, gains={}, link_utilisation=()) for answer in answers.values()]
    assert text not in report(tmp_path, *bare)
    link = {"name": "copies from gpu 0", "kind": "copy-issue", "bytes": 1.0, "utilisation": 0.5}
    page = report(tmp_path, replace(answers["before"], gains={"copy issue": 0.3}, link_utilisation=(link,)))
    assert f"copy issue: {text}" in page
    assert f"copy-issue: {text}" in page


def test_what_was_not_asked_for_is_not_drawn(tmp_path: Path, answers: dict[str, Prediction]) -> None:
    page = report(tmp_path, replace(answers["before"], gains={}, bottleneck="nothing tried"))
    assert "What would help" not in page
    assert table_of(page)["bottleneck"] == ["nothing tried"]
    assert page.count("Load of each rank and layer: run-0") == 1  # one plan is first and last
