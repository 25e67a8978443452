"""Kernels that move memory, quantisation and absorbed MLA's batched products."""

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
from moecast.sim.cost import gemm, mla_bmm, quantise
from moecast.sim.cost.gpus import A100, GPUS, L2_BYTES
from moecast.sim.cost.memory import moving_seconds
from moecast.sim.cost.tables import mla_bmm as bmm_tables
from moecast.sim.cost.tables import quantise as quantise_tables
from moecast.validate.fitting.mla_bmm import draw_spread
from moecast.validate.fitting.small_errors import compare_mla_bmm, compare_quantise
from tests.conftest import ROOT

TABLES = Path(os.environ.get("MOECAST_SHARED", ROOT.parent / "shared")) / "measured" / "kernels"
H200 = GPUS["h200_sxm"]
sizes = st.integers(1, 40_000)


@given(moved=st.floats(0, 1e12), more=st.floats(0, 1e9), ratio=st.floats(1, 6))
def test_more_bytes_never_take_less_time(moved: float, more: float, ratio: float) -> None:
    now, then = moving_seconds([moved, moved + more], memory_Bps=4e12, cache_ratio=ratio, l2_bytes=50e6)
    assert now <= then * (1 + 1e-12)
    assert moved / 4e12 / ratio <= now * (1 + 1e-12)


@settings(deadline=None)
@given(m=sizes, k=sizes, more=st.integers(1, 5000), key=st.sampled_from(sorted(quantise.load_parameters())))
def test_more_to_quantise_never_takes_less_time(m: int, k: int, more: int, key: tuple[str, str, str]) -> None:
    parameters = quantise.load_parameters()[key].parameters
    seconds = quantise.quantise_seconds(parameters, GPUS[key[0]], [m, m + more, m], [k, k, k + more])
    assert (seconds >= seconds[0]).all()
    assert seconds[0] >= parameters.launch_s


@settings(deadline=None)
@given(
    size=st.tuples(sizes, st.integers(1, 256), st.sampled_from([(128, 512), (512, 128)])),
    more=st.integers(1, 5000),
    key=st.sampled_from(sorted(mla_bmm.load_parameters())),
)
def test_more_heads_or_tokens_never_take_less_time(
    size: tuple[int, int, tuple[int, int]], more: int, key: tuple[str, str, str]
) -> None:
    (tokens, heads, (inner, outer)), hardware = size, GPUS[key[0]]
    parameters = mla_bmm.load_parameters()[key].parameters
    tiles = gemm.find_parameters(hardware, engine=key[1], element_type="bf16").parameters
    grown = ([tokens, tokens + more, tokens], [heads, heads, heads + more])
    seconds = mla_bmm.mla_bmm_seconds(parameters, tiles, hardware, *grown, inner=inner, outer=outer)
    assert (seconds >= seconds[0] * (1 - 1e-12)).all()
    assert seconds[0] >= parameters.launch_s


def test_nothing_costs_nothing() -> None:
    entry = quantise.find_parameters(H200, engine="vllm")
    assert quantise.quantise_seconds(entry.parameters, H200, [0, 5], [7, 0]).tolist() == [0, 0]
    assert quantise.elementwise_seconds(H200, 0, row_bytes=100) == 0
    parameters = mla_bmm.find_parameters(H200, engine="vllm", element_type="bf16").parameters
    tiles = gemm.find_parameters(H200, engine="vllm", element_type="bf16").parameters
    assert mla_bmm.mla_bmm_seconds(parameters, tiles, H200, 0, 128, inner=128, outer=512) == 0


def test_much_reaches_the_memory_and_little_the_launch() -> None:
    parameters = quantise.find_parameters(H200, engine="trtllm").parameters
    much = quantise.quantise_seconds(parameters, H200, 2**18, 2**16)
    assert 2**34 * 3 / much == pytest.approx(H200.memory_Bps * parameters.memory_part, rel=0.01)
    assert quantise.quantise_seconds(parameters, H200, 1, 128) == pytest.approx(parameters.launch_s, rel=0.05)
    parameters = quantise.find_parameters(H200).parameters
    moved = quantise.elementwise_seconds(H200, 2**18, row_bytes=2.0**16, kernels=2)
    assert 2**34 / (moved - 2 * parameters.launch_s) == pytest.approx(H200.memory_Bps * parameters.memory_part)


def test_what_stays_in_the_cache_moves_faster() -> None:
    small, large = moving_seconds([10e6, 100e6], memory_Bps=4e12, cache_ratio=2.0, l2_bytes=L2_BYTES["h200_sxm"])
    assert large == pytest.approx(20 * small)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_sizes_that_are_none_are_refused(bad: float) -> None:
    parameters = quantise.find_parameters(H200).parameters
    with pytest.raises(ValueError, match="width must be finite"):
        quantise.quantise_seconds(parameters, H200, 1, bad)
    bmm = mla_bmm.find_parameters(H200, engine="vllm", element_type="bf16").parameters
    tiles = gemm.find_parameters(H200, engine="vllm", element_type="bf16").parameters
    with pytest.raises(ValueError, match="must be finite"):
        mla_bmm.mla_bmm_seconds(bmm, tiles, H200, bad, 1, inner=128, outer=512)


def test_parameters_check_themselves() -> None:
    with pytest.raises(ValueError, match=r"cache_ratio = 0\.5 must be at least 1"):
        replace(quantise.find_parameters(H200).parameters, cache_ratio=0.5)
    with pytest.raises(ValueError, match=r"memory_part = -1 must be positive"):
        replace(quantise.find_parameters(H200).parameters, memory_part=-1)
    with pytest.raises(ValueError, match="multiplies = 'fp4'"):
        replace(mla_bmm.find_parameters(H200, engine="vllm", element_type="bf16").parameters, multiplies="fp4")
    with pytest.raises(ValueError, match="row_s = inf"):
        replace(quantise.find_parameters(H200).parameters, row_s=float("inf"))


def test_who_has_no_tables_takes_relatives_parameters() -> None:
    assert quantise.find_parameters(A100, engine="trtllm").transferred == "GPU h100_sxm"
    assert quantise.find_parameters(H200, engine="megatron").transferred == "engine neutral"
    found = mla_bmm.find_parameters(GPUS["gb300"], engine="vllm", element_type="bf16")
    assert (found.gpu, found.transferred) == ("b300_sxm", "GPU b300_sxm")
    with pytest.raises(ValueError, match="kind 'fp7'"):
        quantise.find_parameters(H200, kind="fp7")
    with pytest.raises(ValueError, match="element type 'fp7'"):
        mla_bmm.find_parameters(H200, engine="vllm", element_type="fp7")


def write(root: Path, family: str, columns: dict[str, list[object]]) -> None:
    path = root / "h200_sxm" / family / "vllm" / "0.24.0" / "rows.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_quantisation_tables_are_read(tmp_path: Path) -> None:
    columns = {"op_name": ["scale_matrix"] * 4, "kernel_source": ["one"] * 4, "m": [4, 1, 4, 1], "k": [8, 8, 16, 16]}
    write(tmp_path, "quantize", columns | {"latency": [0.004, 0.002, 0.008, 0.0]})
    (table,) = quantise_tables.read_quantise(tmp_path)
    assert (table.kind, table.left_out, table.m_R.tolist()) == ("scale", 1, [1, 4, 4])
    between, covered = quantise_tables.interpolate(table, [2, 2], [8, 16])
    assert covered.tolist() == [True, False]
    assert between[0] == pytest.approx(np.sqrt(0.002 * 0.004) * 1e-3)
    write(tmp_path, "quantize", columns | {"latency": [0.1] * 4, "op_name": ["other"] * 4})
    with pytest.raises(MoecastError, match="op_name 'other'"):
        list(quantise_tables.read_quantise(tmp_path))


def test_batched_product_tables_are_read_and_repeated_rows_averaged(tmp_path: Path) -> None:
    columns = {"op_name": ["mla_gen_pre"] * 3, "bmm_dtype": ["bfloat16"] * 3, "kernel_source": ["one"] * 3}
    columns |= {"num_tokens": [1, 1, 4], "num_heads": [8, 8, 8], "latency": [0.002, 0.004, 0.006]}
    write(tmp_path, "mla_bmm", columns)
    (table,) = bmm_tables.read_mla_bmm(tmp_path)
    np.testing.assert_allclose(table.seconds_R, [0.003e-3, 0.006e-3])
    assert (table.inner_R.tolist(), table.outer_R.tolist()) == ([128, 128], [512, 512])
    at, covered = bmm_tables.interpolate(table, [1, 2, 5], 8, inner=128, outer=512)
    assert covered.tolist() == [True, True, False]
    assert at[0] == pytest.approx(0.003e-3)
    write(tmp_path, "mla_bmm", columns | {"bmm_dtype": ["fp7"] * 3})
    with pytest.raises(MoecastError, match="bmm_dtype 'fp7'"):
        list(bmm_tables.read_mla_bmm(tmp_path))


def test_measured_rows_that_nobody_fitted_are_met() -> None:
    if not TABLES.is_dir():
        pytest.skip(f"no shared data at {TABLES} (MOECAST_SHARED)")
    for table in bmm_tables.read_mla_bmm(TABLES):
        assert draw_spread(table, seed=0).sum() <= 0.02 * table.seconds_R.size
        _, model, _ = compare_mla_bmm(table)
        assert model.median < 0.13, table.gpu
        assert model.p90 < 0.55, table.gpu
    for rows in quantise_tables.read_quantise(TABLES):
        _, model, _ = compare_quantise(rows)
        assert not model.rows or model.median < 0.16, rows.gpu
        assert rows.kind == "find_scale" or model.p90 < 0.25, rows.gpu
