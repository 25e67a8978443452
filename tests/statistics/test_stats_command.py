"""``moecast trace stats`` as a user calls it."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from moecast.cli.trace import app
from moecast.errors import MoecastError
from moecast.sim import Plan
from moecast.sim.plan import write_plan
from moecast.sim.slots import EMPTY
from moecast.traces import (
    LoadTable,
    contiguous_ranks_LE,
    import_npz,
    iter_part,
    load_LE,
    profile_trace,
    trace_stats,
    write_load_table,
    write_trace,
)
from tests.sim.plan_cases import shares
from tests.statistics.made import trace_of, uniform

KEYS = {
    "model", "tokens", "layers", "experts", "choices", "ranks", "placement", "balance_pooled", "gini", "fan_out",
    "fan_out_domains", "crossings", "coactivation", "affinity", "srp", "sch", "token_sparsity", "chunk_sparsity",
    "dependence", "positions", "drift", "stability", "health", "sample", "per_layer",
}  # fmt: skip


@pytest.fixture
def run():
    def invoke(*arguments):
        result = CliRunner().invoke(app, ["stats", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


@pytest.fixture(scope="module")
def trace():
    return trace_of(
        uniform(1200, 3, 8, 2),
        experts=8,
        lengths=[40] * 30,
        topics=("law", "code"),
        topic_Q=[0, 1, 1] * 10,
        ids_T=np.arange(1200) % 50,
    )


@pytest.fixture
def path(trace, tmp_path):
    write_trace(trace, tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_a_published_trace_through_the_command_line(shared_traces, tmp_path):
    """Contiguous balance .795 and fan-out 4.552 on 8 ranks, second halves: what is known of this trace."""
    write_trace(import_npz(shared_traces / "deepseek-v2-lite.npz"), tmp_path / "t.parquet")
    command = [
        sys.executable,
        "-m",
        "moecast",
        "trace",
        "stats",
        str(tmp_path / "t.parquet"),
        "--ranks",
        "8",
        "--part",
        "measuring",
        "--json",
    ]
    value = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert value.keys() >= KEYS
    assert value["tokens"] == 16641
    assert round(value["balance_pooled"], 3) == 0.795
    assert round(value["fan_out"], 3) == 4.552
    assert value["drift"]["topics"]["names"] == ["intent", "law", "summary", "translation"]
    assert value["dependence"]["token_id"] is None
    assert 0.3 < value["srp"]["16"] < 0.5  # the paper's table 1 has 37.92 % for this model on other text


def test_json_says_what_the_profile_says(run, path, trace):
    value = json.loads(run(path, "--ranks", 4, "--domain-size", 2, "--json"))
    found = profile_trace(trace, n_ranks=4, domain_size=2)
    assert value.keys() >= KEYS
    assert value["reason"] is None
    assert value["srp"] == dict(zip(["2", "4", "8", "16", "32", "64"], [*found.locality.srp_M[:5], None], strict=True))
    assert value["sch"]["16"]["2"] == found.locality.sch_MS[3, 2]
    assert value["token_sparsity"] == 0.75
    assert value["chunk_sparsity"]["8"] == found.locality.chunk_sparsity_M[2]
    assert value["fan_out_domains"] == found.fan_out_domains
    assert sum(value["fan_out_tokens"]) == pytest.approx(1)
    assert value["affinity"]["information_bits"] == found.affinity.information
    assert value["drift"]["distance"] == found.drift.windows.distance
    assert value["drift"]["topics"]["balance_other"] == found.drift.topics.balance_other
    assert value["health"] == [
        {"code": finding.code, "severity": finding.severity, "message": finding.message} for finding in found.health
    ]
    assert value["per_layer"][0]["srp"]["4"] == found.locality.srp_LM[0, 1]
    assert value["per_layer"][2]["affinity"] is None


def test_tables_explain_each_number(run, path):
    text = run(path, "--ranks", 4)
    for words in ("SRP, 16", "SCH, 16, 2 ×", "chunk sparsity, 4", "stable plan", "token id", "drift, topics", "even"):
        assert words in text
    assert "[few-choices]" in text or "health: nothing found" in text


def test_what_a_trace_cannot_say_is_a_dash_and_null(run, tmp_path):
    """Sequences of one token: no windows, nothing before, no plan that could be stable."""
    short = trace_of(uniform(7, 2, 8, 2), experts=8, lengths=[1] * 7, ids_T=[3] * 7)
    write_trace(short, tmp_path / "t.parquet")
    value = json.loads(run(tmp_path / "t.parquet", "--json"))
    assert set(value["srp"].values()) == set(value["srp_size_ratio"].values()) == {None}
    assert value["stability"] is None
    text = run(tmp_path / "t.parquet")
    assert "nan" not in text
    assert "needs 8 sequences" in text


def test_a_layer_without_choices_has_no_hottest_expert(run, tmp_path):
    chosen = uniform(100, 2, 8, 2)
    chosen[:, 1] = 65535
    write_trace(trace_of(chosen, experts=8, lengths=[10] * 10), tmp_path / "t.parquet")
    row = json.loads(run(tmp_path / "t.parquet", "--json", "--quick"))["per_layer"][1]
    assert row["hottest"] is row["coldest"] is row["hottest_load_over_mean"] is row["balance_pooled"] is None
    assert "nan" not in run(tmp_path / "t.parquet")


def test_quick_counts_only(run, path, trace):
    value = json.loads(run(path, "--ranks", 4, "--quick", "--json"))
    want = trace_stats(trace, rank_of_expert_LE=contiguous_ranks_LE(trace.meta, 4), n_ranks=4)
    assert value["balance_pooled"] == want.balance_pooled
    assert value["crossings"] == want.crossings
    assert value["srp"] is value["health"] is None
    assert "SRP" not in run(path, "--quick")


@pytest.mark.parametrize("part", ["planning", "measuring", "all"])
@pytest.mark.parametrize("ask", [{}, {"topics": ["law"]}, {"phase": "prefill"}])
def test_parts_are_those_of_split(trace, path, part, ask):
    kept = trace if "topics" not in ask else trace.select(trace.topic_T == 0)
    want = kept if part == "all" else kept.split(0.3)[part == "measuring"]
    batches = list(iter_part(path, part=part, fraction=0.3, **ask))
    found = np.concatenate([batch.experts_TLK for batch in batches])
    np.testing.assert_array_equal(found, want.experts_TLK)


def test_parts_of_interleaved_topics_in_shards(trace, tmp_path):
    from moecast.traces import TraceWriter

    mixed = trace.select(np.random.default_rng(0).permutation(trace.n_tokens))
    with TraceWriter(tmp_path / "t", mixed.meta, shard_tokens=90) as writer:
        writer.append(mixed)
    for index, part in enumerate(("planning", "measuring")):
        found = np.concatenate([batch.experts_TLK for batch in iter_part(tmp_path / "t", part=part)])
        np.testing.assert_array_equal(found, mixed.split(0.5)[index].experts_TLK)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--topics", "poetry"], "the trace has code, law"),
        (["--phase", "decode"], "the trace has prefill"),
        (["--phase", "warmup"], "one of train, prefill, decode"),
        (["--part", "half"], "one of all, planning, measuring"),
        (["--ranks", "9"], "8 experts"),
        (["--part", "planning", "--plan-on", "0"], "no tokens"),
        (["--part", "planning", "--plan-on", "0", "--quick"], "no batches"),
        (["--domain-size", "3", "--plan", "missing.json"], "missing.json"),
    ],
)
def test_bad_questions_fail_in_one_line(path, arguments, rule):
    with pytest.raises(MoecastError, match=rule):
        CliRunner().invoke(app, ["stats", str(path), *arguments], catch_exceptions=False)


# Plans.


def plan_of(slots_GP, layers=3, experts=8, choices=2):
    slots = np.array(slots_GP, np.int32)
    return Plan.contiguous(layers=layers, experts=experts, choices=choices, ep=len(slots)).with_(
        slots_DLGP=np.broadcast_to(slots, (1, layers, *slots.shape)).copy()
    )


def test_a_plan_without_replicas_counts_as_its_ranks(run, path, trace, tmp_path):
    slots = [[6, 1], [0, 3], [2, 7], [5, 4]]
    write_plan(plan_of(slots), tmp_path / "plan.json")
    rank_E = np.empty(8, int)
    for rank, held in enumerate(slots):
        rank_E[held] = rank
    want = trace_stats(trace, rank_of_expert_LE=np.tile(rank_E, (3, 1)), n_ranks=4)
    value = json.loads(run(path, "--plan", tmp_path / "plan.json", "--json"))
    assert value["ranks"] == 4
    assert value["placement"] == "plan.json"
    assert value["balance_pooled"] == want.balance_pooled
    assert value["fan_out"] == want.fan_out
    assert value["crossings"] == want.crossings
    assert "as plan.json places them" in run(path, "--plan", tmp_path / "plan.json")


def spread_of(counts, choices=2):
    return [counts.count(found) / len(counts) for found in range(choices + 1)]


REPLICAS = [[0, 1, 2, EMPTY], [2, 3, 4, EMPTY], [4, 5, 0, EMPTY], [6, 7, 0, 1]]
OTHER = [[7, 6, 5, EMPTY], [4, 3, 2, 1], [0, 5, 6, EMPTY], [3, 1, 7, EMPTY]]


def serve(rule, held, weights, turn, source, *, domain_size):
    """Where the turn-th choice of an expert by a source goes: the rules as docs/design.md, 7, tells them."""
    if rule == "weights":
        shares = np.cumsum(weights) / np.sum(weights)
        return held[int(np.searchsorted(shares, (turn + source + 0.5) * 0.6180339887498949 % 1, side="right"))]
    if rule == "by_rank":
        ranks = sorted(set(held))
        return ranks[source % 4 % len(ranks)]
    near = [rank for rank in held if rank == source] or [r for r in held if r // domain_size == source // domain_size]
    held = (near or held) if rule == "nearest" else held
    return held[(turn + source) % len(held)]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rule", ["round_robin", "nearest", "by_rank", "weights"])
def test_a_plan_with_replicas_follows_its_rule(run, trace, tmp_path, rule, groups):
    """Everything counted of a placement, fan-outs by token and crossings by layer too, with some choices empty."""
    chosen = trace.experts_TLK.copy()
    chosen[::7, 1] = 65535
    chosen[::5, :, 1] = 65535
    trace = dataclasses.replace(trace, experts_TLK=chosen)
    write_trace(trace, tmp_path / "t.parquet")
    slots = np.array([REPLICAS, OTHER][:groups], np.int32)
    weights_DGP = np.where(slots == EMPTY, 0, 1 + np.arange(slots.size).reshape(slots.shape) % 5)
    shares_DGP = shares(weights_DGP[:, None].astype(float), slots[:, None])
    plan = Plan.contiguous(layers=3, experts=8, choices=2, ep=4, groups=groups).with_(
        slots_DLGP=np.repeat(slots[:, None], 3, axis=1),
        replica_rule=rule,
        replica_weights_DLGP=np.repeat(shares_DGP, 3, axis=1) if rule == "weights" else None,
    )
    write_plan(plan, tmp_path / "plan.json")
    ranks = 4 * groups
    held = {}  # (group, expert): ranks that hold it and the weights of those slots
    for group, rank, slot in np.argwhere(slots != EMPTY).tolist():
        one = held.setdefault((group, int(slots[group, rank, slot])), ([], []))
        one[0].append(4 * group + rank)
        one[1].append(weights_DGP[group, rank, slot])
    turns, load_LG, fans, domains, same, pairs = {}, np.zeros((3, ranks)), [], [], np.zeros(2), np.zeros(2)
    for token in range(trace.n_tokens):
        source, before = int(trace.sequence_T[token]) % ranks, None
        for layer in range(3):
            to = []
            for expert in trace.experts_TLK[token, layer].tolist():
                if expert == 65535:
                    continue
                turn = turns[source, layer, expert] = turns.get((source, layer, expert), -1) + 1
                to.append(serve(rule, *held[source // 4, expert], turn, source, domain_size=2))
                load_LG[layer, to[-1]] += 1
            fans.append(len(set(to)))
            domains.append(len({rank // 2 for rank in to}))
            if before is not None:
                same[layer - 1] += sum(a == b for a in before for b in to)
                pairs[layer - 1] += len(before) * len(to)
            before = to
    load_LDG = load_LG.reshape(3, groups, 4)
    balance_L = (load_LDG.mean(axis=2) / load_LDG.max(axis=2)).mean(axis=1)
    for more in ([], ["--quick"]):
        value = json.loads(
            run(tmp_path / "t.parquet", "--plan", tmp_path / "plan.json", "--domain-size", 2, "--json", *more)
        )
        assert value["ranks"] == 4
        assert value["balance_pooled"] == pytest.approx(balance_L.mean())
        assert [row["balance_pooled"] for row in value["per_layer"]] == pytest.approx(balance_L.tolist())
        assert value["fan_out"] == pytest.approx(np.mean(fans))
        assert value["fan_out_tokens"] == pytest.approx(spread_of(fans))
        assert [row["fan_out"] for row in value["per_layer"]] == pytest.approx(
            [np.mean(fans[layer::3]) for layer in range(3)]
        )
        assert value["crossings"] == pytest.approx(1 - same.sum() / pairs.sum())
        crossings = [row["crossings"] for row in value["per_layer"]]
        assert crossings[:2] == pytest.approx((1 - same / pairs).tolist())
        assert crossings[2] is None
        if not more:
            assert value["fan_out_domains"] == pytest.approx(np.mean(domains))
            assert value["fan_out_domains_tokens"] == pytest.approx(spread_of(domains))
            assert value["srp"]["4"] is not None


def test_a_plan_with_replicas_counts_a_token_of_more_choices_than_ranks(run, tmp_path):
    trace = trace_of(uniform(200, 2, 6, 4), experts=6, lengths=[10] * 20)
    write_trace(trace, tmp_path / "t.parquet")
    plan = plan_of([[0, 1, 2, 3, 4], [3, 4, 5, 0, EMPTY]], layers=2, experts=6, choices=4)
    write_plan(plan, tmp_path / "plan.json")
    value = json.loads(run(tmp_path / "t.parquet", "--plan", tmp_path / "plan.json", "--json", "--quick"))
    assert sum(value["fan_out_tokens"]) == pytest.approx(1)
    assert value["fan_out_tokens"][0] == value["fan_out_tokens"][3] == value["fan_out_tokens"][4] == 0
    assert "as plan.json places them on 2 ranks" in run(tmp_path / "t.parquet", "--plan", tmp_path / "plan.json")


@pytest.mark.parametrize("degree", ["pp", "cp", "etp", "microbatches", "tp"])
def test_a_plan_with_degrees_that_are_not_counted_is_refused(path, tmp_path, degree):
    slots = np.array([REPLICAS], np.int32)[:, None].repeat(3, axis=1)
    plan = Plan.contiguous(layers=3, experts=8, choices=2, ep=4).with_(slots_DLGP=slots)
    ranks = 8 if degree in ("pp", "etp") else 4
    write_plan(plan.with_(**{degree: 2}, gpu_of_rank=tuple(range(ranks))), tmp_path / "plan.json")
    with pytest.raises(MoecastError, match=f"plan.json: {degree} = 2") as caught:
        CliRunner().invoke(app, ["stats", str(path), "--plan", str(tmp_path / "plan.json")], catch_exceptions=False)
    assert "\n" not in str(caught.value)


def test_a_plan_for_another_model_is_refused(path, tmp_path):
    write_plan(plan_of([[0, 1], [2, 3]], experts=4), tmp_path / "plan.json")
    with pytest.raises(MoecastError, match=r"plan\.json.*experts = 4: the trace has 8"):
        CliRunner().invoke(app, ["stats", str(path), "--plan", str(tmp_path / "plan.json")], catch_exceptions=False)
    write_plan(plan_of([[0, 1, 2, 3], [4, 5, 6, 7]]), tmp_path / "plan.json")
    with pytest.raises(MoecastError, match="2 ranks"):
        CliRunner().invoke(
            app, ["stats", str(path), "--plan", str(tmp_path / "plan.json"), "--ranks", "4"], catch_exceptions=False
        )


# Load tables.


def test_a_load_table_gives_load_and_says_why_no_more(run, trace, tmp_path):
    write_load_table(LoadTable.count(trace), tmp_path / "load.json")
    value = json.loads(run(tmp_path / "load.json", "--ranks", 4, "--json"))
    want = trace_stats(trace, rank_of_expert_LE=contiguous_ranks_LE(trace.meta, 4), n_ranks=4)
    assert value.keys() >= KEYS
    assert value["balance_pooled"] == want.balance_pooled
    assert value["gini"] == want.gini
    assert [row["load"] for row in value["per_layer"]] == load_LE(trace).tolist()
    assert value["fan_out"] is value["srp"] is value["tokens"] is None
    assert "counts" in value["reason"]
    assert "needs tokens" in run(tmp_path / "load.json")
    with pytest.raises(MoecastError, match="8 experts"):
        CliRunner().invoke(app, ["stats", str(tmp_path / "load.json"), "--ranks", "9"], catch_exceptions=False)
    for option, value in (("--plan", "none.json"), ("--phase", "decode"), ("--topics", "a"), ("--part", "planning")):
        with pytest.raises(MoecastError, match=f"{option} = '{value}': a load table has counts only"):
            CliRunner().invoke(app, ["stats", str(tmp_path / "load.json"), option, value], catch_exceptions=False)
