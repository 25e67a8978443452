"""`moecast serve` on the command line: a run for machines, and lines for what cannot be run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from moecast.cli import app
from tests.cli.conftest import CONFIG, Run

ASKED = ("serve", "--cluster", "dgx-h200", "--routing", "uniform", "--model", "config.json", "--prompt-tokens", 40,
         "--output-tokens", 8)  # fmt: skip


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_run_for_machines(run: Run, there: Path) -> None:
    done = run(
        *ASKED,
        "--requests",
        "closed:4",
        "--slo",
        "ttft=10s",
        "--json",
        "--out",
        there / "s.json",
        "--report",
        there / "s.html",
        "--timeline",
        there / "t.json",
        check=True,
    )
    value = json.loads(done.stdout)
    assert value == json.loads((there / "s.json").read_text())
    assert value["completed"] == 40
    assert value["total_output_tokens"] == 40 * 8
    assert value["request_goodput"] > 0
    assert "TTFT promised" in (there / "s.html").read_text(encoding="utf-8")
    drawn = json.loads((there / "t.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "request" for event in drawn) == 40


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (("--requests", "often"), "often"),
        (("--requests", "poisson:100000000/s"), "never drains"),
        (("--requests", "closed:4", "--kv-blocks", 1), "request 0 alone needs"),
        (("--requests", "closed:4", "--slo", "tpot=3"), "give a time with its unit"),
        (("--requests", "bad.csv"), "row 1, GeneratedTokens"),
    ],
)
def test_what_cannot_be_run_is_one_line(run: Run, there: Path, more: tuple[object, ...], rule: str) -> None:
    (there / "bad.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,\n")
    done = run(*ASKED, *more, "--out", "s.json")
    assert done.returncode == 2
    assert rule in done.stderr
    assert not (there / "s.json").exists()


@pytest.mark.usefixtures("there")
def test_lengths_are_those_of_plan(run: Run) -> None:
    """`--isl` and `--osl` mean requests here, as in `plan`."""
    done = run(*ASKED[:-4], "--isl", 50, "--osl", 4, "--requests", "closed:4", "--json", check=True)
    value = json.loads(done.stdout)
    assert (value["total_input_tokens"], value["total_output_tokens"]) == (40 * 50, 40 * 4)
    assert not any("--isl" in note for note in value["moecast"]["notes"])


@pytest.mark.usefixtures("there")
def test_prompts_on_gpus_of_their_own(run: Run) -> None:
    apart = ("--requests", "closed:4", "--prefill-gpus", 4, "--prefill-tp", 2)
    done = run(*ASKED, *apart, "--json", check=True)
    found = json.loads(done.stdout)["moecast"]
    pools = [(pool["name"], pool["gpus"], pool["tp"]) for pool in found["pools"]]
    assert pools == [("prefill", 4, 2), ("decode", 4, 1)]
    assert found["gpus"] == 8
    assert found["moved"]["requests"] == 40


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (("--prefill-gpus", 8), "--prefill-gpus = 8: the cluster has 8 GPUs: none is left to answer"),
        (("--prefill-tp", 2), "--prefill-tp = 2: is of GPUs that compute prompts only: give --prefill-gpus"),
        (("--prefill-gpus", 4, "--prefill-tp", 3), "of the GPUs that compute prompts: "),
    ],
)
def test_pools_that_cannot_be_are_one_line(run: Run, more: tuple[object, ...], rule: str) -> None:
    done = run(*ASKED, *more, "--requests", "closed:4")
    assert done.returncode == 2
    assert rule in done.stderr


def test_a_pool_for_prompts_is_a_section_of_the_question(run: Run, there: Path) -> None:
    apart = ("--requests", "closed:4", "--prefill-gpus", 4, "--prefill-tp", 2)
    by_options = run(*ASKED, *apart, "--json", "--save-question", "q.yaml", check=True)
    assert yaml.safe_load((there / "q.yaml").read_text())["prefill"] == {"gpus": 4, "tp": 2}
    again = ("--prompt-tokens", 40, "--output-tokens", 8, "--requests", "closed:4", "--json")
    assert run("serve", "q.yaml", *again, check=True).stdout == by_options.stdout
    changed = json.loads(run("serve", "q.yaml", *again, "--set", "prefill.gpus=2", check=True).stdout)["moecast"]
    assert [pool["gpus"] for pool in changed["pools"]] == [2, 6]
    wrong = run("serve", "q.yaml", *again, "--set", "prefill.gpus=0")
    assert wrong.returncode == 2
    assert "prefill.gpus = 0: must be at least 1" in wrong.stderr


def test_an_interrupt_says_how_far_it_came_and_leaves_nothing(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, progress: Callable[[int, int], None], **__: object) -> None:
        progress(1216, 9000)
        raise KeyboardInterrupt

    monkeypatch.chdir(there)
    monkeypatch.setattr("moecast.sim.serving.serve", interrupted)
    asked = (*ASKED, "--requests", "closed:4", "--num-requests", 9000, "--out", "s.json", "--report", "s.html")
    done = CliRunner().invoke(app, [str(part) for part in asked])
    assert done.exit_code == 130
    assert done.stderr.startswith("moecast: interrupted after 1,216 of 9,000 requests; nothing is written")
    assert [path.name for path in there.iterdir()] == ["config.json"]
