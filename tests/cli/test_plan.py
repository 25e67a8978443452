"""`moecast plan` in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moecast.cli.planning import parse_prices, parse_slo, told
from moecast.cli.render import Advance
from moecast.errors import MoecastError
from tests.cli.conftest import Run

ASKED = ("--cluster", "dgx-h100", "--model", "config.json", "--gpus", "2", "--isl", "64", "--osl", "32")
QUICK = ("--scored", "12", "--placed", "2", "--network", "bound")


def test_in_brief_the_winner_alone_is_printed(run: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    asked = ("plan", *ASKED, *QUICK, "--engine", "vllm", "--out", "o.json")
    winner, numbers, certificate, *launch = run(*asked, "--brief", check=True).stdout.splitlines()
    found = json.loads((tmp_path / "o.json").read_text())
    assert winner == f"winner: {found['winner']['name']}"
    assert numbers.startswith(f"tokens/s per GPU: {found['winner']['tokens_per_s_per_gpu']:,.0f}; tpot, ttft: ")
    assert certificate.startswith("certificate: no layout of the searched space beats this by more than")
    assert {one["engine"] for one in found["launch"]} == {"vllm"}
    assert [line for line in launch if line.startswith("vllm serve")] == [one["command"] for one in found["launch"]]
    assert found["sensitivity"] is None


def test_a_question_comes_in_and_a_layout_to_run_goes_out(run: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    more = ("--slo", "ttft=1s,tpot=20ms", "--price", "h100=2.5/h", "--write-plan", "w.json", "--report", "r.html")
    done = run("plan", *ASKED, *QUICK, *more, "--out", "o.json", check=True)
    said = " ".join(done.stdout.split())
    assert "no layout of the searched space beats this by more than" in said
    assert "steps, no queue" in said
    assert "python -m sglang.launch_server" in said
    found = json.loads((tmp_path / "o.json").read_text())
    winner = found["winner"]
    assert winner["tpot_s"] <= 0.02
    assert winner["dollars_per_million_tokens"] == pytest.approx(2.5 / 3600 / winner["tokens_per_s_per_gpu"] * 1e6)
    assert found["certificate"]["most_tokens_per_s_per_gpu"] >= winner["tokens_per_s_per_gpu"]
    assert {move["parameter"] for move in found["sensitivity"]["moves"]} >= {"NVLink speed", "routing"}
    assert "if this is off by its own error" in said
    assert "80 % interval" in said
    plan = json.loads((tmp_path / "w.json").read_text())
    assert plan["tp"] == winner["decode"]["tp"]
    assert "Throughput against latency" in (tmp_path / "r.html").read_text()
    run("plan", *ASKED, *QUICK, *more[:-2], "--jobs", "2", "--out", "two.json", check=True)
    assert json.loads((tmp_path / "two.json").read_text()) == found
    run("report", "o.json", "--out", "again.html", check=True)
    assert (tmp_path / "again.html").read_text() == (tmp_path / "r.html").read_text()
    both = run("report", "o.json", "o.json", "--out", "both.html")
    assert (both.returncode, "give this file alone" in " ".join(both.stderr.split())) == (2, True)
    (tmp_path / "part.json").write_text(json.dumps({name: found[name] for name in ("kind", "for", "winner")}))
    part = run("report", "part.json", "--out", "part.html")
    assert part.returncode == 2
    assert "is not as `moecast plan` writes it" in " ".join(part.stderr.split())


def test_limits_that_none_can_meet_are_one_line_and_leave_nothing(run: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    done = run("plan", *ASKED, *QUICK, "--slo", "tpot=1ns", "--out", "o.json")
    assert done.returncode == 2
    assert "moecast: --slo: no layout can meet it" in done.stderr  # on a busy machine behind lines of progress
    assert not (tmp_path / "o.json").exists()


def test_a_job_that_is_none_is_one_line(run: Run) -> None:
    done = run("plan", "--slo", "tpot=20ms", "--for", "fun")
    assert done.returncode == 2
    assert "serving, or training" in done.stderr
    assert done.stderr.startswith("moecast: --for = ")


@pytest.mark.parametrize("text", ["tpot", "tpot=3", "tpt=3ms", "tpot=0 s", "ttft=1s,ttft=2s"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(MoecastError, match="--slo"):
        parse_slo(text)


def test_prices() -> None:
    assert parse_prices(["h100=2.5/h"]).of("H100 SXM5") == 2.5
    assert parse_prices(["3/h"]).of("anything") == 3
    assert parse_prices([]).of("H100") is None
    with pytest.raises(MoecastError, match="none is of the cluster's GPU"):
        parse_prices(["b200=5/h"]).of("H100 SXM5")
    for wrong in ("h100", "h100=0/h", "h100=2.5", "h100=-1/h"):
        with pytest.raises(MoecastError, match="--price"):
            parse_prices([wrong])


def test_progress_says_what_part_it_is_of() -> None:
    """Each part counts anew, and a whole step of a large job takes minutes."""
    moved: list[tuple[int, int, str]] = []
    tell = told(Advance(lambda done, of, said: moved.append((done, of, said))))
    assert tell is not None
    tell("lower bounds", 3, 4)
    tell("timing whole steps", 0, 2)
    assert moved[1] == (3, 4, "lower bounds")
    assert moved[-1] == (0, 2, "timing whole steps")
