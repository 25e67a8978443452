"""`moecast validate`: the table for people, the ladder for machines, one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.sim import write_plan
from moecast.traces import write_trace
from tests.validate.cases import plan, trace

CONFIG = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64, "num_hidden_layers": 3,
    "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_plan(plan(ranks=4), tmp_path / "plan.json")
    write_trace(trace(tokens=40), tmp_path / "trace.parquet")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return [
        "validate",
        "--cluster",
        "dgx-h200",
        "--plan",
        str(tmp_path / "plan.json"),
        "--ep",
        "4",
        "--trace",
        str(tmp_path / "trace.parquet"),
        "--model",
        str(tmp_path / "config.json"),
        "--tokens-per-rank",
        "5",
    ]


def test_the_table_lists_every_rung(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    for rung in ("bound", "fluid", "packet", "lab", "hardware"):
        assert rung in done.stdout
    assert "start it under torchrun" in done.stdout


def test_json_is_written_and_printed_alike(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "ladder.json"
    done = CliRunner().invoke(app, [*arguments, "--json", "--out", str(out)], catch_exceptions=False)
    answer = json.loads(done.stdout)
    assert answer == json.loads(out.read_text())
    assert answer["rungs"][0]["step_time_s"] <= answer["rungs"][1]["step_time_s"] * (1 + 1e-9)
    assert answer["measurement"] is None


def test_a_file_that_is_no_measurement_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match=r"plan.json: not a moecast measurement"):
        CliRunner().invoke(app, [*arguments, "--measurement", str(tmp_path / "plan.json")], catch_exceptions=False)
