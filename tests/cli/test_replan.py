"""`moecast place --replan-every`: words, JSON and refusals, as users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run


def asked(small: Path) -> tuple[object, ...]:
    return (
        "place", "--cluster", "dgx-h100", "--nodes", 1, "--model", small / "config.json",
        "--trace", small / "t.parquet", "--phase", "prefill", "--tokens-per-rank", 16, "--steps", 2,
        "--solver", "eplb", "--out", "plan.json",
    )  # fmt: skip


def test_it_is_said_and_written(run: Run, small: Path) -> None:
    options = ("--replan-every", "1,2", "--windows", 4, "--window-steps", 500, "--advise", "--keep-ranks")
    said = json.loads(run(*asked(small), *options, "--json", check=True).stdout)
    found = said["replanned"]
    assert [course["every_steps"] for course in found["replanned"]] == [500, 1000]
    assert [len(course["migrations"]) for course in found["replanned"]] == [2, 1]
    assert len(found["static"]["step_s"]) == 3
    (line,) = (word for word in said["advice"]["words"] if word.startswith("rebalance"))
    assert [line] == found["words"]
    shown = " ".join(run(*asked(small), *options, check=True).stdout.split())
    assert shown.count("rebalance") == 1  # the advice says it once, not both lines
    assert line[:40] in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--windows", 4), "--windows: is of plans made anew"),
        (("--replan-every", "0"), "windows between two plans"),
        (("--replan-every", "1", "--time-limit", "9s"), "time_limit"),
        (("--replan-every", "1", "--drift", "up"), "one of recorded, topic"),
        (("--replan-every", "1", "--windows", 4000), "sequences do not fill them"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, small: Path, options: tuple[object, ...], complaint: str) -> None:
    done = run(*asked(small), *options)
    assert done.returncode != 0
    assert complaint in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
