"""Dispatch and combine inside a domain: monotone, bounded by what they say, and close to measured rows."""

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
from moecast.sim.cost.dispatch import (
    HostedParameters,
    SymmetricParameters,
    distinct_ranks,
    find_parameters,
    hosted_seconds,
    low_latency_seconds,
    normal_seconds,
    symmetric_seconds,
)
from moecast.sim.cost.tables.dispatch import interpolate, read_tables
from moecast.validate.fitting.dispatch import errors_of, read_cuts

KERNELS = Path(os.environ.get("MOECAST_SHARED", Path(__file__).parents[3] / "shared")) / "measured" / "kernels"
GPU = st.sampled_from(["h100_sxm", "h200_sxm", "b200_sxm", "gb200"])
PHASE = st.sampled_from(["dispatch", "combine"])
TOKENS = st.floats(0, 1e6)


@given(gpu=GPU, phase=PHASE, tokens=TOKENS, more=TOKENS, choices=st.integers(1, 22), ranks=st.integers(2, 72))
def test_more_tokens_and_more_choices_never_take_less_time(
    gpu: str, phase: str, tokens: float, more: float, choices: int, ranks: int
) -> None:
    asked = np.array([tokens, tokens + more])
    shared = {"ranks": ranks, "copy_bytes": 7392.0, "link_Bps": 450e9}
    low, normal = (find_parameters(gpu, name, phase).parameters for name in ("deepep-ll", "deepep-normal"))
    symmetric = SymmetricParameters(start_s=1e-5, rank_s=1e-7, token_s=2e-8, near_part=0.7, far_part=0.5)
    one, other = (
        (
            low_latency_seconds(low, tokens=asked, choices=c, experts=256, sms=132, **shared),
            normal_seconds(normal, tokens=asked, choices=c, communication_sms=20, **shared),
            symmetric_seconds(symmetric, tokens=asked, choices=c, **shared),
        )
        for c in (choices, choices + 1)
    )
    for less, greater in zip(one, other, strict=True):
        assert 0 < less[0] <= less[1] * (1 + 1e-12)
        assert np.all(less <= greater * (1 + 1e-12))


def test_nothing_takes_a_start_and_many_tokens_the_links_or_the_sms() -> None:
    p = find_parameters("h200_sxm", "deepep-normal", "dispatch").parameters
    shared = {"choices": 8, "ranks": 8, "copy_bytes": 7392.0, "link_Bps": 450e9}
    assert normal_seconds(p, tokens=0, communication_sms=20, **shared) == pytest.approx(p.start_s + 7392 * p.wide_s)
    by_link = 1e9 * distinct_ranks(8, 8) * 7 / 8 * 7392 / (p.part * 450e9)
    assert normal_seconds(p, tokens=1e9, communication_sms=1000, **shared) == pytest.approx(by_link, rel=1e-2)
    few, many = normal_seconds(p, tokens=1e9, communication_sms=np.array([1, 2]), **shared)
    assert few == pytest.approx(2 * many, rel=1e-2)
    low = find_parameters("h200_sxm", "deepep-ll", "combine").parameters
    asked = {"tokens": 0, "experts": 256, "sms": 132, **shared}
    assert low_latency_seconds(low, **asked) == pytest.approx(low.start_s + 256 * low.expert_s)


def test_a_host_is_a_floor() -> None:
    p = HostedParameters(host_s=1e-4, scale=2.0)
    assert hosted_seconds(p, [1e-6, 1e-2]) == pytest.approx([1e-4, 2e-2], rel=1e-3)


def test_ranks_that_hold_a_tokens_experts() -> None:
    assert distinct_ranks(8, 1) == pytest.approx(1)
    assert distinct_ranks(2, 2) == pytest.approx(1.5)
    drawn = np.random.default_rng(0).integers(0, 8, (20_000, 8))
    assert distinct_ranks(8, 8) == pytest.approx(np.mean([len(set(row)) for row in drawn.tolist()]), rel=0.01)


def test_parameters_check_themselves_and_are_found() -> None:
    found = find_parameters("gb300", "deepep-ll", "dispatch")
    assert found.transferred
    with pytest.raises(ValueError, match="part = -1"):
        replace(found.parameters, part=-1)
    assert isinstance(find_parameters("h200_sxm", "vllm/deepep-ll", "combine").parameters, HostedParameters)
    with pytest.raises(MoecastError, match="pigeon"):
        find_parameters("h200_sxm", "pigeon", "dispatch")


def test_a_table_is_read_with_both_phases_of_a_row(tmp_path: Path) -> None:
    at = tmp_path / "gb200" / "comm" / "sglang" / "0.5.12"
    at.mkdir(parents=True)
    columns = {
        "node_num": [1, 1], "hidden_size": [7168] * 2, "num_token": [1, 4], "num_topk": [8] * 2,
        "num_experts": [256] * 2, "dispatch_avg_t_us": [10.0, 40.0], "combine_avg_t_us": [20.0, 30.0],
    }  # fmt: skip
    pq.write_table(pa.table(columns), at / "wideep_deepep_ll_perf.parquet")
    [table] = read_tables(tmp_path)
    assert table.phase_R.tolist() == ["dispatch", "combine"] * 2
    assert table.ranks_R.tolist() == [4] * 4
    assert table.copy_bytes_R[:2].tolist() == [7392, 14336]
    seconds, covered = interpolate(table, table.phase_R == "dispatch", [1, 2, 8])
    assert seconds[:2] == pytest.approx([1e-5, 2e-5])
    assert covered.tolist() == [True, True, False]
    pq.write_table(pa.table({"node_num": [1]}), at / "wideep_deepep_ll_perf.parquet")
    with pytest.raises(MoecastError, match="dispatch_avg_t_us"):
        read_tables(tmp_path)


def test_what_is_shipped_is_close_to_rows_that_nobody_drew() -> None:
    if not KERNELS.is_dir():
        pytest.skip(f"no measured tables: {KERNELS} is absent (set MOECAST_SHARED)")
    from moecast.sim.cost.dispatch import all_parameters

    cuts = [cut for cut in read_cuts(KERNELS) if cut.table.gpu in ("h200_sxm", "b200_sxm")]
    for library, most in (("deepep-ll", 0.1), ("deepep-normal", 0.07)):
        some = [cut for cut in cuts if cut.engine == library and cut.table.version == "0.5.12"]
        errors = errors_of(all_parameters(), some)
        assert errors.median < most
        assert errors.p90 < 0.2
    per_file = {(cut.table.gpu, cut.table.engine, cut.library) for cut in cuts}
    assert len(per_file) > 4
