"""`moecast validate published`: every family of what others measured, and the rows of files in the same form."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.validate.published.answers import FamilyErrors, RowAnswer, families
from moecast.validate.published.decode import answer_serving
from moecast.validate.published.door import ask_published
from moecast.validate.published.row_files import SHIPPED, Fields, read_rows
from moecast.validate.published.serving import ServingRow

SERVING = read_rows(SHIPPED / "serving.csv").rows
SMALL = "dsr1_h200_trtllm_fp8_disagg"


def run(*arguments: str | Path) -> str:
    return CliRunner().invoke(app, ["validate", "published", *map(str, arguments)], catch_exceptions=False).stdout


def written(path: Path, *rows: Fields) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_kind_of_row_that_ships_has_an_answer() -> None:
    """One row of each model, GPU, engine, precision, mode and layout; none is refused."""
    names = ("model", "gpu", "engine", "precision", "mode", "decode_attn_tp", "decode_attn_dp", "decode_moe_ep")
    kinds = {tuple(row[name] for name in names): row for row in SERVING}
    assert len(kinds) > 40
    for row in kinds.values():
        plan = (of := ServingRow.of(row)).plan(of.shape())
        assert plan.ranks == of.ranks
        assert plan.ranks <= of.cluster().n_gpus


def test_json_has_families_and_rows() -> None:
    value = json.loads(run("--only", "dsr1_h200_trtllm_fp8_disagg_8192x1024", "--json"))
    asked = [row for row in SERVING if "dsr1_h200_trtllm_fp8_disagg_8192x1024" in row["id"]]
    assert [row["id"] for row in value["rows"]] == [row["id"] for row in asked]
    assert sum(family["asked"] for family in value["families"].values()) == len(asked)
    for family in value["families"].values():
        assert set(family) == {"asked", "answered", "fitted", "median", "p90", "bias"}
    for row in value["rows"]:
        assert {"id", "family", "published", "predicted", "error", "low", "high", "why"} <= set(row)
        assert row["error"] == pytest.approx(row["predicted"] / row["published"] - 1)


def test_rows_of_files_are_asked_instead(tmp_path: Path) -> None:
    row = next(row for row in SERVING if row["id"].startswith(SMALL))
    few = ("id", "model", "gpu", "isl", "osl", "tpot_mean_ms")  # all that a row needs
    serving = written(tmp_path / "s.csv", {name: row[name] for name in few} | {"id": "mine"})
    training = next(row for row in read_rows(SHIPPED / "training.csv").rows if row["id"].startswith("simumax"))
    out = tmp_path / "o.json"
    text = run("--rows", serving, written(tmp_path / "t.csv", training), "--out", out)
    assert [row["id"] for row in json.loads(out.read_text())["rows"]] == ["mine", training["id"]]
    assert "training steps" in text


def test_unknown_engines_are_neutral_and_unknown_gpus_have_no_answer() -> None:
    row = next(row for row in SERVING if row["id"].startswith(SMALL))
    assert "neutral engine" in answer_serving({**row, "engine": "mine"}).note
    assert answer_serving({**row, "gpu": "tpu"}).why.startswith("gpu = 'tpu'")
    assert answer_serving({**row, "tpot_mean_ms": ""}).why == "tpot_mean_ms = '': a number"
    assert answer_serving({**row, "tpot_mean_ms": "0"}).published is None


def test_rows_measured_beside_prefill_are_answered_and_marked() -> None:
    row = next(row for row in SERVING if ServingRow.of(row).family == "decode beside prefill")
    answer = answer_serving(row)
    assert answer.predicted is not None
    assert "prefill takes" in answer.note


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a,b\n1,2\n", "neither serving nor training rows"),
        ("id,model,gpu,value\n,m,g,1\n", "row 1: id: is empty"),
        ("id,model,gpu,value\nx,m,g,1\nx,m,g,1\n", "id = 'x': stands twice"),
        ("id,model,gpu,value\nx,m,g,1,2\n", "row 1: has more fields"),
    ],
)
def test_files_of_other_things_are_refused(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "r.csv"
    file.write_text(text)
    with pytest.raises(MoecastError, match=rule):
        read_rows(file)


def test_no_row_of_that_name_is_an_error() -> None:
    with pytest.raises(MoecastError, match="no row has this in its id"):
        ask_published(only="nothing of that name")


def answer(error: float, *, use: str = "check", family: str = "f") -> RowAnswer:
    return RowAnswer(
        id=f"{family} {error}",
        family=family,
        source="s",
        configuration="c",
        use=use,
        unit="s",
        published=1.0,  # type: ignore[arg-type]
        published_s=1.0,
        predicted=1 + error,
        predicted_s=1 + error,
    )


def test_fitted_rows_are_counted_and_do_not_judge() -> None:
    rows = [answer(0.1), answer(-0.3), answer(0.2), answer(5.0, use="fit"), answer(0.5, family="g")]
    first, second = families(rows)
    assert (first.asked, first.answered, first.fitted) == (4, 4, 1)
    assert (first.median, first.bias) == (pytest.approx(0.2), pytest.approx(0.1))
    assert second == FamilyErrors.of("g", rows[-1:])


def test_a_row_is_answered_or_says_why() -> None:
    with pytest.raises(ValueError, match="either predicted or why"):
        RowAnswer(id="x", family="f", source="s", configuration="c", use="check", unit="s", published=1.0)


def test_a_question_file_may_still_stand_there(tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match="cannot be read"):
        CliRunner().invoke(app, ["validate", str(tmp_path / "q.yaml")], catch_exceptions=False)


def test_uses_of_rows_that_ship() -> None:
    assert Counter(row["use"] for row in SERVING) == {"check": 327, "fit": 40}


def test_models_are_asked_by_their_own_shapes():
    row = {**SERVING[0], "model": "moonshotai/Kimi-K2-FP8", "precision": "fp8"}
    shape = ServingRow.of(row).shape()
    assert (shape.name, shape.shape_LEK, shape.attention.heads) == ("kimi-k2", (60, 384, 8), 64)
