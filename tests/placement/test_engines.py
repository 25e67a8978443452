"""Engines' files: the same plan there and back, laid out as the engines want it, and bad ones in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.placement.engines import ENGINES, engine_path, find_engine, read_any, write_engine_file
from moecast.sim import ModelShape, Plan, Sites, load_model, write_plan
from moecast.sim.replicas import ReplicaTable
from moecast.topology import load_cluster


def small_model(layers: int, experts: int, dense_first: int) -> ModelShape:
    shape = load_model("deepseek-v2-lite")
    ids = tuple(range(dense_first, dense_first + layers))
    return shape.with_routing("small", layers=layers, experts=experts, choices=1, layer_ids=ids)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, ModelShape]:
    """A legal plan without empty slots, and its model."""
    ep, slots, layers = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    experts = draw(st.integers(1, ep * slots))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fill = [np.concatenate([np.arange(experts), rng.integers(0, experts, ep * slots - experts)]) for _ in range(layers)]
    table = np.stack([rng.permutation(row) for row in fill]).astype(np.int32).reshape(1, layers, ep, slots)
    model = small_model(layers, experts, draw(st.integers(0, 2)))
    plan = Plan(
        experts=experts, choices=1, layer_ids=model.moe_layer_ids, slots_DLGP=table, gpu_of_rank=tuple(range(ep))
    )
    return plan, model


@pytest.mark.parametrize("engine", [engine.name for engine in ENGINES if engine.name != "exflow"])
@given(case=plans())
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, engine: str, case: tuple[Plan, ModelShape]) -> None:
    """Invariant 10."""
    plan, model = case
    path = engine_path(tmp_path_factory.mktemp("engine") / "plan.json", engine)
    plan = plan.with_(replica_rule=find_engine(engine).replica_rule)  # the files do not say it: each engine has its own
    write_engine_file(plan, path, engine=engine, model=model)
    back = read_any(path, model=model, ep=plan.ep)
    before, after = plan.to_json(), back.to_json()
    assert before | {"made_by": None} == after | {"made_by": None}


@given(seed=st.integers(0, 9999), ep=st.integers(1, 4), share=st.integers(1, 3), layers=st.integers(1, 3))
def test_exflows_table_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, ep: int, share: int, layers: int
) -> None:
    """Invariant 10, for plans without replicas; the table does not say in what order a rank holds its experts."""
    rng, model = np.random.default_rng(seed), small_model(layers, ep * share, 1)
    table = np.stack([rng.permutation(ep * share) for _ in range(layers)]).reshape(1, layers, ep, share)
    plan = Plan(
        experts=ep * share,
        choices=1,
        layer_ids=model.moe_layer_ids,
        gpu_of_rank=tuple(range(ep)),
        slots_DLGP=np.sort(table, axis=-1).astype(np.int32),
    )
    path = engine_path(tmp_path_factory.mktemp("engine") / "plan.json", "exflow")
    write_engine_file(plan, path, engine="exflow", model=model)
    lines = path.read_text().splitlines()
    assert (lines[0], len(lines)) == ("Expert,Node", 1 + layers * ep * share)
    back = read_any(path, model=model, ep=ep)
    np.testing.assert_array_equal(back.slots_DLGP, plan.slots_DLGP)


def test_exflows_table_holds_no_replicas(tmp_path: Path) -> None:
    plan = Plan.contiguous(layers=1, experts=3, choices=1, ep=2).with_(
        slots_DLGP=np.array([[[[0, 1], [1, 2]]]], np.int32)
    )
    with pytest.raises(MoecastError, match="each expert once, and the plan has 1 replicas"):
        write_engine_file(plan, tmp_path / "t.csv", engine="exflow", model=small_model(1, 3, 0))
    assert not (tmp_path / "t.csv").exists()
    for text, said in (
        ("Expert,Node\n0,0\n0,1\n2,1\n3,1\n", "line 3 = '0,1': a number of an expert, new each time"),
        ("Expert,Node\n0,0\n1,0\n2,1\n", "each of the 1 × 4 experts of"),
        ("Expert,Node\n0,0\n1,0\n2,0\n3,1\n", "layer 0 has [3, 1]"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(MoecastError, match=re.escape(said)):
            read_any(tmp_path / "bad.csv", model=small_model(1, 4, 0), ep=2)


def test_eplbs_tensors_fit_each_other(tmp_path: Path) -> None:
    model = small_model(1, 3, 0)
    plan = Plan.contiguous(layers=1, experts=3, choices=1, ep=2).with_(
        slots_DLGP=np.array([[[[0, 1], [1, 2]]]], np.int32)
    )
    path = tmp_path / "plan.eplb.json"
    write_engine_file(plan, path, engine="eplb", model=model)
    value = json.loads(path.read_text())
    assert value == {"phy2log": [[0, 1, 1, 2]], "log2phy": [[[0, -1], [1, 2], [3, -1]]], "logcnt": [[1, 2, 1]]}
    path.write_text(json.dumps(value | {"logcnt": [[1, 1, 2]]}))
    with pytest.raises(MoecastError, match="logcnt: does not fit phy2log"):
        read_any(path, model=model, ep=2)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_the_launch_line_names_the_file(engine: Any) -> None:
    plan = Plan.contiguous(layers=1, experts=4, choices=1, ep=2, slots_per_rank=3)
    line = engine.launch(f"plan{engine.suffix}", plan)
    assert f"plan{engine.suffix}" in line
    if engine.name in ("sglang", "vllm", "vllm-ascend"):
        assert "redundant" in line
        assert "2" in line


def test_moecasts_own_plan_is_read_too(tmp_path: Path) -> None:
    plan = Plan.contiguous(layers=2, experts=8, choices=2, ep=4)
    write_plan(plan, tmp_path / "plan.json")
    assert read_any(tmp_path / "plan.json", model=small_model(2, 8, 0), ep=4).to_json() == plan.to_json()


def test_sglang_wants_a_row_for_every_hidden_layer(tmp_path: Path) -> None:
    model = small_model(2, 4, 1)  # one dense layer first
    plan = Plan.contiguous(layers=2, experts=4, choices=1, ep=2, layer_ids=model.moe_layer_ids)
    write_engine_file(plan, tmp_path / "p.json", engine="sglang", model=model)
    assert json.loads((tmp_path / "p.json").read_text()) == {"physical_to_logical_map": [[0, 1, 2, 3]] * 3}


def test_trtllm_maps_layer_ids(tmp_path: Path) -> None:
    model = small_model(2, 4, 1)
    plan = Plan.contiguous(layers=2, experts=4, choices=1, ep=2, layer_ids=model.moe_layer_ids)
    write_engine_file(plan, tmp_path / "p.yaml", engine="trtllm", model=model)
    assert yaml.safe_load((tmp_path / "p.yaml").read_text()) == {
        "num_slots": 4,
        "initial_global_assignments": {1: [0, 1, 2, 3], 2: [0, 1, 2, 3]},
        "layer_updates_per_iter": 0,
    }


def test_what_an_engine_cannot_hold_is_refused_and_not_written(tmp_path: Path) -> None:
    model = small_model(2, 4, 0)
    empty = Plan.contiguous(layers=2, experts=4, choices=1, ep=2, slots_per_rank=3)
    for engine in ENGINES:
        path = engine_path(tmp_path / "plan.json", engine.name)
        with pytest.raises(MoecastError, match="leaves 4"):
            write_engine_file(empty, path, engine=engine.name, model=model)
        assert not path.exists()


def ascend_layers(ids: list[int], *, devices: int = 2, second: list[Any] | None = None) -> list[dict[str, Any]]:
    held = [[0, 1], [2, 3] if second is None else second, [0, 1]][:devices]
    device_list = [{"device_id": device, "device_expert": experts} for device, experts in enumerate(held)]
    return [{"layer_id": layer, "device_count": devices, "device_list": device_list} for layer in ids]


def test_vllm_lists_slots_for_each_moe_layer_or_once_for_all(tmp_path: Path) -> None:
    model = small_model(2, 4, 1)
    (tmp_path / "p.json").write_text("[0, 1, 2, 3, 0, 1]")
    plan = read_any(tmp_path / "p.json", model=model, ep=2)
    assert plan.slots_DLGP[0].tolist() == [[[0, 1, 2], [3, 0, 1]]] * 2
    write_engine_file(plan, tmp_path / "o.json", engine="vllm", model=model)
    assert json.loads((tmp_path / "o.json").read_text()) == [[0, 1, 2, 3, 0, 1]] * 2


def test_vllm_ascend_layers_and_devices_come_in_any_order(tmp_path: Path) -> None:
    model = small_model(2, 4, 1)
    layers = ascend_layers([0, 1])
    for layer in layers:
        layer["device_list"] = layer["device_list"][::-1]
    (tmp_path / "p.json").write_text(json.dumps({"moe_layer_count": 2, "layer_list": layers[::-1]}))
    plan = read_any(tmp_path / "p.json", model=model, ep=2)
    assert plan.slots_DLGP[0].tolist() == [[[0, 1], [2, 3]]] * 2
    write_engine_file(plan, tmp_path / "o.json", engine="vllm-ascend", model=model)
    assert json.loads((tmp_path / "o.json").read_text()) == {"moe_layer_count": 2, "layer_list": ascend_layers([0, 1])}


def test_a_file_of_sglang_keeps_tokens_in_a_node_that_holds_all_experts(tmp_path: Path) -> None:
    """Its static dispatch gives each rank one replica for good, its own GPU's or its own node's first."""
    model = small_model(2, 8, 0)
    (tmp_path / "p.json").write_text(json.dumps({"physical_to_logical_map": [list(range(8)) * 2] * 2}))
    plan = read_any(tmp_path / "p.json", model=model, ep=4)
    assert plan.replica_rule == "fixed"
    domain_G = np.array([0, 0, 1, 1], np.int32)
    for source, first in enumerate([0, 0, 2, 2]):
        table = ReplicaTable.of(plan, domain_G)
        begin = int(table.row_of_S[source])
        assert ((table.candidates_R[begin : begin + 16] & 65535) == 1).all()
        at_X = table.candidates_R[begin : begin + 16] >> 16
        ranks = (table.place_X[at_X] >> 16) & 65535
        assert ranks.tolist() == [first] * 4 + [first + 1] * 4 + [first] * 4 + [first + 1] * 4


def ranks_taken(plan: Plan, **where: np.ndarray) -> list[list[int]]:
    """For each source rank, the rank that serves its choices of each expert, where that is one for good."""
    table = ReplicaTable.of(plan, **where)
    rows = [table.candidates_R[first : first + plan.experts] for first in table.row_of_S]
    assert all(((row & 65535) == 1).all() for row in rows)
    return [((table.place_X[row >> 16] >> 16) & 65535).tolist() for row in rows]


def one_layer(slots_GP: list[list[int]], rule: str) -> Plan:
    slots = np.array(slots_GP, np.int32)[None, None]
    return Plan(
        experts=int(slots.max()) + 1,
        choices=1,
        layer_ids=(0,),
        slots_DLGP=slots,
        replica_rule=rule,
        gpu_of_rank=tuple(range(len(slots_GP))),
    )


def test_sglangs_node_is_the_host_also_inside_a_larger_domain() -> None:
    """An NVL72's hosts have four GPUs each: four of them here, in one domain.

    Expert 0 stands on ranks 1 and 6, so hosts 0 (ranks 0 to 3) and 1 (ranks 4 to 7) keep to their own; hosts 2 and 3
    are dealt, four and four. Expert 1 stands on ranks 8 and 9, both of host 2: no host narrows that, so all but the two
    are dealt, seven and seven.
    """
    slots = [[expert] for expert in [2, 0, 3, 4, 5, 6, 0, 7, 1, 1, 8, 9, 10, 11, 12, 13]]
    plan, hosts = one_layer(slots, "fixed"), np.arange(16, dtype=np.int32) // 4
    taken = ranks_taken(plan, domain_G=np.zeros(16, np.int32), node_G=hosts)
    first, second = ([row[expert] for row in taken] for expert in (0, 1))
    assert first[:8] == [1] * 4 + [6] * 4
    assert sorted(first[8:]) == [1] * 4 + [6] * 4
    assert second[8:10] == [8, 9]
    assert sorted(second[:8] + second[10:]) == [8] * 7 + [9] * 7
    by_domain = ranks_taken(plan, domain_G=np.zeros(16, np.int32))  # hosts not told apart: only two keep to their own
    assert sorted(row[0] for row in by_domain) == [1] * 8 + [6] * 8
    assert [row[0] for row in by_domain] != first


def test_a_cluster_says_which_hosts_ranks_stand_on() -> None:
    cluster = load_cluster("gb200-nvl72")
    plan = one_layer([[rank % 36] for rank in range(72)], "fixed")
    layout = Sites.of(cluster, plan)
    assert layout.domain_G.tolist() == [0] * 72
    assert layout.node_G.tolist() == [rank // 4 for rank in range(72)]
    taken = ranks_taken(plan, domain_G=layout.domain_G, node_G=layout.node_G)
    for source, row in enumerate(taken):
        for expert, rank in enumerate(row):
            held = [expert, expert + 36]
            near = [r for r in held if r == source] or [r for r in held if r // 4 == source // 4]
            assert rank in (near or held)


def test_a_file_of_vllm_ascend_gives_each_rank_one_replica_by_its_number(tmp_path: Path) -> None:
    """Expert 0 on three of four ranks: rank r takes the (r mod 3)-th of them, though ranks 1 and 3 hold it themselves.

    Expert 1 stands twice on rank 2, whose map keeps the last; experts of one slot are no choice.
    """
    model = small_model(1, 4, 0)
    devices = [[0, 2], [0, 3], [1, 1], [0, 2]]
    device_list = [{"device_id": i, "device_expert": experts} for i, experts in enumerate(devices)]
    file = {"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 4, "device_list": device_list}]}
    (tmp_path / "p.json").write_text(json.dumps(file))
    plan = read_any(tmp_path / "p.json", model=model, ep=4)
    assert plan.replica_rule == "by_rank"
    taken = ranks_taken(plan, domain_G=np.zeros(4, np.int32))
    assert [row[0] for row in taken] == [0, 1, 3, 0]
    assert [row[2] for row in taken] == [0, 3, 0, 3]
    assert [row[1] for row in taken] == [2] * 4
    table = ReplicaTable.of(plan, np.zeros(4, np.int32))
    slots = {int(table.place_X[table.candidates_R[row + 1] >> 16] >> 32) for row in table.row_of_S}
    assert slots == {5}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (["slots", "physical_to_logical_map"], ["physical_to_logical_map (sglang)", "slots (moecast)"]),
        (["layer_list", "physical_to_logical_map"], ["physical_to_logical_map (sglang)", "layer_list (vllm-ascend)"]),
        (["initial_global_assignments", "slots"], ["initial_global_assignments (trtllm)", "slots (moecast)"]),
    ],
)
def test_a_file_of_two_formats_is_refused(tmp_path: Path, fields: list[str], words: list[str]) -> None:
    (tmp_path / "two.json").write_text(json.dumps({"schema": 1, **dict.fromkeys(fields)}))
    with pytest.raises(MoecastError) as caught:
        read_any(tmp_path / "two.json", model=small_model(2, 4, 0), ep=2)
    for word in (*words, "two.json", "two formats"):
        assert word in str(caught.value)


def test_sources_without_a_replica_near_them_share_evenly() -> None:
    """One domain, expert 0 on ranks 0 and 1 of eight: the six others take them three and three."""
    slots = np.array([[0], [0], *([[expert] for expert in range(1, 7)])], np.int32).reshape(1, 1, 8, 1)
    plan = Plan(
        experts=7, choices=1, layer_ids=(0,), slots_DLGP=slots, gpu_of_rank=tuple(range(8)), replica_rule="fixed"
    )
    table = ReplicaTable.of(plan, np.zeros(8, np.int32))
    ranks = [(int(table.place_X[table.candidates_R[row] >> 16]) >> 16) & 65535 for row in table.row_of_S]
    assert ranks[:2] == [0, 1]
    assert sorted(ranks[2:]) == [0] * 3 + [1] * 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"physical_to_logical_map": [[0, 1, 2, 3]]}, "2 hidden layers"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2]]}, "3 slots"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 9]]}, "experts 0 to 3"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 2]]}, "misses expert 3"),
        ({"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, "3"]]}, "whole numbers"),
        ({"physical_to_logical_map": "all"}, "2 hidden layers"),
        ({"physical_to_logical_map": [[0, 1, 2, 3, 0]] * 2}, "divide"),
        ({"initial_global_assignments": {"0": [0, 1, 2, 3]}, "num_slots": 4}, r"\[1\]"),
        ({"initial_global_assignments": {"0": [0, 1, 2, 3], "1": [3, 2, 1, 0]}, "num_slots": 6}, "num_slots"),
        ({"initial_global_assignments": [1, 2]}, "layer ids"),
        ({"something": 1}, "not a moecast plan"),
        ("all", "one object"),
        ([], "2 MoE layers|one for each of the 2"),
        ([[0, 1, 2, 3]], "one for each of the 2"),
        ([[0, 1, 2, 3], 7], "whole numbers"),
        ([1, 2, 3, 1], "misses expert 0"),
        ({"layer_list": []}, "a list of 2"),
        ({"layer_list": ascend_layers([0, 0])}, "each of 0 to 1 once"),
        ({"layer_list": ascend_layers([0, 1]), "moe_layer_count": 3}, "moe_layer_count"),
        ({"layer_list": ascend_layers([0, 1], second=[1, 2, 3])}, "equally long"),
        ({"layer_list": ascend_layers([0, 1], devices=3)}, "set --ep"),
        ({"layer_list": ascend_layers([0, 1], second=[1, "3"])}, "whole numbers"),
    ],
)
def test_bad_files(tmp_path: Path, value: Any, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value))
    with pytest.raises(MoecastError, match=words) as caught:
        read_any(path, model=small_model(2, 4, 0), ep=2)
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)
