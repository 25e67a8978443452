"""Rows left out of an import: how many are written down, and what is left is the rest, untouched."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.traces import ImportOptions, import_trace, profile_trace, read_trace
from moecast.traces.statistics.equal_runs import RunFinder
from tests.importers.layouts import torch_save
from tests.statistics.made import uniform

REAL, DUMMY, EXPERTS = 4384, 16_640, 60


def warm_up(file):
    """One MoE layer was logged: equal rows of the engine's profiling pass, then requests of 137 tokens."""
    real = uniform(REAL, 1, EXPERTS, 4, seed=4)
    rows = np.concatenate([np.tile(np.array([[43, 5, 7, 58]], np.uint16), (DUMMY, 1, 1)), real])
    np.savez(file, gsm8k=rows, gsm8k_seqlen=np.array([DUMMY] + [137] * (REAL // 137)))
    return real


def options(**changes):
    return ImportOptions(experts=EXPERTS, phase="decode", **changes)


@pytest.mark.parametrize("how", [{"drop_first": DUMMY}, {"drop_dummies": True}])
def test_a_warm_up_is_left_out(tmp_path, how):
    real = warm_up(tmp_path / "t.npz")
    whole, left = (import_trace(tmp_path / "t.npz", options(**changes)) for changes in ({}, how))
    np.testing.assert_array_equal(left.experts_TLK, real)
    assert {finding.code for finding in profile_trace(whole).health} >= {"dummy-rows", "repeated-rows"}
    assert "dummy-rows" not in {finding.code for finding in profile_trace(left).health}
    balances = [profile_trace(trace, n_ranks=4).stats.balance_pooled for trace in (whole, left)]
    # 15 experts a rank: two of the dummies' four choices fall on the first rank; the real ones are even
    assert balances == pytest.approx([0.56, 1.0], abs=0.02)
    rows = {"first_rows": DUMMY, "dummy_rows": 0} if "drop_first" in how else {"first_rows": 0, "dummy_rows": DUMMY}
    assert left.meta.source["left_out"] == rows | {"of_rows": DUMMY + REAL}
    assert "Left out of 21,024 rows: " in left.meta.notes
    assert left.position_T[0] == 0
    assert left.sequence_T[0] == 1


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(16, 400)), max_size=4),
    st.integers(0, 500),
    st.booleans(),
    st.integers(0, 99),
)
def test_what_is_left_is_the_rest_in_order(tmp_path_factory, runs, first, dummies, seed):
    real = uniform(1200, 2, 32, 4, seed=seed)
    pieces, at = [], 0
    for gap, length in runs:
        pieces += [real[at : at + gap], np.tile(uniform(1, 2, 32, 4, seed=seed + length), (length, 1, 1))]
        at += gap
    rows = np.concatenate([*pieces, real[at:]])
    file = tmp_path_factory.mktemp("rows") / "t.npz"
    np.savez(file, a=rows[:700], b=rows[700:])
    whole, left = (
        import_trace(file, ImportOptions(experts=32, drop_first=first, drop_dummies=dropped))
        for dropped in (False, dummies)
    )
    np.testing.assert_array_equal(whole.experts_TLK, rows[first:])
    finder = RunFinder()
    finder.add(whole)
    kept_T = ~finder.found().mask_T(0, whole.n_tokens) if dummies else np.ones(whole.n_tokens, bool)
    np.testing.assert_array_equal(left.experts_TLK, whole.experts_TLK[kept_T])
    if dummies and not first:  # every run of equal rows, since real ones are all different
        equal_T = (rows[1:] == rows[:-1]).all(axis=(1, 2))
        np.testing.assert_array_equal(kept_T, ~(np.append(equal_T, False) | np.append(False, equal_T)))
    record = left.meta.source.get("left_out", {"first_rows": 0, "dummy_rows": 0})
    assert (record["first_rows"], record["dummy_rows"]) == (first, int((~kept_T).sum()))
    if dummies:  # the health check counts the same ones
        told = [finding.message for finding in profile_trace(whole).health if finding.code == "dummy-rows"]
        assert len(told) == (record["dummy_rows"] > 0)
        assert all(f"{record['dummy_rows']:,} rows" in message for message in told)


def test_the_columns_go_along(tmp_path):
    np.savez(tmp_path / "t.npz", law=uniform(50, 1, 8, 2), math=uniform(30, 1, 8, 2, seed=1), law_seqlen=[20, 30])
    whole = import_trace(tmp_path / "t.npz", ImportOptions(experts=8))
    left = import_trace(tmp_path / "t.npz", ImportOptions(experts=8, drop_first=25))
    expected = dataclasses.replace(whole.select(slice(25, None)), meta=left.meta)
    for name in ("sequence_T", "position_T", "phase_T", "experts_TLK"):
        np.testing.assert_array_equal(getattr(left, name), getattr(expected, name))
    assert [left.topics[topic] for topic in left.topic_T] == [whole.topics[topic] for topic in expected.topic_T]


def test_nothing_left_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", a=uniform(50, 1, 8, 2))
    with pytest.raises(MoecastError, match="drop_first = 50: the files have 50 rows"):
        import_trace(tmp_path / "t.npz", ImportOptions(experts=8, drop_first=50))
    with pytest.raises(ValueError, match="drop_first"):
        ImportOptions(drop_first=-1)


def test_counts_have_no_rows(tmp_path):
    torch_save({"rank": 0, "logical_count": np.ones((3, 2, 6), np.int32)}, tmp_path / "stat.pt")
    for changes in ({"drop_first": 3}, {"drop_dummies": True}):
        with pytest.raises(MoecastError, match=f"{next(iter(changes))}: the files hold counts only"):
            import_trace(tmp_path / "stat.pt", ImportOptions(choices=2, **changes))


def run(*arguments):
    command = [sys.executable, "-m", "moecast", "trace", "import", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_says_what_it_left_out(tmp_path):
    warm_up(tmp_path / "t.npz")
    asked = (tmp_path / "t.npz", "--experts", EXPERTS, "--phase", "decode")
    result = run(*asked, "--drop-dummies", "--out", tmp_path / "left.parquet")
    assert result.returncode == 0, result.stderr
    shown = " ".join(result.stdout.replace("│", " ").split())
    assert "Left out of 21,024 rows: 16,640 dummy rows in 1 run of equal ones." in shown
    result = run(*asked, "--drop-first", DUMMY, "--out", tmp_path / "first.parquet", "--json")
    record = {"first_rows": DUMMY, "dummy_rows": 0, "of_rows": DUMMY + REAL}
    assert json.loads(result.stdout)["source"]["left_out"] == record
    first, left = (read_trace(tmp_path / f"{name}.parquet") for name in ("first", "left"))
    np.testing.assert_array_equal(first.experts_TLK, left.experts_TLK)
    result = run(*asked, "--drop-first", DUMMY + REAL, "--out", tmp_path / "none.parquet")
    assert result.returncode == 2
    assert "so none would be left" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "none.parquet").exists()
