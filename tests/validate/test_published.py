"""Published rows are well formed, and what predicts them is asked the same thing."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moecast.sim import Plan, find_rung, time_collective
from moecast.sim.collectives.choice import candidates
from moecast.sim.collectives.protocols import NETWORK_POST_s
from moecast.sim.cost.collectives import find_parameters, nccl_seconds
from moecast.sim.cost.nvlink import NOMINAL_Bps
from moecast.sim.sites import Sites
from moecast.topology import list_presets, load_cluster
from moecast.validate.published import SOURCES, Row, markdown, mean_error, outcome_of, predict
from moecast.validate.published.questions import AllToAll, GroupCollective, TokenExchange, WholeStep
from moecast.validate.published.routing import even_trace, uniform_trace

ROOT = Path(__file__).resolve().parents[2]

ROWS = [row for source in SOURCES for row in source.rows]
SMALL = [
    row
    for row in ROWS
    if isinstance(row.question, AllToAll | GroupCollective)
    or (isinstance(row.question, TokenExchange) and row.question.ranks <= 8)
]


def test_sources_and_rows_have_names_of_their_own() -> None:
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    for source in SOURCES:
        assert len({row.name for row in source.rows}) == len(source.rows)
        assert source.where
        assert source.conditions


@pytest.mark.parametrize("row", [row for row in ROWS if row.question is not None], ids=lambda row: row.name)
def test_questions_name_presets_and_rungs_that_exist(row: Row) -> None:
    assert row.question is not None
    assert getattr(row.question, "cluster") in {preset.name for preset in list_presets()}  # noqa: B009 - of any question
    assert getattr(row.question, "unit", row.unit) == row.unit
    find_rung(row.question.rung)


@pytest.mark.parametrize("row", SMALL, ids=lambda row: row.name)
def test_predictions_are_finite_and_the_bound_is_below_fluid(row: Row) -> None:
    assert row.question is not None
    bound, fluid = (row.question.predict(find_rung(name)) for name in ("bound", "fluid"))
    assert 0 < fluid < math.inf
    if row.unit == "us":
        assert bound <= fluid * (1 + 1e-9)
    else:
        assert bound >= fluid * (1 - 1e-9)


def test_even_all_to_all_has_a_closed_form() -> None:
    """What NCCL's family says of it."""
    nccl = find_parameters("h200_sxm", "nccl").parameters
    expected_us = 1e6 * float(nccl_seconds(nccl, "all-to-all", 8, 1e8, link_Bps=NOMINAL_Bps["h200_sxm"]))
    asked = AllToAll(cluster="dgx-h200", ranks=8, bytes_per_rank=1e8)
    assert asked.predict(find_rung("fluid")) == pytest.approx(expected_us, rel=0.02)


def test_bytes_are_counted_as_deepep_counts_them() -> None:
    asked = TokenExchange(cluster="h800-node", ranks=8, tokens=8, mode="per_domain", exchange="dispatch", unit="GB/s")
    trace = uniform_trace(tokens=64, experts=256, choices=8)
    pairs = sum(len({int(expert) // 32 for expert in token}) for token in trace.experts_TLK[:, 0])
    assert asked.seconds_of(1.0) == pytest.approx(pairs / 8 * 7168 * (1 + 4 / 128) / 1e9)


def test_low_latency_kernels_count_every_choice() -> None:
    """NCCL EP's dispatch of 128 tokens x 8 choices x 14,336 bytes at 224.3 GB/s takes 65.45 us."""
    asked = TokenExchange(
        cluster="dgx-h100",
        ranks=8,
        tokens=128,
        mode="per_choice",
        exchange="dispatch",
        dispatch_type="bf16",
        unit="GB/s",
    )
    assert asked.seconds_of(224.3) == pytest.approx(65.45e-6, rel=1e-3)


@pytest.mark.parametrize(("nodes", "visited"), [(2, 2), (4, 4), (8, 4)])
def test_tokens_of_normal_kernels_visit_at_most_four_nodes(nodes: int, visited: int) -> None:
    asked = TokenExchange(
        cluster="h800-node", nodes=nodes, ranks=8 * nodes, tokens=64, mode="per_domain", exchange="combine", unit="GB/s"
    )
    node_TK = asked._routing().experts_TLK[:, 0].astype(int) * nodes // 256
    assert max(len(set(token)) for token in node_TK.tolist()) == visited
    mean = asked.seconds_of(1.0) * 1e9 / (64 * 7168 * 2)
    assert visited - 0.5 < mean <= visited


@pytest.mark.parametrize("best", [1, 2])
def test_choices_stand_in_the_groups_whose_best_scores_are_highest(best: int) -> None:
    """Against the rule written out, token by token, on the same scores."""
    trace = uniform_trace(tokens=200, experts=32, choices=4, groups=8, groups_per_token=2, best=best, seed=3)
    score_TE = np.random.default_rng(3).random((200, 32), np.float32)
    for token, chosen in enumerate(trace.experts_TLK[:, 0].tolist()):
        score_CE = score_TE[token].reshape(8, 4)
        groups = np.argsort([np.sort(scores)[-best:].sum() for scores in score_CE])[-2:]
        allowed = [expert for expert in range(32) if expert // 4 in groups]
        wanted = sorted(allowed, key=lambda expert: score_TE[token][expert])[-4:]
        assert sorted(chosen) == sorted(wanted)


def test_even_routing_visits_every_expert_alike_inside_groups() -> None:
    trace = even_trace(tokens=64, experts=256, choices=8, layers=2, groups=8, groups_per_token=4)
    for layer in range(2):
        experts_TK = trace.experts_TLK[:, layer].astype(int)
        assert np.bincount(experts_TK.ravel(), minlength=256).tolist() == [2] * 256
        assert all(len(set(token)) == 8 for token in experts_TK.tolist())
        assert all(len({expert // 32 for expert in token}) == 4 for token in experts_TK.tolist())
    with pytest.raises(ValueError, match="divide evenly"):
        even_trace(tokens=4, experts=10, choices=3, groups=5, groups_per_token=2)


def test_a_rate_is_compared_as_the_time_of_a_step() -> None:
    """16,384 tokens on each of 32 GPUs at 59,337 tokens/s for each of 4 nodes."""
    (row,) = (row for row in ROWS if row.value == 59_337)
    assert isinstance(row.question, WholeStep)
    assert row.question.seconds_of(row.value) == pytest.approx(32 * 16_384 / (4 * 59_337))


def test_the_worst_rows_of_a_source_stand_in_its_table() -> None:
    by_source = {source.name: " ".join(row.name for row in source.rows) for source in SOURCES}
    for ranks in (8, 16, 32, 64):
        for exchange in ("dispatch", "combine"):
            assert f"normal {exchange}, {ranks} ranks" in by_source["DeepEP"]
    assert {row.value for row in ROWS} >= {90, 81, 61, 38.2, 40.9, 44.4, 37.9, 59_337, 50_302}


def test_nccl_over_efa_is_within_ten_percent_of_rows_that_set_nothing() -> None:
    """One start for all, fitted on 16 B300 and 32 H100, and the rate of a B300's cards: asked of 64 B300."""
    (source,) = (source for source in SOURCES if source.name == "AWS")
    outcomes = [outcome_of(source, row) for row in source.rows if "NCCL" in row.name]
    assert sorted(outcome.row.use for outcome in outcomes) == ["check"] * 2 + ["fit"] * 4
    for outcome in outcomes:
        assert outcome.error is not None
        assert abs(outcome.error) < (0.1 if outcome.row.use == "check" else 0.03), outcome.row.name


def test_only_what_leaves_its_domain_waits_for_the_network_to_start() -> None:
    efa, start_s = load_cluster("p5", nodes=2), load_cluster("p5").hardware.network_launch_s
    without = efa.with_hardware(replace(efa.hardware, network_launch_s=0.0))
    for ranks, added_s in ((8, 0.0), (16, start_s)):
        slow, quick = (
            time_collective(c, "all-to-all", [2**20], ranks=ranks, rung=find_rung("bound"))[0].time_s
            for c in (efa, without)
        )
        assert slow - quick == pytest.approx(added_s, abs=1e-12)
    assert start_s > 1e-4


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 8), (2, 12), (4, 32)])
def test_an_all_to_all_starts_a_post_later_for_each_rank_of_another_node(nodes: int, ranks: int) -> None:
    """As NCCL's host proxies post messages, one after the other; the rank with the most peers elsewhere is the last."""
    sites = Sites.of(
        load_cluster("dgx-h100", nodes=nodes), Plan.contiguous(layers=1, experts=ranks, choices=1, ep=ranks)
    )
    everyone_DM = np.arange(ranks)[None, :]
    (choice, *_) = candidates(sites, everyone_DM, operation="all-to-all")
    inside = min(8, ranks - 8 * (nodes - 1))
    posts = ranks - inside if nodes > 1 else 0
    hardware = sites.cluster.hardware
    assert sites.most_away == (posts if nodes > 1 else 0)
    assert (choice.posts, choice.by_network) == (posts, nodes > 1)
    if nodes > 1:
        assert choice.setup_s(sites) == pytest.approx(
            hardware.collective_launch_s + hardware.barrier_s + posts * NETWORK_POST_s
        )


def test_one_token_between_nodes_is_near_a_row_that_set_nothing() -> None:
    (source,) = (source for source in SOURCES if source.name == "pplx-kernels")
    outcome = outcome_of(source, next(row for row in source.rows if "128 ranks" in row.name))
    assert outcome.row.use == "check"
    assert outcome.error is not None
    assert abs(outcome.error) < 0.15


def test_uniform_routing_chooses_different_experts() -> None:
    experts_TK = np.sort(uniform_trace(tokens=500, experts=32, choices=4).experts_TLK[:, 0], axis=1)
    assert (np.diff(experts_TK.astype(int), axis=1) > 0).all()
    assert np.bincount(experts_TK.ravel(), minlength=32).min() > 30


def test_the_table_shows_every_predicted_row_and_counts_the_rest() -> None:
    chosen = [source for source in SOURCES if source.name in ("4 x H100", "GLM-5.2 decode step")]
    outcomes = predict(chosen)
    text = markdown(outcomes)
    assert text.count("| 4 x H100 |") == 4
    assert "Not predicted, 5 rows: no preset of its GPU or model." in text
    errors = [abs(o.error) for o in outcomes if o.error is not None and o.row.use == "check"]
    assert mean_error(outcomes, "check") == pytest.approx(sum(errors) / len(errors))


def test_a_row_is_predicted_or_says_why_not() -> None:
    with pytest.raises(ValueError, match="either a question or why_not"):
        Row(name="x", value=1.0, unit="us", use="check")


@pytest.mark.slow
def test_the_readme_shows_what_this_commit_predicts() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "published.py", "--readme"], capture_output=True, text=True, check=True
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"(\| measured \(source\).*?)\n\n", readme, re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines() == done.stdout.splitlines()
