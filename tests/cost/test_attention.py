"""Attention over prompts and over caches, latent attention and its modules: never cheaper for more, limits, tables."""

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
from moecast.sim.attention import attention_seconds
from moecast.sim.cost import FittedCosts, attention, mla_module
from moecast.sim.cost.attention_decode import DecodeParameters, decode_seconds
from moecast.sim.cost.attention_prefill import PrefillParameters, prefill_seconds
from moecast.sim.cost.gpus import GPUS, H20
from moecast.sim.cost.shapes import AttentionCore
from moecast.sim.cost.tables import attention as tables
from moecast.sim.cost.tables import mla_module as module_tables
from moecast.sim.load_model import load_model
from moecast.validate.fitting import attention as fitting
from moecast.validate.fitting import mla_module as module_fitting
from moecast.validate.fitting.attention_errors import compare_attention, compare_module
from tests.conftest import ROOT

TABLES = Path(os.environ.get("MOECAST_SHARED", ROOT.parent / "shared")) / "measured" / "kernels"
H200 = GPUS["h200_sxm"]
ENTRIES = [entry for family in attention.FAMILIES for entry in attention.all_parameters(family)]
PREFILL = [entry for entry in ENTRIES if entry.kind.startswith("prefill")]
DECODE = [entry for entry in ENTRIES if entry.kind.startswith("decode")]
CORE = AttentionCore(latent=False, heads=32, kv_heads=8, head_dim=128, value_dim=128, cached_width=256)
LATENT = replace(CORE, latent=True, kv_heads=32, head_dim=192, cached_width=320, kv_rank=512, rope_dim=64)

counts = st.integers(1, 4096)


def of_prefill(name: str) -> PrefillParameters:
    found: PrefillParameters = next(
        entry.parameters for entry in PREFILL if (entry.gpu, entry.engine) == ("h200_sxm", name)
    )
    return found


def of_decode(name: str) -> DecodeParameters:
    found: DecodeParameters = next(
        entry.parameters for entry in DECODE if (entry.gpu, entry.engine) == ("h200_sxm", name)
    )
    return found


@settings(deadline=None)
@given(
    entry=st.sampled_from(PREFILL),
    batch=st.integers(1, 256),
    length=st.integers(1, 20_000),
    heads=st.sampled_from([(1, 1), (8, 1), (64, 8), (32, 32)]),
    head_dim=st.sampled_from([64, 128, 192, 256]),
    context=st.integers(0, 10_000),
    window=st.sampled_from([0, 128, 1000, 8192]),
    more=counts,
)
def test_more_prompts_tokens_or_context_never_take_less_time(
    entry: object,
    batch: int,
    length: int,
    heads: tuple[int, int],
    head_dim: int,
    context: int,
    window: int,
    more: int,
) -> None:
    shape = {"heads": heads[0], "kv_heads": heads[1], "head_dim": head_dim}
    seconds = prefill_seconds(
        entry.parameters,  # type: ignore[attr-defined]
        H200,
        [batch, batch + more, batch, batch, batch],
        [length, length, length + more, length, length],
        context=[context, context, context, context + more, context],
        window=[window, window, window, window, window + more if window else 0],
        **shape,
    )
    assert (seconds >= seconds[0] * (1 - 1e-9)).all()
    assert seconds[0] >= entry.parameters.launch_s  # type: ignore[attr-defined]


@settings(deadline=None)
@given(
    entry=st.sampled_from(DECODE),
    batch=st.integers(1, 2048),
    keys=st.integers(1, 200_000),
    heads=st.sampled_from([(1, 1), (8, 1), (64, 8), (128, 1), (32, 32)]),
    queries=st.integers(1, 4),
    warm=st.booleans(),
    more=counts,
)
def test_more_sequences_keys_or_drafts_never_take_less_time(
    entry: object, batch: int, keys: int, heads: tuple[int, int], queries: int, warm: bool, more: int
) -> None:
    seconds = decode_seconds(
        entry.parameters,  # type: ignore[attr-defined]
        H200,
        [batch, batch + more, batch, batch, batch],
        [keys, keys, keys + more, keys, keys],
        queries=[queries, queries, queries, queries + 1, queries],
        heads=heads[0],
        kv_heads=heads[1],
        head_dim=128,
        value_dim=128,
        key_bytes=[256, 256, 256, 256, 256 + more],
        warm=warm,
    )
    assert (seconds >= seconds[0] * (1 - 1e-9)).all()


@settings(deadline=None)
@given(
    core=st.sampled_from([CORE, LATENT, replace(CORE, kv_type="fp8"), replace(CORE, kv_heads=32)]),
    gpu=st.sampled_from(sorted(GPUS)),
    engine=st.sampled_from(["sglang", "trtllm", "vllm", "neutral", "megatron"]),
    phase=st.sampled_from(["prefill", "decode"]),
    tokens=st.integers(1, 30_000),
    mean=st.floats(1, 20_000),
    more=st.integers(1, 30_000),
)
def test_a_core_never_gets_cheaper_by_tokens_or_keys(
    core: AttentionCore, gpu: str, engine: str, phase: str, tokens: int, mean: float, more: int
) -> None:
    keys = tokens * mean
    seconds = attention.core_seconds(
        core,
        GPUS[gpu],
        engine=engine,
        phase=phase,
        tokens_G=[tokens, tokens, tokens + more, 0],
        keys_G=[keys, keys + more, keys + more * mean, 0],
    )
    assert seconds[1] >= seconds[0] * (1 - 1e-9)
    assert seconds[2] >= seconds[0] * (1 - 1e-9)
    assert seconds[3] == 0


def test_long_prompts_reach_their_part_of_the_peak() -> None:
    parameters = replace(of_prefill("trtllm"), softmax_s=0.0, rate="bf16")
    seconds = prefill_seconds(parameters, H200, 8, 2**18, heads=32, kv_heads=32, head_dim=128)
    flop = 4.0 * 8 * 32 * 128 * 2**18 * (2**18 + 1) / 2
    assert flop / seconds == pytest.approx(H200.peak_flop_per_s["bf16"] * parameters.peak_part, rel=0.03)


def test_long_caches_reach_their_part_of_the_memory() -> None:
    parameters = of_decode("vllm")
    seconds = decode_seconds(
        parameters, H200, 512, 2**17, heads=8, kv_heads=8, head_dim=128, value_dim=128, key_bytes=512
    )
    moved = 512 * 2.0**17 * 8 * 512
    assert moved / seconds <= H200.memory_Bps * parameters.memory_part
    assert moved / seconds > 0.5 * H200.memory_Bps * parameters.memory_part


def test_little_work_takes_the_launch() -> None:
    prefill, decode = of_prefill("trtllm"), of_decode("trtllm")
    assert prefill_seconds(prefill, H200, 1, 1, heads=1, kv_heads=1, head_dim=64) == pytest.approx(
        prefill.launch_s, rel=0.4
    )
    little = decode_seconds(decode, H200, 1, 1, heads=1, kv_heads=1, head_dim=64, value_dim=64, key_bytes=256)
    assert little == pytest.approx(decode.launch_s, rel=0.4)


def test_a_window_spares_keys_and_a_context_costs_them() -> None:
    parameters = of_prefill("vllm")
    shape = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    whole, windowed, continued = prefill_seconds(
        parameters, H200, 1, 8192, window=[0, 128, 0], context=[0, 0, 8192], **shape
    )
    assert windowed < 0.3 * whole
    assert continued > 1.8 * whole


def test_caches_are_cold_in_a_step() -> None:
    parameters = replace(of_decode("vllm"), cache_ratio=4.0)
    shape = {"heads": 8, "kv_heads": 8, "head_dim": 128, "value_dim": 128, "key_bytes": 512}
    cold = decode_seconds(parameters, H200, 8, 500, **shape)
    assert decode_seconds(parameters, H200, 8, 500, **shape, warm=True) <= cold


def test_parameters_check_themselves() -> None:
    with pytest.raises(ValueError, match=r"softness = 0\.5 must be at least 1"):
        replace(of_prefill("trtllm"), softness=0.5)
    with pytest.raises(ValueError, match="peak_part = 0 must be positive"):
        replace(of_prefill("trtllm"), peak_part=0)
    with pytest.raises(ValueError, match="memory_part = nan"):
        replace(of_decode("trtllm"), memory_part=float("nan"))
    with pytest.raises(ValueError, match=r"cache_ratio = 0\.1 must be at least 1"):
        replace(of_decode("trtllm"), cache_ratio=0.1)
    with pytest.raises(ValueError, match="core_part = -1"):
        replace(mla_module.all_parameters()[0].parameters, core_part=-1)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_amounts_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="batch must be finite"):
        prefill_seconds(of_prefill("trtllm"), H200, bad, 1, heads=1, kv_heads=1, head_dim=64)
    with pytest.raises(ValueError, match="keys must be finite"):
        decode_seconds(of_decode("trtllm"), H200, 1, bad, heads=1, kv_heads=1, head_dim=64, value_dim=64, key_bytes=256)


def test_who_has_no_tables_takes_relatives_parameters() -> None:
    shape = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    own = attention.find_parameters(H200, engine="vllm", phase="decode", cache_type="fp8", **shape)
    assert (own.gpu, own.engine, own.transferred) == ("h200_sxm", "vllm", "")
    found = attention.find_parameters(H20, engine="megatron", phase="prefill", cache_type="bf16", **shape)
    assert (found.gpu, found.transferred) == ("h200_sxm", "GPU h200_sxm, engine neutral")
    latent = attention.find_latent(GPUS["gb300"], engine="vllm", phase="decode", cache_type="fp8")
    assert (latent.gpu, latent.transferred) == ("b300_sxm", "GPU b300_sxm, engine neutral")
    module = mla_module.find_parameters(
        GPUS["gb300"], engine="vllm", phase="decode", gemm_type="fp8_block", cache_type="fp8"
    )
    assert (module.engine, module.transferred) == ("vllm", "GPU b300_sxm")


def test_other_kernels_are_found_by_shape() -> None:
    b200 = GPUS["b200_sxm"]
    odd = attention.find_parameters(
        b200, engine="sglang", phase="decode", cache_type="bf16", heads=64, kv_heads=4, head_dim=192
    )
    assert odd.kind == "decode bf16 triton 192"
    alone = attention.find_parameters(
        H200, engine="trtllm", phase="decode", cache_type="bf16", heads=32, kv_heads=32, head_dim=128
    )
    assert alone.kind == "decode bf16 separate"
    absorbed = attention.find_latent(H200, engine="sglang", phase="prefill", cache_type="bf16")
    assert absorbed.engine == "neutral"


def test_modules_hold_more_than_their_parts() -> None:
    entry = mla_module.find_parameters(H200, engine="vllm", phase="decode", gemm_type="fp8_block", cache_type="bf16")
    amounts = {"batch": [1, 64, 64], "tokens": 1, "heads": [16, 16, 128]}
    parts = mla_module.mla_parts(
        H200, engine="vllm", phase="decode", gemm_type="fp8_block", cache_type="bf16", keys=4096, **amounts
    )
    seconds = mla_module.module_seconds(entry.parameters, H200, parts, **amounts)
    assert (np.diff(seconds) > 0).all()
    assert (seconds > entry.parameters.constant_s).all()
    assert mla_module.beside_seconds(entry.parameters, H200, [0, 1], heads=16)[0] == 0


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
def test_a_step_puts_whole_modules_together(engine: str) -> None:
    model = load_model("deepseek-v3").with_types(kv_type="fp8")
    hardware = replace(H200, kernels="fitted", engine=engine)
    tokens, keys = np.array([1.0, 64.0, 512.0]), np.array([100.0, 4096.0, 2048.0])
    types = {"engine": engine, "phase": "decode", "gemm_type": "fp8_block", "cache_type": "fp8"}
    parts = mla_module.mla_parts(hardware, **types, batch=tokens, tokens=1, keys=keys, heads=128)
    module = mla_module.find_parameters(hardware, **types).parameters
    whole = mla_module.module_seconds(module, hardware, parts, batch=tokens, tokens=1, heads=128)
    step = attention_seconds(model, hardware, phase="decode", tokens_G=tokens, context_sum_G=tokens * keys)
    np.testing.assert_allclose(step, whole)


def test_a_core_is_the_modules_only_where_these_types_were_measured() -> None:
    asked = {"phase": "prefill", "tokens_G": [8192.0], "keys_G": [8192.0 * 2048]}
    costs = FittedCosts(hardware=replace(H200, kernels="fitted", engine="vllm"))
    core = AttentionCore.of(model := load_model("deepseek-v3"), model.attention)
    bare = costs.core_seconds(replace(core, module_type=""), **asked)
    types = {"engine": "vllm", "phase": "prefill", "gemm_type": "fp8_block", "cache_type": "bf16"}
    part = mla_module.find_parameters(costs.hardware, **types).parameters.core_part
    assert part < 0.95
    np.testing.assert_allclose(costs.core_seconds(core, **asked), part * bare)
    sglang = FittedCosts(hardware=replace(H200, kernels="fitted", engine="sglang"))  # its modules have FP8 caches only
    decode = {**asked, "phase": "decode"}
    np.testing.assert_allclose(
        sglang.core_seconds(core, **decode), sglang.core_seconds(replace(core, module_type=""), **decode)
    )


def test_a_hundred_thousand_shapes_are_quick() -> None:
    import time

    batch, keys = np.arange(100_000) % 512 + 1.0, np.arange(100_000) % 9999 + 1.0
    start = time.perf_counter()
    decode_seconds(
        of_decode("vllm"), H200, batch, keys, heads=8, kv_heads=1, head_dim=128, value_dim=128, key_bytes=512
    )
    prefill_seconds(of_prefill("vllm"), H200, batch, keys, heads=8, kv_heads=1, head_dim=128)
    assert time.perf_counter() - start < 2  # .15 s where nothing else runs


def write(root: Path, family: str, name: str, columns: dict[str, list[object]]) -> None:
    path = root / "h200_sxm" / family / "trtllm" / "1.3.0" / f"{name}_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_kernel_tables_are_read(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"kernel_source": ["torch_flow"] * 3, "kv_cache_dtype": ["bfloat16"] * 3}
    columns |= {"batch_size": [1, 1, 1], "isl": [1, 1, 1], "step": [7, 31, 7], "num_heads": [8, 8, 8]}
    columns |= {"latency": [0.004, 0.016, 0.1]}
    write(tmp_path, "mla", "generation_mla", columns)
    write(
        tmp_path,
        "attention",
        "generation_attention",
        columns | {"num_key_value_heads": [1, 1, 8], "head_dim": [128] * 3, "window_size": [0] * 3},
    )
    main, apart = tables.read_attention(tmp_path)
    assert (main.kind, apart.kind) == ("decode bf16", "decode bf16 separate")
    between, covered = tables.interpolate(main, 1, [8, 16, 33], heads=8, kv_heads=1, head_dim=128)
    assert covered.tolist() == [True, True, False]
    np.testing.assert_allclose(between[:2], [4e-6, 8e-6])
    (latent,) = tables.read_mla(tmp_path)
    assert (latent.latent, latent.keys_R.tolist(), set(latent.head_dim_R)) == (True, [8, 32, 8], {576})
    write(tmp_path, "mla", "generation_mla", columns | {"kv_cache_dtype": ["fp7"] * 3})
    with pytest.raises(MoecastError, match="kv_cache_dtype 'fp7'"):
        list(tables.read_mla(tmp_path))


def test_module_tables_are_read(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"kernel_source": ["FLASHMLA", "FLASH_ATTN"], "kv_cache_dtype": ["fp8"] * 2}
    columns |= {"batch_size": [1, 1], "isl": [64, 1024], "step": [0, 0], "num_heads": [8, 8], "latency": [0.1, 1.0]}
    columns |= {"gemm_type": ["nvfp4"] * 2, "mla_dtype": ["bfloat16"] * 2}
    write(tmp_path, "mla", "mla_context_module", columns)
    absorbed, expanded = module_tables.read_mla_modules(tmp_path)
    assert (absorbed.kind, absorbed.keys_R.tolist()) == ("absorbed nvfp4/fp8", [64])
    assert (expanded.kind, expanded.keys_R.tolist()) == ("prefill nvfp4/fp8", [0])
    at, covered = module_tables.interpolate(expanded, 1, 1024, heads=8)
    assert covered
    assert at == pytest.approx(1e-3)
    write(tmp_path, "mla", "mla_context_module", columns | {"gemm_type": ["int3"] * 2})
    with pytest.raises(MoecastError, match="gemm_type 'int3'"):
        list(module_tables.read_mla_modules(tmp_path))


def one_gpu(root: Path, name: str, family: str) -> Path:
    """A folder with the tables of one GPU alone: all of them take minutes."""
    if not TABLES.is_dir():
        pytest.skip(f"no shared data at {TABLES} (MOECAST_SHARED)")
    (root / name).mkdir()
    (root / name / family).symlink_to(TABLES / name / family)
    return root


def test_measured_kernels_that_nobody_fitted_are_met(tmp_path: Path) -> None:
    for table in tables.read_attention(one_gpu(tmp_path, "gb200", "attention")):
        assert fitting.draw(table).sum() <= 0.02 * table.seconds_R.size
        _, model, _ = compare_attention(table)
        if table.kernel in ("", "narrow", "separate"):
            assert model.median < 0.09, table.kind
            assert model.p90 < 0.40, table.kind
    for table in tables.read_mla(one_gpu(tmp_path / "gb200", "gb200", "mla")):
        _, model, _ = compare_attention(table)
        assert model.median < 0.09, table.kind
        assert model.p90 < 0.32, table.kind


def test_measured_modules_that_nobody_fitted_are_met(tmp_path: Path) -> None:
    for table in module_tables.read_mla_modules(one_gpu(tmp_path, "h200_sxm", "mla")):
        assert module_fitting.draw(table).sum() <= 0.02 * table.seconds_R.size
        _, model, _, _ = compare_module(table)
        if table.engine != "sglang":
            assert model.median < 0.09, table.kind
            assert model.p90 < 0.27, table.kind
