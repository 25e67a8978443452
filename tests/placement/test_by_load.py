"""Plans out of counts alone: legal, judged by hand, and certificates against every plan there is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.placement import LOAD_SOLVERS, SOLVERS, place_by_load
from moecast.placement.certificates.fullest_rank import fullest_rank_bound_L, rank_load_LG
from moecast.placement.solver import SlotProblem, Solved
from moecast.sim import load_model, read_plan
from moecast.topology import load_cluster
from moecast.traces import LoadTable, TraceMeta, read_load_table, write_load_table

from .test_solvers import EPLB_LOAD, EPLB_SLOTS


def table_of(load_LE: object, choices: int = 1) -> LoadTable:
    load = np.asarray(load_LE, np.int64)
    meta = TraceMeta(model="m", layers=load.shape[0], experts=load.shape[1], choices=choices)
    return LoadTable(load_LE=load, meta=meta)


def fullest_of(slots_GP: np.ndarray, load_E: np.ndarray) -> float:
    """The fullest rank's load, in plain Python."""
    held = [[int(e) for e in row if e >= 0] for row in slots_GP]
    replicas = {e: sum(row.count(e) for row in held) for e in range(len(load_E))}
    return max(sum(load_E[e] / replicas[e] for e in row) for row in held)


def every_plan(experts: int, ranks: int, slots: int) -> list[np.ndarray]:
    """Every legal way to fill the slots, empty ones and wasteful ones among them."""
    rows = list(itertools.combinations_with_replacement(range(-1, experts), slots))
    plans = itertools.combinations_with_replacement(rows, ranks)
    return [np.array(plan) for plan in plans if set(range(experts)) <= {e for row in plan for e in row}]


@pytest.mark.parametrize(("experts", "ranks", "slots"), [(4, 2, 2), (5, 2, 3), (3, 2, 2), (3, 3, 1), (3, 3, 2)])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_no_plan_beats_the_certificate(experts: int, ranks: int, slots: int, data: st.DataObject) -> None:
    load_E = np.array(data.draw(st.lists(st.integers(0, 40), min_size=experts, max_size=experts)))
    if not load_E.any():
        load_E[0] = 1
    least = min(fullest_of(plan, load_E) for plan in every_plan(experts, ranks, slots))
    bound = fullest_rank_bound_L(load_E[None], np.full(ranks, slots))[0]
    assert bound <= least + 1e-9
    for solver in LOAD_SOLVERS:
        found = place_by_load(table_of(load_E[None]), ep=ranks, slots_per_rank=slots, solver=solver.name)
        value = fullest_of(found.plan.slots_DLGP[0, 0], load_E)
        assert value >= least - 1e-9
        assert found.fullest == pytest.approx(value / (load_E.sum() / ranks))
        assert found.fullest_bound <= found.fullest
        assert 0 <= found.gap < 1
        assert found.balance_pooled <= found.balance_bound <= 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(0, 3))
def test_invariants_of_every_solver(seed: int, ranks: int, spare: int) -> None:
    rng = np.random.default_rng(seed)
    experts = ranks * int(rng.integers(1, 5))
    load_LE = rng.integers(0, 1000, (3, experts))
    load_LE[:, 0] += 1
    slots = experts // ranks + spare
    for solver in LOAD_SOLVERS:
        found = place_by_load(table_of(load_LE), ep=ranks, slots_per_rank=slots, solver=solver.name)
        found.plan.check_legal()
        loads_LG = rank_load_LG(found.plan.slots_DLGP[0], load_LE)
        np.testing.assert_allclose(loads_LG.sum(1), load_LE.sum(1))
        assert found.fullest_bound <= found.fullest
        if solver.name != "eplb":
            assert found.wasted_slots == 0
        again = place_by_load(table_of(load_LE), ep=ranks, slots_per_rank=slots, solver=solver.name)
        assert (again.plan.slots_DLGP == found.plan.slots_DLGP).all()
    more, fewer = (fullest_rank_bound_L(load_LE, np.full(ranks, slots + extra)) for extra in (1, 0))
    assert (more <= fewer).all()


def test_a_case_by_hand() -> None:
    """Loads 6, 3, 2, 1 on two ranks of two slots: 6 + 1 against 3 + 2, and 6 is the mean."""
    found = place_by_load(table_of([[6, 3, 2, 1]]), ep=2)
    assert found.fullest == pytest.approx(7 / 6)
    assert found.fullest_bound == pytest.approx(1)
    assert found.balance_pooled == pytest.approx(6 / 7)
    # One more slot a rank: each of the two hottest on both, 4.5 + 2 against 4.5 + 1; no plan is below 6.
    more = place_by_load(table_of([[6, 3, 2, 1]]), ep=2, slots_per_rank=3)
    assert more.fullest == pytest.approx(6.5 / 6)
    assert more.gap == pytest.approx(0.5 / 6.5)


def test_balance_is_at_least_as_even_as_the_others() -> None:
    load_LE = np.random.default_rng(5).zipf(1.6, (4, 64)).clip(max=10_000)
    found = {s.name: place_by_load(table_of(load_LE, 6), ep=8, slots_per_rank=10, solver=s.name) for s in LOAD_SOLVERS}
    assert min(found.values(), key=lambda placement: placement.fullest).solver == "balance"
    assert found["balance"].gap < 0.01


def test_layers_that_were_not_counted_do_not_count() -> None:
    found = place_by_load(table_of([[0, 0, 0, 0], [6, 3, 2, 1]]), ep=2)
    assert found.fullest == pytest.approx(7 / 6)
    found.plan.check_legal()


def test_groups_and_domains_of_a_cluster() -> None:
    cluster = load_cluster("dgx-h100", nodes=2, fabric="single-switch")
    load_LE = np.random.default_rng(0).integers(1, 100, (2, 32))
    found = place_by_load(table_of(load_LE), cluster=cluster, ep=8, slots_per_rank=6)
    assert found.plan.groups == 2
    assert found.plan.ep == 8
    assert (found.plan.slots_DLGP[0] == found.plan.slots_DLGP[1]).all()
    filled = place_by_load(table_of(load_LE), cluster=cluster, fill=True)
    assert (filled.plan.slots_DLGP >= 0).all()


@pytest.mark.parametrize("solver", [s.name for s in SOLVERS if s.name not in {s.name for s in LOAD_SOLVERS}])
def test_solvers_that_need_tokens_say_so(solver: str) -> None:
    with pytest.raises(
        MoecastError, match="which counts do not say: use one of contiguous, round-robin, eplb, balance"
    ):
        place_by_load(table_of([[1, 2]]), ep=2, solver=solver)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "how many ranks an EP group has"),
        ({"ep": 0}, "ep = 0: must be a whole number"),
        ({"ep": 2, "slots_per_rank": 1}, "cannot hold"),
        ({"ep": 2, "solver": "best"}, "one of contiguous"),
        ({"ep": 2, "replica_rule": "weights"}, "no solver makes replica weights"),
        ({"cluster": load_cluster("dgx-h100", nodes=1), "ep": 3}, "does not divide"),
    ],
)
def test_questions_without_an_answer_fail_in_one_line(more: dict[str, object], words: str) -> None:
    with pytest.raises(MoecastError, match=words) as failure:
        place_by_load(table_of([[1, 2, 3, 4]]), **more)  # type: ignore[arg-type]
    assert "\n" not in str(failure.value)


def test_experts_that_overfill_the_gpu_are_refused() -> None:
    model = load_model("deepseek-v3")
    load_LE = np.ones((model.layers, model.experts), int)
    more = {"model": model, "slots_per_rank": 40}
    with pytest.raises(MoecastError, match="overfill"):
        place_by_load(table_of(load_LE, model.choices), cluster=load_cluster("dgx-h100", nodes=1), **more)


@pytest.fixture
def load_file(tmp_path: Path) -> Path:
    write_load_table(table_of(np.random.default_rng(1).integers(1, 100, (16, 64)), 8), tmp_path / "load.json")
    return tmp_path / "load.json"


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_place_from_a_load_table_and_export(tmp_path: Path, load_file: Path) -> None:
    out = tmp_path / "plan.json"
    where = ("--cluster", "dgx-h200", "--nodes", 1, "--model", "olmoe-1b-7b", "--slots-per-rank", 9)
    value = json.loads(invoke("place", "--load", load_file, *where, "--out", out, "--export", "sglang", "--json"))
    assert value["solver"] == "balance"
    assert 1 <= value["fullest_bound"] + 1e-9 <= value["fullest"] + 1e-9
    assert (tmp_path / "plan.sglang.json").exists()
    plan = read_plan(out)
    assert plan.made_by.trace_part == "a load table: counts only"
    text = invoke("place", "--load", load_file, "--ep", 4, "--solver", "eplb", "--out", out)
    assert "not known: counts say no co-activation" in text
    assert read_plan(out).ep == 4


def test_the_groups_of_a_load_table_are_said_on_the_command_line(tmp_path: Path) -> None:
    """The example of deepseek-ai/EPLB's README: its loads, 4 groups, 2 nodes of 4 GPUs, and its plan."""
    (tmp_path / "c.yaml").write_text(
        "name: c\npreset: dgx-h100\nnodes: 2\ndomain: {gpus_per_host: 4, nics_per_host: 4}\n"
    )
    write_load_table(table_of(np.array(EPLB_LOAD), 2), tmp_path / "load.json")
    invoke(
        "place",
        "--load",
        tmp_path / "load.json",
        "--cluster",
        tmp_path / "c.yaml",
        "--solver",
        "eplb",
        "--slots-per-rank",
        2,
        "--expert-groups",
        4,
        "--out",
        tmp_path / "p.json",
    )
    assert read_plan(tmp_path / "p.json").slots_DLGP.reshape(2, 16).tolist() == EPLB_SLOTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--expert-groups", "4"], "only eplb takes"),
        (["--replica-rule", "weights"], "one of round_robin, nearest, fixed, by_rank, lplb$"),
        (["--solver", "local-search"], "which counts do not say"),
        (["--steps", "3"], "--steps: a load table has no tokens"),
        (["--time-limit", "3s"], "--time-limit: a load table has no tokens"),
        (["--trace", "shipped"], "counts are a source of their own"),
        (["--nodes", "2"], "name the cluster"),
        (["--export", "sglang"], "needs the model"),
        (["--model", "mixtral-8x7b"], "the model mixtral-8x7b has"),
    ],
)
def test_bad_commands_fail_and_write_nothing(tmp_path: Path, load_file: Path, arguments: list[str], words: str) -> None:
    out = tmp_path / "plan.json"
    with pytest.raises(MoecastError, match=words):
        CliRunner().invoke(
            app, ["place", "--load", str(load_file), "--ep", "4", "--out", str(out), *arguments], catch_exceptions=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["load.json"]


def test_a_trace_or_a_table_must_be_given(tmp_path: Path) -> None:
    asked = ["place", "--cluster", "dgx-h200", "--out", str(tmp_path / "p.json")]
    with pytest.raises(MoecastError, match="give a recorded trace"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
    with pytest.raises(MoecastError, match="--cluster"):
        CliRunner().invoke(
            app, ["place", "--trace", "shipped", "--out", str(tmp_path / "p.json")], catch_exceptions=False
        )


class Mirrored:
    """A solver of one's own that needs no tokens: contiguous, from the last expert to the first."""

    name = "mirrored"

    def supports(self, problem: SlotProblem) -> str | None:
        return "needs experts that divide" if problem.wanted.experts % problem.wanted.ep else None

    def spread(self, problem: SlotProblem) -> Solved:
        slots_LGP = problem.empty_slots_LGP()
        experts_GP = np.arange(problem.wanted.experts)[::-1].reshape(problem.wanted.ep, -1)
        slots_LGP[..., : experts_GP.shape[1]] = experts_GP
        return Solved(slots_LGP=slots_LGP, note="turned over")


def test_a_solver_of_ones_own_takes_counts_alone() -> None:
    found = place_by_load(table_of([[5, 1, 1, 1]]), ep=2, solver=Mirrored())
    assert found.plan.slots_DLGP[0, 0].tolist() == [[3, 2], [1, 0]]
    assert (found.solver, found.plan.made_by.solver, found.note) == ("mirrored", "mirrored", "turned over")
    assert found.fullest == pytest.approx(6 / 4)
    with pytest.raises(MoecastError, match="needs experts that divide"):
        place_by_load(table_of([[5, 1, 1]]), ep=2, solver=Mirrored())


class Stray(Mirrored):
    def spread(self, problem: SlotProblem) -> Solved:
        return Solved(slots_LGP=problem.empty_slots_LGP().astype(np.int64) + 2**32 + 1)  # 0 in 32 bits


class Silent(Mirrored):
    def spread(self, problem: SlotProblem) -> Any:  # noqa: ARG002
        return None


class Forgetful(Mirrored):
    def spread(self, problem: SlotProblem) -> Solved:
        return Solved(slots_LGP=problem.empty_slots_LGP())


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (object(), "lacks name, supports, spread"),
        (Mirrored, "lacks name"),
        (Stray(), r"slots_LGP\[0\]\[0\]\[0\] = 4294967296: must be a whole number of -1 to 3"),
        (Silent(), "NoneType, not a Solved"),
        (Forgetful(), "misses expert 0"),
    ],
)
def test_what_is_no_load_solver_is_said_in_one_line(solver: Any, words: str) -> None:
    with pytest.raises(MoecastError, match=words) as caught:
        place_by_load(table_of([[5, 1, 1, 1]]), ep=2, solver=solver)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ([[2**53 - 1, 1]], "fewer than 2^53"),
        ([[2**62, 2**62]], "a count is from 0 to 9007199254740991"),
        ([[10**30, 1]], "a count is from 0 to"),
        ([[int("9" * 4000), 1]], "a number of 4000 digits"),
        ([[-1, 1]], "load = -1: a count is from 0 to"),
    ],
)
def test_tables_whose_sum_overflows_are_one_line(tmp_path: Path, load: list[list[int]], words: str) -> None:
    meta = {"model": "m", "layers": 1, "experts": 2, "choices": 1}
    (tmp_path / "table.json").write_text(json.dumps({"schema": 1, **meta, "load": load}))
    with pytest.raises(MoecastError) as caught:
        read_load_table(tmp_path / "table.json")
    line = str(caught.value)
    assert words in line
    assert "table.json" in line
    assert "\n" not in line


def test_one_wasted_replica_is_one() -> None:
    """Shares 30, 20, 20, 1: both halves of expert 0 go to the rank without expert 1, by hand."""
    found = place_by_load(table_of([[40, 30, 1]]), ep=2, slots_per_rank=2, solver="eplb")
    assert found.plan.slots_DLGP[0, 0].tolist() == [[1, 2], [0, 0]]
    assert found.note == "EPLB put 1 replica beside another of its expert; it is wasted"


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70, 1.5, True])
def test_seeds_that_no_search_can_keep(seed: Any) -> None:
    with pytest.raises(MoecastError, match=r"seed = .*: must be a whole number of 0 to 9223372036854775807"):
        place_by_load(table_of([[5, 1, 1, 1]]), ep=2, seed=seed)
