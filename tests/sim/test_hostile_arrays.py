"""No public function hands arrays to a compiled loop that it does not fit: whatever is wrong is named first."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import (
    Flows,
    PlacedModel,
    Plan,
    ReplicaTable,
    Sites,
    Step,
    StepProgram,
    Workload,
    count_traffic,
    draw_steps,
    even_all_to_all,
    fit_workload,
)
from moecast.sim.forward import ForwardPass
from moecast.sim.network import RUNGS, OpenFluid, deliver, max_min_rates
from moecast.sim.program import Compute, Exchange
from moecast.sim.serving_ranks import ServingRanks
from moecast.topology import load_cluster
from tests.hostile import bad_ids, bad_numbers
from tests.sim.network_cases import make_flows
from tests.sim.plan_cases import contiguous, random_step, small_trace, tiny_model

CLUSTER = load_cluster("dgx-h200", nodes=2)
PLAN = contiguous()
TRACE = small_trace(tokens=200)
TOKENS = np.arange(40)
HOMES = np.arange(40, dtype=np.int32) % 16
# two flows over three links, the second fed by the first
FLOWS = make_flows([3.0, 2.0], [[0, 1], [2]], destination=[1, 1], waiter=[1, 1], parents=[[], [0]], delay=0.5, tail=0.5)
CAPACITY = np.array([1.0, 2.0, 3.0])
ASKED = settings(max_examples=80, deadline=None)


@cache
def layout() -> Sites:
    return Sites.of(CLUSTER, PLAN)


@cache
def table(rule: str) -> ReplicaTable:
    weights = np.ones(PLAN.slots_DLGP.shape) * (PLAN.slots_DLGP >= 0) if rule == "weights" else None
    return ReplicaTable.of(PLAN.with_(replica_rule=rule, replica_weights_DLGP=weights), layout().domain_G)


@ASKED
@given(st.data(), st.sampled_from(["experts_TLK", "token_T", "home_T"]), st.booleans())
def test_traffic(data: st.DataObject, name: str, stay: bool) -> None:
    arrays: dict[str, Any] = {"experts_TLK": TRACE.experts_TLK, "token_T": TOKENS, "home_T": HOMES}
    arrays[name] = data.draw(bad_ids(arrays[name], any_length=name == "experts_TLK"))
    with pytest.raises((ValueError, TypeError), match=r"_TLK|_T"):
        count_traffic(PLAN, layout(), **arrays, stay=stay)


@pytest.mark.parametrize(
    ("name", "place", "value", "line"),
    [
        ("token_T", 3, 10**9, "token_T[3] = 1000000000: must be a whole number of 0 to 199"),
        ("home_T", 5, 10**8, "home_T[5] = 100000000: must be a whole number of 0 to 15"),
        ("home_T", 5, -(10**8), "home_T[5] = -100000000: must be a whole number of 0 to 15"),
        ("home_T", 0, 2**32, "home_T[0] = 4294967296: must be a whole number of 0 to 15"),  # 0 in 32 bits
        ("experts_TLK", (7, 1, 0), 60_000, "experts_TLK[7][1][0] = 60000: the plan has experts 0 to 15"),
    ],
)
def test_the_line_names_argument_place_value_and_rule(name: str, place: Any, value: int, line: str) -> None:
    arrays: dict[str, Any] = {"experts_TLK": TRACE.experts_TLK, "token_T": TOKENS, "home_T": HOMES}
    arrays[name] = arrays[name].astype(np.uint16 if name == "experts_TLK" else np.int64)
    arrays[name][place] = value
    with pytest.raises(ValueError, match=re.escape(line)):
        count_traffic(PLAN, layout(), **arrays)


def test_stages_are_refused_before_anything_is_counted() -> None:
    plan = PLAN.with_(pp=2, gpu_of_rank=tuple(range(32)))
    with pytest.raises(MoecastError, match="pp = 2"):
        count_traffic(plan, layout(), TRACE.experts_TLK, TOKENS, HOMES)
    with pytest.raises(MoecastError, match="pp = 2"):
        ServingRanks(plan, layout().domain_G)


def test_sites_of_another_plan_are_not_counted_on() -> None:
    halves = Plan.contiguous(layers=3, experts=16, choices=2, ep=PLAN.ranks // 4, groups=4)
    for plan in (halves, PLAN.with_(etp=2, gpu_of_rank=tuple(range(2 * PLAN.ranks)))):
        with pytest.raises(ValueError, match="layout: has"):
            count_traffic(plan, layout(), TRACE.experts_TLK, TOKENS, HOMES)


@ASKED
@given(st.data(), st.sampled_from(["row_of_S", "candidates_R", "below_X"]))
def test_replica_tables(data: st.DataObject, name: str) -> None:
    """A table whose arrays are changed is refused when it is made, or where it meets the plan."""
    good = table("weights")
    bad = data.draw((bad_numbers if name == "below_X" else bad_ids)(getattr(good, name)))
    with pytest.raises((ValueError, TypeError)):
        count_traffic(PLAN, layout(), TRACE.experts_TLK, TOKENS, HOMES, table=replaced(good, name, bad))


@ASKED
@given(st.integers(0, 47), st.sampled_from([32, 16, 0]), st.sampled_from([48, 99, 65_535]))
def test_replica_tables_with_places_that_are_not_there(at: int, shift: int, place: int) -> None:
    """A slot, a rank or a domain beyond the last."""
    good = table("weights")
    place_X = good.place_X.copy()
    place_X[at] = (place_X[at] & ~(65_535 << shift)) | place << shift
    with pytest.raises(ValueError, match=r"table: .*numbered from 0"):
        count_traffic(PLAN, layout(), TRACE.experts_TLK, TOKENS, HOMES, table=replaced(good, "place_X", place_X))


def replaced(good: ReplicaTable, name: str, value: Any) -> ReplicaTable:
    values = {field.name: getattr(good, field.name) for field in fields(ReplicaTable) if field.init}
    return ReplicaTable(**{**values, name: value})


def test_the_table_of_another_plan_is_refused() -> None:
    other = Plan.contiguous(layers=3, experts=16, choices=2, ep=16, slots_per_rank=4)
    fewer = Plan.contiguous(layers=2, experts=16, choices=2, ep=16)
    for plan, line in ((other.with_(slots_DLGP=other.slots_DLGP[..., ::-1].copy()), "slot"), (fewer, "rows")):
        with pytest.raises(ValueError, match=line):
            count_traffic(
                PLAN, layout(), TRACE.experts_TLK, TOKENS, HOMES, table=ReplicaTable.of(plan, layout().domain_G)
            )


@ASKED
@given(st.data(), st.sampled_from(["gpu_G", "domain_G", "group_G", "member_G", "peer_SM", "place_SM", "relay_SA"]))
def test_layouts(data: st.DataObject, name: str) -> None:
    good = layout()
    with pytest.raises((ValueError, TypeError)):
        replace(good, **{name: data.draw(bad_ids(getattr(good, name)))})


@ASKED
@given(st.data(), st.sampled_from(["token_T", "source_T", "last_T"]))
def test_steps(data: st.DataObject, name: str) -> None:
    """A Step that does not fit itself is not made; one that does not fit a trace or plan is not counted."""
    good = random_step(np.random.default_rng(0), TRACE, ranks=16, tokens=40, phase="prefill")
    values = {field.name: getattr(good, field.name) for field in fields(Step)}
    values[name] = data.draw(bad_ids(values[name].astype(np.int64)))
    placed = PlacedModel.of(CLUSTER, tiny_model(TRACE), PLAN, phase="prefill")
    with pytest.raises((ValueError, TypeError), match=f"{name}|source_T|context_T|last_T"):
        ForwardPass.of(placed, TRACE, Step(**values))


@pytest.mark.parametrize("context_T", [[1, 2, 3, -1], [1, 2, 3, 2**40], [1, 2, 3, 2**64 - 1], [1.5] * 4, [1, 2, 3]])
def test_contexts(context_T: list[float]) -> None:
    good = random_step(np.random.default_rng(0), TRACE, ranks=16, tokens=4, phase="decode")
    with pytest.raises((ValueError, TypeError), match="context_T"):
        replace(good, context_T=np.array(context_T))


def test_a_step_is_of_a_phase() -> None:
    good = random_step(np.random.default_rng(0), TRACE, ranks=16, tokens=4, phase="decode")
    with pytest.raises(ValueError, match="phase = 'training'"):
        replace(good, phase="training")


def test_a_trace_of_another_shape_is_not_counted() -> None:
    other = small_trace(tokens=200, experts=32)
    step = random_step(np.random.default_rng(0), other, ranks=16, tokens=40, phase="decode")
    with pytest.raises(ValueError, match="L, E, K"):
        ForwardPass.of(PlacedModel.of(CLUSTER, tiny_model(TRACE), PLAN, phase="decode"), other, step)


def test_counts_of_another_layout_are_not_taken() -> None:
    placed = PlacedModel.of(CLUSTER, tiny_model(TRACE), PLAN, phase="prefill")
    with pytest.raises(ValueError, match="counts_C"):
        placed.dispatch_flows.fill(np.ones(10, np.int64))


@ASKED
@given(st.data(), st.sampled_from(["experts_TLK", "home_T"]))
def test_serving_ranks(data: st.DataObject, name: str) -> None:
    arrays: dict[str, Any] = {"experts_TLK": TRACE.experts_TLK[:40], "home_T": HOMES}
    arrays[name] = data.draw(bad_ids(arrays[name]))
    with pytest.raises((ValueError, TypeError)):
        ServingRanks(PLAN, layout().domain_G).next_TLK(**arrays)


@ASKED
@given(st.data(), st.sampled_from(["offsets_F1", "link_X", "share_X", "capacity_J"]))
def test_rates(data: st.DataObject, name: str) -> None:
    arrays: dict[str, Any] = {
        "offsets_F1": FLOWS.offsets_F1, "link_X": FLOWS.link_X, "share_X": FLOWS.share_X, "capacity_J": CAPACITY,
    }  # fmt: skip
    kind = bad_numbers if name in ("share_X", "capacity_J") else bad_ids
    arrays[name] = data.draw(kind(arrays[name], any_length=name == "capacity_J"))
    with pytest.raises((ValueError, TypeError), match=r"_F1|_X|_J"):
        max_min_rates(**arrays)


def bad_flows(data: st.DataObject, *, ranks: bool = True) -> Flows:
    names = [field.name for field in fields(Flows) if ranks or "rank" not in field.name]
    name = data.draw(st.sampled_from(names))
    good = getattr(FLOWS, name)
    return replace(FLOWS, **{name: data.draw((bad_numbers if good.dtype.kind == "f" else bad_ids)(good))})


@ASKED
@given(st.data(), st.sampled_from(RUNGS))
def test_flows(data: st.DataObject, rung: Any) -> None:
    asked = program(flows=bad_flows(data))
    with pytest.raises((ValueError, TypeError), match="flows"):
        rung.run(asked)


@ASKED
@given(st.data(), st.sampled_from(["flows", "start_F", "capacity_J"]))
def test_deliveries(data: st.DataObject, name: str) -> None:
    asked: dict[str, Any] = {"flows": FLOWS, "start_F": np.zeros(2), "capacity_J": CAPACITY}
    if name == "flows":
        asked[name] = bad_flows(data, ranks=False)  # how many ranks there are only a program says
    elif name == "start_F":  # of flows that no other starts: all of it is read
        asked |= {"flows": make_flows([3.0, 2.0], [[0, 1], [2]])}
        asked[name] = data.draw(bad_numbers(asked[name], signed=True))
    else:
        asked[name] = data.draw(bad_numbers(asked[name], any_length=True))
    with pytest.raises((ValueError, TypeError)):
        deliver(**asked)


@ASKED
@given(st.data(), st.sampled_from(RUNGS), st.sampled_from(["seconds_R", "group_R", "capacity_J", "setup_s"]))
def test_programs(data: st.DataObject, rung: Any, name: str) -> None:
    good = {"seconds_R": np.ones(2), "group_R": np.zeros(2, np.int32), "capacity_J": CAPACITY, "setup_s": np.ones(1)}
    kind = bad_ids if name == "group_R" else bad_numbers
    bad = data.draw(kind(good[name], any_length=name == "capacity_J"))
    if name == "setup_s":
        bad = data.draw(st.sampled_from([np.nan, np.inf, -1.0, 1e200, "text"]))
    with pytest.raises((ValueError, TypeError)):
        rung.run(program(**{name: bad}))


@ASKED
@given(st.data(), st.sampled_from(RUNGS), st.sampled_from(["ranks_R", "after", "after_all"]))
def test_graphs(data: st.DataObject, rung: Any, name: str) -> None:
    asked = program()
    if name == "ranks_R":
        bad = data.draw(st.one_of(bad_ids(np.arange(2, dtype=np.int32)), st.just(np.zeros(2, np.int32))))
    else:
        bad = (data.draw(st.sampled_from([-1, 1, 2, 10**9])),)
    with pytest.raises((ValueError, TypeError)):
        rung.run(replace(asked, tasks=(asked.tasks[0], replace(asked.tasks[1], **{name: bad}))))


def program(**changed: Any) -> StepProgram:
    values: dict[str, Any] = {
        "flows": FLOWS,
        "seconds_R": np.ones(2),
        "group_R": np.zeros(2, np.int32),
        "capacity_J": CAPACITY,
        "setup_s": 0.5,
        **changed,
    }
    exchange = Exchange(
        kind="dispatch",
        layer=0,
        flows=values["flows"],
        setup_s=values["setup_s"],
        barrier=True,
        group_R=values["group_R"],
    )
    return StepProgram(
        tasks=(Compute(kind="expert", layer=0, seconds_R=values["seconds_R"]), exchange),
        n_ranks=2,
        capacity_J=values["capacity_J"],
        link_names_J=("a", "b", "c"),
    )


@ASKED
@given(st.data(), st.sampled_from(["flow_A", "at_A", "group_F"]))
def test_an_open_network(data: st.DataObject, name: str) -> None:
    flow_A, at_A, group_F = np.arange(2), np.zeros(2), np.zeros(2, np.int64)
    network, flows = OpenFluid(CAPACITY), make_flows([3.0, 2.0], [[0, 1], [2]])
    if name == "group_F":
        with pytest.raises((ValueError, TypeError)):
            network.add(flows, data.draw(bad_ids(group_F)), 1)
        return
    first, _ = network.add(flows, group_F, 1)
    asked = {"flow_A": flow_A, "at_A": at_A}
    asked[name] = data.draw(bad_numbers(at_A, signed=True) if name == "at_A" else bad_ids(flow_A))
    with pytest.raises((ValueError, TypeError)):
        network.start(first, **asked)


def test_a_flow_is_started_once_and_only_by_those_who_may() -> None:
    network = OpenFluid(CAPACITY)
    first, _ = network.add(FLOWS, np.zeros(2, np.int64), 1)
    for wrong in ([1], [0, 0], [0, 1], [2]):  # the fed one; the same twice; one that is not there
        with pytest.raises(ValueError, match="flow_A"):
            network.start(first, np.array(wrong), np.zeros(len(wrong)))
    network.start(first, np.array([0]), np.zeros(1))  # those that were refused left nothing behind
    for moment in (0.0, 1.0, 100.0):
        network.advance(moment)
        for again in (0, 1):
            with pytest.raises(ValueError, match="flow_A"):
                network.start(first, np.array([again]), np.zeros(1))
    np.testing.assert_allclose(network.times(first, 2)[1], deliver(FLOWS, np.zeros(2), CAPACITY))


def test_questions_about_flows_that_are_not_there() -> None:
    network = OpenFluid(CAPACITY)
    first, _ = network.add(FLOWS, np.zeros(2, np.int64), 1)
    for ask in (network.times, network.rates):
        for run in ((-1, 2), (first, 3), (first, -1), (10**9, 1)):
            with pytest.raises(ValueError, match=r"first|n ="):
                ask(*run)
    with pytest.raises(ValueError, match="until_s"):
        network.advance(float("nan"))
    with pytest.raises(ValueError, match="bottleneck_J"):
        OpenFluid(CAPACITY, bottleneck_J=np.array([0, 1, 3]))


@ASKED
@given(st.data(), st.booleans())
def test_routes(data: st.DataObject, source: bool) -> None:
    good = np.arange(8)
    bad = data.draw(bad_ids(good))
    with pytest.raises((ValueError, TypeError)):
        CLUSTER.routes(*((bad, good) if source else (good, bad)))


@pytest.mark.parametrize("ranks", [0, -1, 2**16, 10**9, 2.5, "4", True])
def test_numbers_of_ranks(ranks: Any) -> None:
    workload = Workload(phase="decode", tokens_per_rank=1, steps=1)
    with pytest.raises((ValueError, TypeError), match="ranks"):
        draw_steps(TRACE, workload, ranks=ranks)
    with pytest.raises((ValueError, TypeError), match="ranks"):
        fit_workload(TRACE, workload, ranks=ranks)
    with pytest.raises(MoecastError, match=r"ranks = .*: 2 to 16 GPUs take part"):
        even_all_to_all(CLUSTER, ranks, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2**63}, "seed = 9223372036854775808: must be at most 9223372036854775807"),
        ({"topics": {"topic-0": 1e308, "topic-1": 1e308}}, "their sum finite"),
        ({"topics": {"topic-0": 0.0}}, "at least one weight must be positive"),
    ],
)
def test_workloads(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MoecastError, match=words):
        Workload(phase="decode", tokens_per_rank=1, steps=1, **changes)


def test_a_setting_is_of_a_phase() -> None:
    with pytest.raises(ValueError, match="phase = 'training'"):
        PlacedModel.of(CLUSTER, tiny_model(TRACE), PLAN, phase="training")
