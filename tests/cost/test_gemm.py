"""Dense matrix products: limits, monotony, parameters that check themselves, and how far off measured rows are."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.cost.entries import NEUTRAL
from moecast.sim.cost.gemm import TYPES, GemmParameters, find_parameters, gemm_seconds, load_parameters
from moecast.sim.cost.gpus import A100, GPUS, H20, gpu_key, nearest
from moecast.sim.cost.tables.folder import version_key
from moecast.sim.cost.tables.gemm import interpolate, read_gemm
from moecast.validate.fitting.draw import draw_rows
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.gemm import kernel_rows
from tests.conftest import ROOT

TABLES = Path(os.environ.get("MOECAST_SHARED", ROOT.parent / "shared")) / "measured" / "kernels"
H200 = GPUS["h200_sxm"]
PLAIN = GemmParameters(
    tiles="split",
    launch_s=2e-6,
    peak_part=0.8,
    memory_part=0.9,
    operand_Bps=130e9,
    output_Bps=80e9,
    inner_s=1e-9,
    wave_s=1e-7,
    split_s=2e-6,
    partial_Bps=80e9,
    softness=3.0,
    write_weight=1.2,
)
sizes = st.integers(1, 70_000)


def fitted() -> list[tuple[str, str, str]]:
    return sorted(load_parameters())


@settings(deadline=None)
@given(m=sizes, n=sizes, k=sizes, more=st.integers(1, 5000), key=st.sampled_from(fitted()))
def test_more_work_never_takes_less_time(m: int, n: int, k: int, more: int, key: tuple[str, str, str]) -> None:
    entry = load_parameters()[key]
    m_R, n_R, k_R = np.array([(m, n, k), (m + more, n, k), (m, n + more, k), (m, n, k + more), (m, n, k)], float).T
    batch_R = np.array([1, 1, 1, 1, 1 + more])
    seconds = gemm_seconds(entry.parameters, GPUS[key[0]], m_R, n_R, k_R, batch=batch_R, element_type=key[2])
    assert (seconds[1:] >= seconds[0] * (1 - 1e-12)).all()
    assert seconds[0] >= entry.parameters.launch_s


@pytest.mark.parametrize("key", fitted(), ids="-".join)
def test_much_work_reaches_the_fitted_part_of_the_peak_and_little_the_launch(key: tuple[str, str, str]) -> None:
    gpu, _, element_type = key
    parameters, peaks = load_parameters()[key].parameters, GPUS[gpu].peak_flop_per_s
    much = gemm_seconds(parameters, GPUS[gpu], 2**17, 2**16, 2**16, element_type=element_type)
    kind = TYPES[element_type]
    peak = kind.rate_factor * next(peaks[rate] for rate in kind.rates if rate in peaks)
    assert 0.4 * parameters.peak_part < 2.0**50 / much / peak <= parameters.peak_part
    little = gemm_seconds(parameters, GPUS[gpu], 1, 16, 16, element_type=element_type)
    assert parameters.launch_s <= little < parameters.launch_s + 8e-6


def test_nothing_costs_nothing_and_shapes_broadcast() -> None:
    seconds = gemm_seconds(PLAIN, H200, np.array([[0], [5]]), np.array([64, 0, 32]), 128, element_type="bf16")
    assert seconds.shape == (2, 3)
    assert (seconds[0] == 0).all()
    assert seconds[1, 1] == 0
    assert gemm_seconds(PLAIN, H200, np.zeros(0), 1, 1, element_type="bf16").shape == (0,)


def test_fewer_sms_take_longer_only_where_tiles_bind() -> None:
    whole, part = (gemm_seconds(PLAIN, H200, 8192, 8192, 8192, element_type="bf16", sms=sms) for sms in (None, 66))
    assert 1.8 < part / whole < 2.1
    whole, part = (gemm_seconds(PLAIN, H200, 1, 8192, 8192, element_type="bf16", sms=sms) for sms in (None, 100))
    assert part / whole < 1.1


def test_a_batch_of_one_is_one_and_much_of_it_fills_the_gpu() -> None:
    one, same = (gemm_seconds(PLAIN, H200, 128, 512, 512, element_type="bf16", batch=b) for b in (1, [1]))
    assert same[0] == one
    many = gemm_seconds(PLAIN, H200, 128, 512, 512, element_type="bf16", batch=1000)
    assert 10 * one < many < 1000 * one


def test_narrower_types_are_faster_where_weights_or_products_bind() -> None:
    for m in (1, 8192):
        bf16, fp8 = (gemm_seconds(PLAIN, H200, m, 8192, 8192, element_type=kind) for kind in ("bf16", "fp8"))
        assert fp8 < 0.6 * bf16
    assert gemm_seconds(PLAIN, A100, 4096, 4096, 4096, element_type="fp8") > 0  # no FP8 there: widened to bf16


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_sizes_that_are_none_are_refused(bad: float, place: int) -> None:
    shape = [64.0, 64.0, 64.0]
    shape[place] = bad
    with pytest.raises(ValueError, match=f"{'mnk'[place]} must be finite"):
        gemm_seconds(PLAIN, H200, *shape, element_type="bf16")


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="element type 'fp7'"):
        gemm_seconds(PLAIN, H200, 1, 1, 1, element_type="fp7")
    with pytest.raises(ValueError, match="sms = 133"):
        gemm_seconds(PLAIN, H200, 1, 1, 1, element_type="bf16", sms=133)
    with pytest.raises(ValueError, match="element type"):
        find_parameters(H200, engine="vllm", element_type="fp7")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tiles": "round"}, "tiles = 'round'"),
        ({"peak_part": 0.0}, "peak_part = 0.0 must be positive"),
        ({"launch_s": -1e-6}, "launch_s = -1e-06 must be at least 0"),
        ({"softness": 0.5}, "softness = 0.5 must be at least 1"),
        ({"quantise_row_s": float("inf")}, "quantise_row_s = inf"),
    ],
)
def test_parameters_check_themselves(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        replace(PLAIN, **change)


def test_a_gpu_without_tables_takes_its_nearest_relative() -> None:
    entry = find_parameters(H20, engine="sglang", element_type="bf16")
    assert (entry.gpu, entry.transferred) == ("h200_sxm", "GPU h200_sxm")
    own = find_parameters(H200, engine="sglang", element_type="bf16")
    assert own.transferred == ""
    assert find_parameters(GPUS["gb300"], engine="trtllm", element_type="nvfp4").gpu == "b300_sxm"
    # a product that arithmetic binds takes as much longer as the peak is lower
    shape = (16384, 8192, 8192)
    seconds = [gemm_seconds(own.parameters, gpu, *shape, element_type="bf16") for gpu in (H200, H20)]
    assert seconds[1] / seconds[0] == pytest.approx(989.4 / 148, rel=0.1)


def test_an_unknown_engine_takes_what_all_engines_share() -> None:
    entry = find_parameters(H200, engine="megatron", element_type="bf16")
    assert (entry.engine, entry.transferred) == (NEUTRAL, "engine neutral")
    assert find_parameters(H200, engine="vllm", element_type="int4_wo").gpu == "a100_sxm"
    odd = replace(H200, name="H200 of a lab")
    assert gpu_key(odd) == "h200_sxm"
    with pytest.raises(ValueError, match="gpu 'mi300x'"):
        nearest("mi300x", {"h100_sxm"})


def test_of_two_versions_the_newest_counts() -> None:
    assert find_parameters(GPUS["h100_sxm"], engine="sglang", element_type="bf16").version == "0.5.14"
    assert sorted(["0.5.14", "0.5.6.post2", "1.3.0rc20"], key=version_key) == ["0.5.6.post2", "0.5.14", "1.3.0rc20"]


def write_table(root: Path, **columns: list[object]) -> Path:
    rows = {"gemm_dtype": ["bfloat16"] * 4, "kernel_source": ["one"] * 4, "m": [1, 1, 4, 4], "n": [64, 256] * 2}
    rows |= {"k": [128] * 4, "latency": [0.004, 0.008, 0.008, 0.016]} | columns
    path = root / "h200_sxm" / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path)
    return path


def test_a_table_is_read_and_interpolated(tmp_path: Path) -> None:
    write_table(tmp_path)
    (table,) = read_gemm(tmp_path)
    assert (table.gpu, table.engine, table.version, table.element_type) == ("h200_sxm", "vllm", "0.24.0", "bf16")
    at, covered = interpolate(table, table.m_R, table.n_R, table.k_R)
    assert covered.all()
    np.testing.assert_allclose(at, table.seconds_R)
    between, covered = interpolate(table, [2, 2, 8, 2], [64, 128, 64, 64], [128, 128, 128, 64])
    assert covered.tolist() == [True, True, False, False]
    np.testing.assert_allclose(between[:2], [np.sqrt(0.004 * 0.008) * 1e-3, 0.008e-3])


def test_a_hole_in_the_grid_is_not_covered(tmp_path: Path) -> None:
    write_table(tmp_path, k=[128, 128, 128, 256])
    (table,) = read_gemm(tmp_path)
    _, covered = interpolate(table, [1, 4, 2, 4], [64, 256, 256, 64], [128, 128, 128, 128])
    assert covered.tolist() == [True, False, False, True]


def test_tables_that_are_none_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path, gemm_dtype=["fp7"] * 4)
    with pytest.raises(MoecastError, match="gemm_dtype 'fp7'"):
        list(read_gemm(tmp_path))
    write_table(tmp_path, latency=[0.1, 0.0, 0.1, 0.1])
    with pytest.raises(MoecastError, match="seconds_R"):
        list(read_gemm(tmp_path))
    pq.write_table(pa.table({"m": [1]}), path)
    with pytest.raises(MoecastError, match="no column gemm_dtype"):
        list(read_gemm(tmp_path))


def test_few_rows_are_drawn_and_always_the_same() -> None:
    drawn = draw_rows(20_000, seed=0)
    assert drawn.sum() == 400
    assert (drawn == draw_rows(20_000, seed=0)).all()
    assert draw_rows(100_000, seed=1).sum() == 700
    assert Errors.of(np.array([1.1, 0.8, 1.0]), np.ones(3)).median == pytest.approx(0.1)


def test_a_hundred_thousand_shapes_take_little_time() -> None:
    entry = find_parameters(H200, engine="vllm", element_type="bf16")
    shape = np.random.default_rng(0).integers(1, 8192, (3, 100_000))
    gemm_seconds(entry.parameters, H200, *shape[:, :10], element_type="bf16")
    began = time.process_time()
    gemm_seconds(entry.parameters, H200, *shape, element_type="bf16")
    assert time.process_time() - began < 1.0  # 0.1 s on an idle core


@pytest.mark.parametrize("gpu", ["a100_sxm", "h100_sxm", "b200_sxm"])
def test_measured_rows_that_nobody_fitted_are_met(gpu: str) -> None:
    if not TABLES.is_dir():
        pytest.skip(f"no shared data at {TABLES} (MOECAST_SHARED)")
    for table in read_gemm(TABLES):
        entry = load_parameters().get((table.gpu, table.engine, table.element_type))
        if table.gpu != gpu or table.host_timed or entry is None or entry.version != table.version:
            continue
        unseen = kernel_rows(table) & ~draw_rows(table.seconds_R.size, seed=entry.seed)
        shape = (table.m_R[unseen], table.n_R[unseen], table.k_R[unseen])
        seconds = gemm_seconds(entry.parameters, GPUS[gpu], *shape, element_type=table.element_type)
        errors = Errors.of(seconds, table.seconds_R[unseen])
        assert (errors.median, errors.p90) == pytest.approx((entry.median, entry.p90), abs=2e-4)
        assert errors.median < 0.15
        assert errors.p90 < 0.4
