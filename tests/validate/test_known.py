"""The known errors that ship are what the published rows give today, and their intervals hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecast.sim.accuracy import SERVED, STEADY, known_errors, request_errors, steady_errors
from moecast.sim.accuracy.known_errors import PROMPTS
from moecast.validate.published.door import Published, ask_published
from moecast.validate.published.known import coverage, judged_rows
from moecast.validate.published.pairs import Pair, line_of
from moecast.validate.published.request_errors import ask_requests
from moecast.validate.published.shipped import KERNELS, shipped_families, shipped_kernels
from moecast.validate.published.steady import ask_steady

CLOSE = 0.002
"""In ln: what another machine's rounding may change of a forecast."""

NEAR = 0.02
"""Likewise of runs of requests, whose rows are asked seldom: well below the width of their intervals."""


def compare(only: str) -> None:
    shipped = {row.id: row for row in known_errors().rows}
    rows = judged_rows(ask_published(only=only).rows)
    assert rows
    for row in rows:
        known = shipped[row.id]
        assert (known.family, known.source, known.configuration) == (row.family, row.source, row.configuration)
        assert known.error == pytest.approx(row.error, abs=CLOSE), "python benchmarks/coverage.py --write"


# One row in six, of every engine, GPU and source; all of them take four minutes: benchmarks/coverage.py --write.
@pytest.mark.slow
@pytest.mark.parametrize(
    "only", ["h200_trtllm_fp8_disagg_8192x1024", "_c4_", "NCCL all-", "pplx", "simumax-deepseek-v3", "mbridge-gpt"]
)
def test_known_errors_are_todays(only: str) -> None:
    compare(only)


def test_steady_errors_are_todays() -> None:
    shipped = {row.id: row for row in steady_errors().rows}
    rows = judged_rows(ask_steady(only="minimaxm2_5_b200_vllm_fp4_agg_1024x1024_c4_"))
    assert rows
    for row in rows:
        known = shipped[row.id]
        assert (known.family, known.source, known.configuration) == (STEADY, row.source, row.configuration)
        assert known.error == pytest.approx(row.error, abs=CLOSE), "python benchmarks/coverage.py --steady --write"


@pytest.mark.parametrize("leave_out", ["configuration", "source"])
def test_intervals_of_steady_states_cover_what_they_say(leave_out: str) -> None:
    inside, asked, _ = coverage(steady_errors().rows, leave_out=leave_out)
    assert 0.75 <= inside / asked <= 0.85


def test_they_are_small() -> None:
    import moecast.sim.accuracy as package

    files = [*Path(package.__file__).parent.glob("*_errors.json")]
    assert len(files) == 3
    assert max(file.stat().st_size for file in files) < 200_000


@pytest.mark.parametrize("leave_out", ["configuration", "source"])
def test_intervals_cover_what_they_say(leave_out: str) -> None:
    """75 to 85 % of rows lie in the interval that others give."""
    known = known_errors()
    counts = [coverage(known.of(family.name), leave_out=leave_out)[:2] for family in known.families]
    inside, asked = (sum(column) for column in zip(*counts, strict=True))
    assert 0.75 <= inside / asked <= 0.85


def test_a_row_gets_its_interval_from_others() -> None:
    (row,) = ask_published(only="dsr1_h200_trtllm_fp8_disagg_8192x1024").rows[:1]
    assert row.predicted is not None
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.predicted * 1.1
    assert row.high > row.predicted


def test_the_line_of_pairs_is_a_quantile() -> None:
    pairs = [Pair(setting=str(at), ratio=at / 10, error=0.05 + 0.2 * at / 10) for at in range(10)]
    assert line_of(pairs) == (pytest.approx(0.05), pytest.approx(0.2))
    outlying = [Pair(setting=f"x{at}", ratio=0.5, error=9.0) for at in range(1)]
    floor, slope = line_of(pairs + outlying)
    assert floor + 0.5 * slope < 1


@pytest.mark.parametrize("leave_out", ["configuration", "source"])
def test_intervals_of_served_runs_cover_what_they_say(leave_out: str) -> None:
    """75 to 85 % of rows lie in the interval that others give, over all measures."""
    known = request_errors()
    counts = [coverage(known.of(family.name), leave_out=leave_out)[:2] for family in known.families]
    inside, asked = (sum(column) for column in zip(*counts, strict=True))
    assert 0.75 <= inside / asked <= 0.85


def test_errors_of_served_runs_are_todays() -> None:
    shipped = {row.id: row for row in request_errors().rows}
    rows = judged_rows(ask_requests(only="minimaxm2_5_b200_vllm_fp4_agg_1024x1024_c4_cfg701"))
    assert {row.family for row in rows} == {*SERVED.values(), PROMPTS}
    for row in rows:
        known = shipped[row.id]
        assert (known.family, known.source, known.configuration) == (row.family, row.source, row.configuration)
        assert known.error == pytest.approx(row.error, abs=NEAR), "python benchmarks/coverage.py --requests --write"


def test_families_that_are_not_asked_have_the_errors_that_ship() -> None:
    """Kernels without tables, and requests: by the door's own form, each with its lines."""
    found = Published(rows=(), kernels=shipped_kernels(), shipped=shipped_families({STEADY}), kernels_shipped=True)
    value = found.to_json()
    assert set(value["not_asked"]) == set(value["families"])
    assert STEADY not in value["families"]
    assert set(SERVED.values()) < set(value["families"])
    for name in ("gemm", "grouped", "attention", "mla", "collectives", "dispatch"):
        family = value["families"][f"{KERNELS}{name}"]
        assert family["asked"] == family["answered"] > family["fitted"] > 0
        lines = [part for part in value["parts"] if part["family"] == f"{KERNELS}{name}"]
        assert min(line["median"] for line in lines) <= family["median"] <= max(line["median"] for line in lines)
