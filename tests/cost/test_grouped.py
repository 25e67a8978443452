"""Routed experts: limits, monotony, floors, the loads behind measured times, and how far off measured rows are."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.cost.gpus import GPUS, H20
from moecast.sim.cost.grouped import fastest_seconds, grouped_floor_seconds, grouped_seconds
from moecast.sim.cost.grouped_parameters import (
    LOW_LATENCY,
    WHOLE,
    GroupedParameters,
    find_parameters,
    load_parameters,
)
from moecast.sim.cost.shapes import ExpertBlock
from moecast.sim.cost.tables.moe import grouped_loads, read_moe
from moecast.validate.fitting.grouped import usual_kernels
from moecast.validate.fitting.grouped_errors import compare
from moecast.validate.fitting.moe_loads import loads_of_rank
from tests.conftest import ROOT

TABLES = Path(os.environ.get("MOECAST_SHARED", ROOT.parent / "shared")) / "measured" / "kernels"
H200 = GPUS["h200_sxm"]
PLAIN = GroupedParameters(
    tiles="best",
    launch_s=1e-5,
    peak_part=0.7,
    memory_part=0.8,
    large_part=0.6,
    operand_Bps=130e9,
    wave_s=1e-7,
    softness=3.0,
    row_traffic=1.0,
    seen_traffic=0.1,
    slot_s=1e-8,
)
V3 = ExpertBlock(width=7168, inner=2048, ups=2, weight_type="fp8", choices=8, experts=256)
loads = st.lists(st.integers(0, 3000), min_size=1, max_size=32)


def fitted() -> list[tuple[str, str, str]]:
    return sorted(load_parameters())


def type_of(kind: str) -> str:
    """The element type of an entry's kind, which may name one of an engine's further kernels."""
    return kind.removesuffix(LOW_LATENCY).removesuffix(WHOLE)


@settings(deadline=None, max_examples=200)
@given(load=loads, place=st.integers(0, 31), more=st.integers(1, 2000), key=st.sampled_from(fitted()), data=st.data())
def test_more_rows_never_take_less_time(
    load: list[int], place: int, more: int, key: tuple[str, str, str], data: st.DataObject
) -> None:
    entry, grown = load_parameters()[key], list(load)
    grown[place % len(load)] += more
    seen = data.draw(st.integers(0, 10_000))
    pair = np.array([load, grown])
    kind = type_of(key[2])
    seconds = grouped_seconds(entry.parameters, GPUS[key[0]], V3, pair, element_type=kind, seen_G=pair.sum(-1) + seen)
    assert seconds[1] >= seconds[0] * (1 - 1e-12)
    assert seconds[0] >= entry.parameters.launch_s


@settings(deadline=None, max_examples=200)
@given(load=loads, key=st.sampled_from(fitted()))
def test_the_floor_is_below_and_convex(load: list[int], key: tuple[str, str, str]) -> None:
    gpu, kind = GPUS[key[0]], type_of(key[2])
    taken = [
        [entry.parameters for entry in find_parameters(gpu, engine=key[1], element_type=kind, whole=whole)]
        for whole in (False, True)
    ]
    kernels = [*taken[0], *taken[1]]  # a rank may come to have all experts, so a floor is one of both
    rows, hits = float(sum(load)), float(np.count_nonzero(load))

    def floor(rows: float, hits: float) -> float:
        return float(grouped_floor_seconds(kernels, gpu, V3, rows, hits, element_type=kind))

    for each in taken:
        [seconds] = fastest_seconds(each, gpu, V3, np.array([load]), element_type=kind)
        assert floor(rows, hits) <= seconds * (1 + 1e-12)
    assert floor(rows / 2, hits / 2) <= (floor(rows, hits) + floor(0, 0)) / 2 * (1 + 1e-12)
    assert floor(rows, hits) >= floor(rows / 2, hits / 2)


def test_much_work_reaches_the_part_of_the_peak_and_little_reads_its_weights() -> None:
    much = np.full((1, 8), 2**17)
    [seconds] = grouped_seconds(PLAIN, H200, V3, much, element_type="fp8_block")
    flop = 2.0 * much.sum() * 3 * 7168 * 2048
    assert 0.55 * 0.7 < flop / seconds / 1978.9e12 < 0.7
    one = grouped_seconds(PLAIN, H200, V3, np.array([[1] + [0] * 31, [1] * 32]), element_type="fp8_block")
    weights = 31 * 3 * 7168 * 2048 * (1 + 0) / (4.8e12 * 0.8)
    assert one[1] - one[0] == pytest.approx(weights, rel=0.1)


def test_skew_costs_when_arithmetic_binds_and_nothing_when_weights_do() -> None:
    even, skewed = np.full(16, 256), np.array([16] * 12 + [976] * 4)
    assert even.sum() == skewed.sum()
    whole = grouped_seconds(PLAIN, H200, V3, np.array([even * 8, skewed * 8]), element_type="fp8_block")
    assert whole[1] == pytest.approx(whole[0], rel=0.1)  # tiles are whole either way: the rank has as many rows
    ranks = grouped_seconds(PLAIN, H200, V3, np.array([even, even * 2]), element_type="fp8_block")
    assert ranks[1] > 1.5 * ranks[0]  # a rank with twice the rows is what skew costs


def test_tokens_that_are_only_shown_cost_what_the_kernel_does_for_them() -> None:
    load = np.full((1, 8), 64)
    alone, shown = (
        grouped_seconds(replace(PLAIN, seen_traffic=1.0), H200, V3, load, element_type="fp8_block", seen_G=seen)[0]
        for seen in (None, load.sum(-1) * 8)
    )
    values = 2 * (2 * 7168 + 3 * 2048)
    assert shown - alone == pytest.approx(7 * load.sum() * values / 4.8e12)


@pytest.mark.parametrize("load", [np.array([[0.5, 1.0]]), np.array([["a"]]), np.int64(3)])
def test_loads_that_are_no_whole_numbers_are_refused(load: object) -> None:
    with pytest.raises(ValueError, match="load_GP: whole numbers"):
        grouped_seconds(PLAIN, H200, V3, load, element_type="bf16")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tiles": "round"}, "tiles = 'round': best, default or padded"),
        ({"softness": 0.5}, "softness = 0.5 must be at least 1"),
        ({"launch_s": -1.0}, "launch_s = -1.0 must be at least 0"),
        ({"operand_Bps": 0.0}, "operand_Bps = 0.0 must be positive"),
    ],
)
def test_parameters_check_themselves(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(PLAIN, **change)  # type: ignore[arg-type]


def test_what_has_no_table_takes_the_nearest_and_says_so() -> None:
    assert find_parameters(H20, engine="sglang", element_type="fp8_block")[0].transferred == "GPU h200_sxm"
    assert "neutral" in find_parameters(H200, engine="megatron", element_type="bf16")[0].transferred
    with pytest.raises(ValueError, match="element type 'fp7'"):
        find_parameters(H200, engine="vllm", element_type="fp7")


def test_ranks_that_have_all_experts_take_the_kernel_of_those() -> None:
    [own] = find_parameters(H200, engine="vllm", element_type="fp8_block", whole=True)
    [usual] = find_parameters(H200, engine="vllm", element_type="fp8_block")
    assert own.parameters != usual.parameters
    assert own.kind == "fp8_block" + WHOLE
    assert find_parameters(H200, engine="trtllm", element_type="bf16", whole=True) == find_parameters(
        H200, engine="trtllm", element_type="bf16"
    )


@settings(deadline=None, max_examples=50)
@given(
    tokens=st.integers(1, 4096), choices=st.integers(1, 8), law=st.sampled_from(["balanced", "power_law_1.2"]),
    ep=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_loads_are_whole_and_the_fullest_rank_has_at_least_its_share(
    tokens: int, choices: int, law: str, ep: int
) -> None:
    load_P = loads_of_rank(
        tokens=tokens, choices=choices, experts=32, parts=ep, law=law, random=np.random.default_rng(0)
    )
    assert load_P.shape == (32 // ep,)
    assert load_P.min() >= 0
    assert load_P.max() <= tokens
    assert load_P.sum() >= tokens * choices // ep
    if ep == 1:
        assert load_P.sum() == tokens * choices
    if law == "balanced":
        assert load_P.max() - load_P.min() <= 1


@pytest.mark.parametrize("tokens", [1, 4, 28, 32, 100])
def test_a_router_by_groups_takes_half_of_even_experts_and_four_of_the_first_group_more(tokens: int) -> None:
    whole_P, group_P = (grouped_loads(tokens=tokens, experts=256, parts=parts) for parts in (1, 8))
    assert whole_P.sum() == 8 * tokens
    assert (whole_P > 0).sum() == min(4 * tokens + 4, 128)
    assert (group_P > 0).sum() == min(tokens + 4, 32)
    assert group_P.max() == whole_P.max() == tokens
    assert not whole_P[128:].any()


@pytest.mark.parametrize(
    ("kernel", "width", "grouped"),
    [("sglang_flashinfer_trtllm_moe", 7168, True), ("sglang_flashinfer_trtllm_moe", 6144, False),
     ("moe_torch_flow_min_latency", 6144, True), ("deepgemm", 7168, False)],
)  # fmt: skip
def test_rows_of_kernels_that_route_by_groups_are_told(tmp_path: Path, kernel: str, width: int, grouped: bool) -> None:
    write_table(tmp_path, kernel_source=kernel, hidden_size=width, topk=8, num_experts=256, distribution="power_law_1")
    [table] = read_moe(tmp_path)
    assert table.grouped_R.tolist() == [grouped]
    assert table.known_R.tolist() == [not grouped]


def write_table(root: Path, **change: object) -> None:
    row = {
        "kernel_source": "k", "moe_dtype": "bfloat16", "num_tokens": 4, "hidden_size": 64, "inter_size": 32, "topk": 2,
        "num_experts": 8, "moe_tp_size": 2, "moe_ep_size": 2, "distribution": "balanced", "latency": 0.5,
    } | change  # fmt: skip
    path = root / "h200_sxm" / "moe" / "vllm" / "1.0" / "moe_perf.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({key: [value] for key, value in row.items()}), path)


def test_a_table_is_read_in_seconds_and_per_rank(tmp_path: Path) -> None:
    write_table(tmp_path)
    [table] = read_moe(tmp_path)
    assert (table.engine, table.element_type, table.inner_R[0], table.seconds_R[0]) == ("vllm", "bf16", 16, 0.5e-3)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"moe_dtype": "fp7"}, "moe_dtype 'fp7'"), ({"latency": 0.0}, "latency"), ({"topk": 0}, "choices_R")],
)
def test_a_bad_table_is_refused_by_name(tmp_path: Path, change: dict[str, object], named: str) -> None:
    write_table(tmp_path, **change)
    with pytest.raises(MoecastError, match=named) as caught:
        list(read_moe(tmp_path))
    assert "moe_perf.parquet" in str(caught.value)


@pytest.mark.skipif(not TABLES.is_dir(), reason="measured kernel tables are not there (MOECAST_SHARED)")
def test_unseen_rows_are_near_and_the_roofline_is_not() -> None:
    usual = usual_kernels([table for table in read_moe(TABLES) if table.gpu == "h200_sxm"])
    [table] = [t for t in usual if (t.engine, t.element_type) == ("trtllm", "fp8_block")]
    roofline, model, other = compare(table)
    assert model.median < 0.09
    assert model.p90 < 0.25
    assert abs(model.bias) < 0.05
    assert other.median < 0.12
    assert roofline.median > 2 * model.median
