"""Solvers of papers and engines, replica rule and request placement by their options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

ASKED = ("--cluster", "dgx-h200", "--network", "bound", "--tokens-per-rank", "16")


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        ("moetuner", "MoETuner: clusters proved even in"),
        ("exflow-strong", "ExFlow: crossings"),
        ("sglang-vec", ""),
    ],
)
def test_solvers_by_name(run: Run, small: Path, solver: str, said: str) -> None:
    of_small = ("--model", small / "config.json", "--trace", small / "t.parquet")
    done = run(
        "place",
        *ASKED,
        *of_small,
        "--solver",
        solver,
        "--replica-rule",
        "lplb",
        "--slots-per-rank",
        3,
        "--time-limit",
        "5s",
        "--out",
        small / f"{solver}.json",
        "--json",
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["legal"]
    assert said in found["note"]
    plan = json.loads((small / f"{solver}.json").read_text())
    assert (plan["replica_rule"], plan["made_by"]["solver"]) == ("lplb", solver)


def test_requests_are_placed_by_topic(run: Run, small: Path) -> None:
    asked = ("simulate", *ASKED, "--model", small / "config.json", "--trace", small / "t.parquet", "--no-gains")
    done = run(*asked, "--request-placement", "topic", "--replica-rule", "lplb", "--json", check=True)
    found = json.loads(done.stdout)
    assert found["workload"]["request_placement"] == "topic"
    assert found["plan"]["replica_rule"] == "lplb"
    done = run(*asked, "--request-placement", "best")
    assert done.returncode != 0
    assert "one of any, topic" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_plan_is_as_even_as_asked_on_any_number_of_threads(run: Run, small: Path) -> None:
    asked = ("place", *ASKED[:-1], 200, "--model", small / "config.json", "--trace", small / "t.parquet")
    plans, found = [], {}
    for threads in ("1", "2"):
        out = small / f"even{threads}.json"
        even = ("--balance-at-least", 0.97, "--slots", 24, "--steps", 1, "--work-limit", 40000, "--json", "--out", out)
        found = json.loads(run(*asked, *even, check=True, env={"MOECAST_THREADS": threads}).stdout)
        plans.append(json.loads(out.read_text())["slots"])
    assert plans[0] == plans[1]
    assert found["balance_pooled"] > 0.9
    refused = run(*asked, "--balance-at-least", 0.97, "--balance-weight", 1, "--out", small / "no.json")
    assert refused.returncode == 2
    assert "balance_weight" in refused.stderr
    assert not (small / "no.json").exists()
