"""Which nodes EPLB packs expert groups onto, and how many of them a token of a group-limited router then reaches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moecast.cli import app
from moecast.placement import place, rebalance
from moecast.placement.by_load import LoadProblem
from moecast.placement.eplb import Eplb
from moecast.sim import Plan, Workload, load_model, read_plan
from moecast.topology import load_cluster
from moecast.traces import LoadTable, RoutingTrace, TraceMeta, write_load_table

from .test_by_load import table_of
from .test_invariants import skewed_trace
from .test_solvers import EPLB_LOAD, EPLB_SLOTS

TWO_BY_FOUR = "name: two-by-four\npreset: dgx-h100\nnodes: 2\ndomain: {gpus_per_host: 4, nics_per_host: 4}\n"


def sorted_slots(slots: object) -> object:
    return np.sort(np.array(slots).reshape(2, 8, 2), axis=-1).tolist()


def test_the_published_example_by_the_command_line(tmp_path: Path) -> None:
    """The README of deepseek-ai/EPLB: 12 experts in 4 groups on 2 nodes of 4 GPUs, 16 slots."""
    meta = TraceMeta(model="readme", layers=2, experts=12, choices=2)
    write_load_table(LoadTable(load_LE=np.array(EPLB_LOAD), meta=meta), tmp_path / "l.json")
    (tmp_path / "c.yaml").write_text(TWO_BY_FOUR)
    asked = [
        "place",
        "--load",
        str(tmp_path / "l.json"),
        "--cluster",
        str(tmp_path / "c.yaml"),
        "--slots-per-rank",
        "2",
    ]
    asked += ["--solver", "eplb", "--out", str(tmp_path / "p.json"), "--json"]
    done = CliRunner().invoke(app, [*asked, "--expert-groups", "4"], catch_exceptions=False)
    assert "hierarchical: each of 4 expert groups" in json.loads(done.stdout)["note"]
    assert sorted_slots(read_plan(tmp_path / "p.json").slots_DLGP[0]) == sorted_slots(EPLB_SLOTS)
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert (
        "global: no expert groups are known of the router (n_group of its config, or --expert-groups)"
        in json.loads(done.stdout)["note"]
    )


def problem(node_G: list[int] | np.ndarray, groups: int) -> LoadProblem:
    layout = Plan.contiguous(layers=1, experts=288, choices=1, ep=len(node_G))
    table = table_of(np.random.default_rng(2).integers(1, 99, (1, 288)))
    nodes = np.asarray(node_G, np.int32)
    return LoadProblem(table=table, wanted=layout, domain_G=nodes * 0, node_G=nodes, expert_groups=groups)


RACK = load_cluster("gb200-nvl72").node_of_gpu_G


@pytest.mark.parametrize(
    ("node_G", "groups", "nodes", "words"),
    [
        (np.repeat(range(4), 8), 8, 4, "hierarchical: each of 8 expert groups stands whole on one of 4 nodes"),
        (np.repeat(range(3), 8), 8, 0, "global: 8 expert groups on 3 nodes do not divide"),
        (
            np.repeat(range(4), 8),
            1,
            0,
            "global: no expert groups are known of the router (n_group of its config, or --expert-groups)",
        ),
        (np.zeros(8), 8, 1, ""),
        (RACK, 8, 0, "global: 8 expert groups on 18 nodes do not divide"),  # one domain, 18 hosts: engines count hosts
        (RACK, 36, 18, "hierarchical: each of 36 expert groups stands whole on one of 18 nodes"),
        (np.tile(range(2), 8), 8, 0, "global: its ranks do not stand on the 2 nodes evenly and in order"),
        ([0] * 6 + [1] * 2, 8, 0, "global: its ranks do not stand on the 2 nodes evenly and in order"),
    ],
)
def test_nodes_are_hosts(node_G: np.ndarray, groups: int, nodes: int, words: str) -> None:
    asked = problem(node_G, groups)
    solved = Eplb().spread(asked)
    assert solved.note == (words and f"EPLB, {words}{', so experts go to any rank' if 'global' in words else ''}")
    slots, ranks = int(asked.slots_G.sum()), len(node_G)
    wanted = rebalance(asked.load_LE, slots=slots, ranks=ranks, expert_groups=groups if nodes else 1, nodes=nodes or 1)
    assert solved.slots_LGP.tolist() == wanted.tolist()


def group_limited_trace(tokens: int = 3072) -> RoutingTrace:
    """One layer of 256 experts, 8 choices in the best 4 of 8 groups, skewed, as DeepSeek-V3's router limits them."""
    rng = np.random.default_rng(3)
    score_TE = rng.normal(0, 0.5, 256) + 0.6 * rng.gumbel(size=(tokens, 256))
    best_TG = np.sort(score_TE.reshape(tokens, 8, 32), -1)[:, :, -2:].sum(-1)
    closed_TG = np.ones((tokens, 8), bool)
    np.put_along_axis(closed_TG, np.argpartition(-best_TG, 4, 1)[:, :4], False, 1)
    score_TE[np.repeat(closed_TG, 32, 1)] = -np.inf
    trace = skewed_trace(0, layers=1, experts=256, choices=8, tokens=tokens, phase="prefill")
    return replace(trace, experts_TLK=np.argpartition(-score_TE, 8, 1)[:, None, :8].astype(np.uint16))


def test_groups_of_the_model_keep_tokens_on_few_nodes() -> None:
    """DeepSeek-V3's router on 4 nodes: EPLB with groups reaches 4 (1 - 15/70) of them, without 4 (1 - (3/4)^8)."""
    model = load_model("deepseek-v3").with_routing("made", layers=1, experts=256, choices=8)
    assert model.expert_groups == 8
    cluster, trace = load_cluster("dgx-h200", nodes=4), group_limited_trace()
    workload = Workload(phase="prefill", tokens_per_rank=32, steps=1)
    grouped = place(cluster, model, trace, workload, solver="eplb", slots_per_rank=9)
    assert grouped.fan_out_domains == pytest.approx(4 * (1 - 15 / 70), abs=0.05)
    spread = place(cluster, model, trace, workload, solver="eplb", slots_per_rank=9, expert_groups=1)
    assert spread.fan_out_domains == pytest.approx(4 * (1 - 0.75**8), abs=0.08)
