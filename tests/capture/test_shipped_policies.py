"""The committed trace of each router policy: there, small, honest about itself, and showing what its policy does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moecast.cli.trace import app
from moecast.errors import MoecastError
from moecast.traces import (
    NO_CHOICE,
    RoutingTrace,
    contiguous_ranks_LE,
    load_LE,
    read_meta,
    read_trace,
    shipped_policies,
    shipped_trace_path,
    trace_stats,
)
from moecast.traces.capture.own.options import sized
from moecast.traces.capture.own.policies import POLICIES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE_HEADING = "## What the router's policy does"


def prefill(policy: str) -> RoutingTrace:
    return read_trace(shipped_trace_path(policy), phase="prefill")


def test_every_policy_has_its_trace_and_all_are_small() -> None:
    assert set(shipped_policies()) == set(POLICIES)
    sizes = [shipped_trace_path(policy).stat().st_size for policy in POLICIES]
    assert sum(sizes) <= 12_000_000


def test_commands_take_a_policy_by_name() -> None:
    done = CliRunner().invoke(app, ["info", "shipped:capacity", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["tokens"] == read_trace(shipped_trace_path("capacity")).n_tokens


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(MoecastError, match=r"'best': one of .*aux-free"):
        shipped_trace_path("best")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_trace_says_what_made_it(policy: str) -> None:
    meta, train = read_meta(shipped_trace_path(policy)), sized("policies", policy=policy).train
    source = meta.source
    assert dataclasses.asdict(POLICIES[policy]).items() <= source["policy"].items()
    assert source["policy"]["name"] == policy
    assert source["training"]["steps"] == train.steps
    assert source["training"]["learning_rate"] == train.learning_rate
    assert {"hardware", "software", "commit", "date", "corpus_sha256", "tokens_sha256", "capture"} <= set(source)
    assert re.fullmatch(r"[0-9a-f]{12}", source["commit"])
    assert "not a published model" in meta.model
    assert POLICIES[policy].note(32, 4) in meta.notes
    assert (meta.layers, meta.experts) == (4, 32)
    assert meta.choices <= POLICIES[policy].most_choices(32, 4)
    assert not re.search(r"/(work|tmp|home|root)\b", json.dumps([dict(source), meta.notes, dict(meta.config or {})]))


@pytest.mark.parametrize("policy", POLICIES)
def test_all_read_the_same_text(policy: str) -> None:
    ours, reference = prefill(policy), prefill("aux-global")
    for column in ("token_id_T", "sequence_T", "position_T", "step_T"):
        assert np.array_equal(getattr(ours, column), getattr(reference, column))
    same = ("corpus_sha256", "tokens_sha256", "training", "capture", "software", "threads")
    assert all(ours.meta.source[key] == reference.meta.source[key] for key in same)


@pytest.mark.parametrize(("page", "heading"), [("traces.md", PAGE_HEADING), ("own-model.md", "**Meaning.**")])
def test_tables_have_a_row_for_each_policy_with_its_loss(page: str, heading: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = text[text.index(heading) :].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = [
        [cell.strip(" `") for cell in row.strip("|").split("|")] for row in itertools.takewhile(bool, lines[first:])
    ]
    column = next(index for index, head in enumerate(rows[0]) if "loss" in head)
    losses = {policy: read_meta(shipped_trace_path(policy)).source["loss_nats_per_token"] for policy in POLICIES}
    assert {row[0]: row[column] for row in rows[2:]} == {p: f"{losses[p]['held_out']:.2f}" for p in POLICIES}
    assert len(rows) - 2 == len(POLICIES)


def test_nothing_but_the_policies_that_say_so_leave_choices_empty() -> None:
    for policy in POLICIES:
        empty = bool((read_trace(shipped_trace_path(policy)).experts_TLK == NO_CHOICE).any())
        assert empty == (policy in ("capacity", "null-experts", "top-p", "expert-choice")), policy


def test_late_tokens_are_dropped_where_experts_fill_up() -> None:
    trace = prefill("capacity")
    dropped_T = (trace.experts_TLK == NO_CHOICE).mean(axis=(1, 2))
    position_T = trace.position_T
    shares = [float(dropped_T[(position_T >= a) & (position_T < b)].mean()) for a, b in ((0, 8), (8, 64), (64, 256))]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 1.8 * shares[0]


def test_groups_bound_the_fan_out() -> None:
    trace = prefill("group-limited")
    stats = trace_stats(trace, rank_of_expert_LE=contiguous_ranks_LE(trace.meta, 8))
    assert stats.fan_out_LF is not None
    assert stats.fan_out_LF[:, 3:].sum() == 0


def test_experts_that_pick_tokens_are_evenly_used_in_every_pass() -> None:
    trace = read_trace(shipped_trace_path("expert-choice"), phase="decode")
    assert trace.step_T is not None
    loads = load_LE(trace.select(trace.step_T == trace.step_T.max()))
    assert np.all(loads == 192 * 4 // 32)


def test_what_balances_the_loads_is_seen_in_them() -> None:
    gini = {policy: trace_stats(prefill(policy)).gini for policy in POLICIES}
    assert gini["none"] > 1.5 * max(gini[policy] for policy in ("aux-micro", "aux-global", "aux-free"))
    assert gini["stochastic"] < 0.02
    assert max(gini[policy] for policy in ("aux-micro", "aux-global", "aux-free")) < gini["sinkhorn"] < gini["none"]
