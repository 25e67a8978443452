"""Kernels of linear attention: never cheaper for more, limits, parameters, tables."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.cost import linear_attention
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.tables import linear_attention as tables
from moecast.validate.fitting import linear_attention as fitting
from moecast.validate.fitting.attention_errors import compare_linear
from tests.conftest import ROOT

TABLES = Path(os.environ.get("MOECAST_SHARED", ROOT.parent / "shared")) / "measured" / "kernels"
H200 = GPUS["h200_sxm"]
ENTRIES = linear_attention.all_parameters()


@settings(deadline=None)
@given(
    entry=st.sampled_from([entry for entry in ENTRIES if entry.kind.startswith("conv")]),
    batch=st.integers(1, 1024),
    length=st.integers(1, 40_000),
    channels=st.integers(128, 16_384),
    more=st.integers(1, 4096),
    warm=st.booleans(),
)
def test_more_to_convolve_never_takes_less_time(
    entry: Any, batch: int, length: int, channels: int, more: int, warm: bool
) -> None:
    seconds = linear_attention.conv_seconds(
        entry.parameters,
        GPUS[entry.gpu],
        [batch, batch + more, batch, batch],
        [length, length, length + more, length],
        channels=[channels, channels, channels, channels + more],
        warm=warm,
    )
    assert (seconds >= seconds[0] * (1 - 1e-12)).all()
    assert seconds[0] >= entry.parameters.launch_s


@settings(deadline=None)
@given(
    entry=st.sampled_from([entry for entry in ENTRIES if entry.kind.startswith("state")]),
    batch=st.integers(1, 1024),
    length=st.integers(1, 40_000),
    heads=st.integers(1, 64),
    more=st.integers(1, 4096),
    warm=st.booleans(),
)
def test_more_states_never_take_less_time(
    entry: Any, batch: int, length: int, heads: int, more: int, warm: bool
) -> None:
    seconds = linear_attention.state_seconds(
        entry.parameters,
        GPUS[entry.gpu],
        [batch, batch + more, batch, batch],
        [length, length, length + more, length],
        phase=entry.kind.split()[1],
        heads=[heads, heads, heads, heads + more],
        key_dim=128,
        value_dim=128,
        warm=warm,
    )
    assert (seconds >= seconds[0] * (1 - 1e-12)).all()
    assert seconds[0] >= entry.parameters.launch_s


def test_long_prompts_take_the_work_of_all_or_one_chain() -> None:
    parameters = linear_attention.find_parameters(H200, engine="vllm", kind="state prefill").parameters
    shape = {"phase": "prefill", "key_dim": 128, "value_dim": 128}
    many = linear_attention.state_seconds(parameters, H200, 512, 2**15, heads=64, **shape)
    assert many == pytest.approx(512 * 64 * 2**15 / 64 * parameters.chunk_s / H200.sms, rel=0.05)
    one = linear_attention.state_seconds(parameters, H200, 1, 2**20, heads=1, **shape)
    assert one == pytest.approx(2**20 / 64 * parameters.chain_s, rel=0.05)


def test_much_reaches_the_memory_and_little_the_launch() -> None:
    parameters = linear_attention.find_parameters(H200, engine="vllm", kind="conv prefill").parameters
    much = linear_attention.conv_seconds(parameters, H200, 1, 2**20, channels=8192)
    assert 2**20 * 8192 * 4 * parameters.moves / much == pytest.approx(H200.memory_Bps, rel=0.02)
    assert linear_attention.conv_seconds(parameters, H200, 1, 1, channels=128) == pytest.approx(
        parameters.launch_s, rel=0.05
    )
    assert linear_attention.conv_seconds(parameters, H200, [0, 1], 1, channels=[128, 0]).tolist() == [0, 0]


def test_parameters_check_themselves_and_transfer() -> None:
    found = linear_attention.find_parameters(GPUS["gb300"], engine="megatron", kind="state decode")
    assert found.transferred == "GPU b300_sxm, engine neutral"
    with pytest.raises(ValueError, match=r"softness = 0\.9 must be at least 1"):
        replace(found.parameters, softness=0.9)
    with pytest.raises(ValueError, match="launch_s = 0 must be positive"):
        replace(found.parameters, launch_s=0)
    with pytest.raises(ValueError, match="kind 'scan'"):
        linear_attention.find_parameters(H200, engine="vllm", kind="scan")
    conv = linear_attention.find_parameters(H200, engine="vllm", kind="conv decode").parameters
    with pytest.raises(ValueError, match="channels must be finite"):
        linear_attention.conv_seconds(conv, H200, 1, 1, channels=-1)


def write(root: Path, name: str, columns: dict[str, list[Any]]) -> None:
    path = root / "h200_sxm" / "linear_attention" / "vllm" / "0.24.0" / f"{name}_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_tables_are_read_and_repeated_rows_averaged(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"kernel_source": ["causal_conv1d_fn"] * 3, "batch_size": [1, 1, 1]}
    columns |= {"seq_len": [4, 4, 16], "num_k_heads": [2] * 3, "head_k_dim": [128] * 3, "num_v_heads": [4] * 3}
    columns |= {"head_v_dim": [128] * 3, "latency": [0.002, 0.004, 0.012]}
    write(tmp_path, "gdn", columns)
    (table,) = tables.read_linear(tmp_path)
    assert (table.kind, table.channels_R.tolist()) == ("conv prefill", [1024, 1024])
    np.testing.assert_allclose(table.seconds_R, [3e-6, 12e-6])
    between, covered = tables.interpolate(table, 1, [8, 17], heads=4, channels=1024)
    assert covered.tolist() == [True, False]
    assert between[0] == pytest.approx(6e-6)
    write(tmp_path, "gdn", columns | {"kernel_source": ["other"] * 3})
    with pytest.raises(MoecastError, match="kernel_source 'other'"):
        list(tables.read_linear(tmp_path))


def test_measured_rows_that_nobody_fitted_are_met() -> None:
    if not TABLES.is_dir():
        pytest.skip(f"no shared data at {TABLES} (MOECAST_SHARED)")
    for table in tables.read_linear(TABLES):
        assert fitting.draw(table).sum() <= 0.02 * table.seconds_R.size
        _, model, _ = compare_linear(table)
        if table.engine == "vllm":
            assert model.median < 0.09, (table.gpu, table.kind)
            assert model.p90 < 0.45, (table.gpu, table.kind)
