"""Collectives inside a domain: monotone, bounded, found by GPU and engine, and close to measured rows."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.cost.collectives import (
    MEASURED_OPERATIONS,
    AllReduceParameters,
    NcclParameters,
    all_parameters,
    engine_all_reduce_seconds,
    find_parameters,
    nccl_seconds,
)
from moecast.sim.cost.nvlink import NOMINAL_Bps
from moecast.sim.cost.tables.collectives import CollectiveTable, interpolate, read_tables
from moecast.validate.fitting.collectives import ALL_REDUCE_START, NCCL_START, errors_of, fit, read_cuts

KERNELS = Path(os.environ.get("MOECAST_SHARED", Path(__file__).parents[3] / "shared")) / "measured" / "kernels"
LINK_Bps = 450e9


@given(
    operation=st.sampled_from(MEASURED_OPERATIONS),
    ranks=st.integers(2, 72),
    size=st.floats(1, 1e11),
    more=st.floats(0, 1e11),
    gpu=st.sampled_from(sorted(NOMINAL_Bps)),
)
def test_more_bytes_never_take_less_time(operation: str, ranks: int, size: float, more: float, gpu: str) -> None:
    parameters = find_parameters(gpu, "nccl").parameters
    less, greater = nccl_seconds(parameters, operation, ranks, [size, size + more], link_Bps=NOMINAL_Bps[gpu])
    assert 0 < less <= greater * (1 + 1e-12)


@given(ranks=st.integers(2, 71), size=st.floats(1, 1e4), operation=st.sampled_from(["all-gather", "reduce-scatter"]))
def test_more_ranks_of_a_ring_never_take_less_time_for_few_bytes(ranks: int, size: float, operation: str) -> None:
    fewer, more = nccl_seconds(NCCL_START, operation, [ranks, ranks + 1], size, link_Bps=LINK_Bps)
    assert fewer <= more


@given(ranks=st.integers(2, 72), size=st.floats(1, 1e11), more=st.floats(0, 1e11), eager=st.booleans())
def test_an_engines_all_reduce_is_monotone_and_never_slower_than_nccl(
    ranks: int, size: float, more: float, eager: bool
) -> None:
    sizes = np.array([size, size + more])
    shared = {"link_Bps": LINK_Bps, "memory_Bps": 4.8e12}
    less, greater = engine_all_reduce_seconds(ALL_REDUCE_START, NCCL_START, ranks, sizes, eager=eager, **shared)
    assert less <= greater * (1 + 1e-12)
    if eager:
        assert less >= ALL_REDUCE_START.host_s
    else:
        nccl = nccl_seconds(NCCL_START, "all-reduce", ranks, sizes, link_Bps=LINK_Bps)
        assert less <= nccl[0] * (1 + 1e-12)


@pytest.mark.parametrize("operation", MEASURED_OPERATIONS)
def test_few_bytes_take_a_start_and_many_the_links(operation: str) -> None:
    p, ranks, size = NCCL_START, 8, 1e14
    few, many = nccl_seconds(p, operation, ranks, [1e-3, size], link_Bps=LINK_Bps)
    if operation == "all-to-all":
        assert few == pytest.approx(p.pair_start_s, rel=1e-6)
        assert many == pytest.approx((7 + p.pairs_own) / 8 * size / p.pairs_part / LINK_Bps, rel=1e-3)
    else:
        steps = 14 if operation == "all-reduce" else 7
        assert few == pytest.approx(min(p.low_start_s + steps * p.low_hop_s, p.high_start_s + steps * p.high_hop_s))
        by_ring = (steps + p.own) / 8 * size / p.high_part / LINK_Bps
        by_switch = (1 + 1 / 8) * size / p.switch_part / LINK_Bps
        assert many == pytest.approx(min(by_ring, by_switch) if operation == "all-reduce" else by_ring, rel=1e-3)


def test_parameters_and_operations_check_themselves() -> None:
    with pytest.raises(ValueError, match="low_part = 0"):
        replace(NCCL_START, low_part=0)
    with pytest.raises(ValueError, match="host_s = nan"):
        replace(ALL_REDUCE_START, host_s=float("nan"))
    with pytest.raises(ValueError, match="operation = 'gather'"):
        nccl_seconds(NCCL_START, "gather", 8, 1e6, link_Bps=LINK_Bps)


def test_parameters_are_found_by_gpu_engine_and_version() -> None:
    assert {entry.engine for entry in all_parameters()} == {"nccl", "neutral", "sglang", "trtllm", "vllm"}
    own, borrowed = find_parameters("h200_sxm", "nccl"), find_parameters("h20", "nccl")
    assert isinstance(own.parameters, NcclParameters)
    assert not own.transferred
    assert borrowed.transferred
    assert borrowed.gpu == "h200_sxm"
    assert find_parameters("gb300", "vllm").transferred
    unknown = find_parameters("h100_sxm", "megatron")
    assert unknown.engine == "neutral"
    assert isinstance(unknown.parameters, AllReduceParameters)
    old, new = (find_parameters("h200_sxm", "sglang", version=version) for version in ("0.5.10", "0.5.14"))
    assert (old.version, new.version) == ("0.5.6", "0.5.14")
    assert find_parameters("h200_sxm", "sglang") == new
    with pytest.raises(ValueError, match="gpu 'tpu'"):
        find_parameters("tpu", "nccl")


def written(folder: Path, **columns: list[object]) -> Path:
    at = folder / "h200_sxm" / "comm" / "nccl" / "2.29.2"
    at.mkdir(parents=True)
    pq.write_table(pa.table(columns), at / "nccl_perf.parquet")
    return folder


def test_a_table_is_read_in_bytes_and_seconds(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        op_name=["alltoall", "all_reduce", "all_reduce"],
        nccl_dtype=["int8", "half", "half"],
        num_gpus=[8, 4, 4],
        message_size=[1024, 1024, 4096],
        latency=[0.01, 0.02, 0.04],
    )
    [table] = read_tables(root)
    assert (table.gpu, table.engine, table.version) == ("h200_sxm", "nccl", "2.29.2")
    assert table.operation_R.tolist() == ["all-to-all", "all-reduce", "all-reduce"]
    assert table.bytes_R.tolist() == [1024, 2048, 8192]
    assert table.seconds_R == pytest.approx([1e-5, 2e-5, 4e-5])
    seconds, covered = interpolate(table, "all-reduce", 4, [2048, 4096, 8192, 9000])
    assert covered.tolist() == [True, True, True, False]
    assert seconds[:3] == pytest.approx([2e-5, 2e-5 * 2**0.5, 4e-5])
    assert not interpolate(table, "all-gather", 4, [2048])[1].any()


def test_a_table_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match="num_gpus"):
        read_tables(written(tmp_path, op_name=["all_reduce"], nccl_dtype=["half"], message_size=[1], latency=[1.0]))
    good = {"op_name": ["scan"], "nccl_dtype": ["half"], "num_gpus": [2], "message_size": [1], "latency": [1.0]}
    with pytest.raises(MoecastError, match="'scan'"):
        read_tables(written(tmp_path / "other", **good))
    with pytest.raises(ValueError, match="seconds_R"):
        CollectiveTable(
            gpu="h200_sxm",
            engine="nccl",
            version="1",
            misplaced=False,
            operation_R=np.array(["all-reduce"]),
            ranks_R=np.array([2]),
            bytes_R=np.array([1.0]),
            eager_R=np.array([False]),
            seconds_R=np.array([0.0]),
        )


def test_the_fit_draws_two_percent_and_is_the_one_that_is_shipped() -> None:
    if not KERNELS.is_dir():
        pytest.skip(f"no measured tables: {KERNELS} is absent (set MOECAST_SHARED)")
    cuts = [cut for cut in read_cuts(KERNELS) if cut.table.gpu in ("h100_sxm", "h200_sxm")]
    for cut in cuts:
        assert len(cut.drawn_R) <= 0.02 * len(cut.table.seconds_R)
        assert not cut.unseen_R[cut.drawn_R].any()
    newest = [cut for cut in cuts if (cut.table.engine, cut.table.version) == ("nccl", "2.29.2")]
    shipped, found = find_parameters("h200_sxm", "nccl").parameters, fit(cuts)
    [again] = [entry.parameters for entry in found if (entry.gpu, entry.engine) == ("h200_sxm", "nccl")]
    for name in ("low_start_s", "high_part", "pairs_part"):
        assert getattr(again, name) == pytest.approx(getattr(shipped, name), rel=1e-2)
    errors = errors_of(all_parameters(), newest)
    assert errors.median < 0.06
    assert errors.p90 < 0.18
