"""Kernels by a user's own tables: made ones, whose times are those of the fitted model times a known factor."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moecast.errors import MoecastError
from moecast.sim import Plan, Workload, kernels_on, simulate
from moecast.sim.cost import AttentionCore, ExpertBlock, FittedCosts, TableCosts, costs_of, gemm
from moecast.sim.cost.attention import find_parameters
from moecast.sim.cost.attention_decode import decode_seconds
from moecast.sim.cost.tables.moe import even_loads, read_moe
from moecast.sim.cost.tables.ratio import MeasuredRatio
from moecast.sim.load_model import load_model
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import load_cluster

GEMM, CORE, EXPERTS = 1.3, 0.8, 1.7  # what the made tables say of the model's times
CLUSTER = kernels_on(load_cluster("dgx-h200", nodes=1), engine="vllm")
FITTED = FittedCosts(hardware=CLUSTER.hardware)
QWEN = load_model("qwen3-30b-a3b")
CORE_OF = AttentionCore.of(QWEN, QWEN.attention)
BLOCK = ExpertBlock.of(QWEN)


def written(root, family, name, columns):
    folder = root / "h200_sxm" / family / "vllm" / "1.0"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)


def write_gemm(root, factor=GEMM):
    m, n, k = (axis.ravel() for axis in np.meshgrid([1, 64, 4096], [128, 2048, 16384], [512, 8192], indexing="ij"))
    parameters = gemm.find_parameters(FITTED.hardware, engine="vllm", element_type="bf16").parameters
    seconds = factor * gemm.gemm_seconds(parameters, FITTED.hardware, m, n, k, element_type="bf16")
    size = m.size
    written(
        root,
        "gemm",
        "gemm_perf.parquet",
        {
            "gemm_dtype": ["bfloat16"] * size,
            "kernel_source": ["some"] * size,
            "m": m,
            "n": n,
            "k": k,
            "latency": seconds * 1e3,
        },
    )


def write_attention(root):
    batch, keys = (axis.ravel() for axis in np.meshgrid([1, 16, 256], [64, 1024, 8192], indexing="ij"))
    shape = {"heads": CORE_OF.heads, "kv_heads": CORE_OF.kv_heads, "head_dim": CORE_OF.head_dim}
    parameters = find_parameters(FITTED.hardware, engine="vllm", phase="decode", cache_type="bf16", **shape).parameters
    seconds = CORE * decode_seconds(
        parameters, FITTED.hardware, batch, keys, **shape, value_dim=128, key_bytes=2 * 2 * 128, warm=True
    )
    size = batch.size
    written(
        root,
        "attention",
        "generation_attention_perf.parquet",
        {
            "batch_size": batch,
            "isl": [1] * size,
            "step": keys - 1,
            "num_heads": [shape["heads"]] * size,
            "num_key_value_heads": [shape["kv_heads"]] * size,
            "head_dim": [128] * size,
            "latency": seconds * 1e3,
            "kernel_source": ["some"] * size,
            "kv_cache_dtype": ["bfloat16"] * size,
        },
    )


def write_moe(root, ep=8):
    tokens = [1, 32, 1024, 16384]
    loads = [even_loads(tokens=some, choices=8, experts=128, parts=ep) for some in tokens]
    seconds = [
        EXPERTS * FITTED.expert_seconds(BLOCK, load[None], phase="decode", seen_G=[some * 8])[0]
        for some, load in zip(tokens, loads, strict=True)
    ]
    written(
        root,
        "moe",
        "moe_perf.parquet",
        {
            "moe_dtype": ["bfloat16"] * 4,
            "kernel_source": ["some"] * 4,
            "num_tokens": tokens,
            "hidden_size": [2048] * 4,
            "inter_size": [768] * 4,
            "topk": [8] * 4,
            "num_experts": [128] * 4,
            "moe_tp_size": [1] * 4,
            "moe_ep_size": [ep] * 4,
            "distribution": ["balanced"] * 4,
            "latency": np.array(seconds) * 1e3,
        },
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    write_gemm(root)
    write_attention(root)
    write_moe(root)
    return root


@pytest.fixture(scope="module")
def costs(root):
    found = costs_of(kernels_on(CLUSTER, kernels=f"tables:{root}").hardware)
    assert isinstance(found, TableCosts)
    return found


def test_products_take_what_was_measured_and_the_model_carries_on_beyond(costs):
    rows = np.array([0, 1, 7, 64, 1000, 4096, 50_000])
    for inner, outer in ((512, 128), (700, 3000), (8192, 16384)):
        shape = {"inner": inner, "outer": outer, "element_type": "bf16"}
        np.testing.assert_allclose(costs.gemm_seconds(rows, **shape), GEMM * FITTED.gemm_seconds(rows, **shape))
        assert costs.covers_gemm(**shape)


@pytest.mark.parametrize(("inner", "outer", "kind"), [(512, 64, "bf16"), (16384, 512, "bf16"), (512, 128, "fp8")])
def test_products_that_no_table_covers_are_fitted(costs, inner, outer, kind):
    shape = {"inner": inner, "outer": outer, "element_type": kind}
    np.testing.assert_allclose(costs.gemm_seconds([64], **shape), FITTED.gemm_seconds([64], **shape))
    assert not costs.covers_gemm(**shape)


def test_attention_of_the_measured_heads_takes_what_was_measured(costs):
    asked = {"phase": "decode", "tokens_G": np.array([0.0, 3.0, 64.0]), "keys_G": np.array([0.0, 3e3, 64e3])}
    np.testing.assert_allclose(costs.core_seconds(CORE_OF, **asked), CORE * FITTED.core_seconds(CORE_OF, **asked))
    for other in (replace(CORE_OF, heads=64), replace(CORE_OF, head_dim=64)):
        np.testing.assert_allclose(costs.core_seconds(other, **asked), FITTED.core_seconds(other, **asked))
        assert not costs.covers_core(other, "decode")
    prompts = {"phase": "prefill", "tokens_G": [128.0], "keys_G": [128.0 * 64]}
    np.testing.assert_allclose(costs.core_seconds(CORE_OF, **prompts), FITTED.core_seconds(CORE_OF, **prompts))


def test_experts_of_uneven_loads_are_the_models_times_what_even_ones_measured(costs):
    load = np.random.default_rng(0).integers(0, 40, (5, 16))
    for wide in (load, np.pad(load, ((0, 0), (0, 2)))):  # two redundant slots
        own, plain = (some.expert_seconds(BLOCK, wide, phase="decode") for some in (costs, FITTED))
        np.testing.assert_allclose(own, EXPERTS * plain)
    many = np.pad(load, ((0, 0), (0, 16)))
    np.testing.assert_allclose(
        costs.expert_seconds(BLOCK, many, phase="decode"), FITTED.expert_seconds(BLOCK, many, phase="decode")
    )


def test_the_floor_of_experts_is_below_all_loads(costs):
    random = np.random.default_rng(1)
    for slots in (8, 16, 20, 64):
        load = random.integers(0, 60, (50, slots)) * (random.random((50, slots)) < 0.5)
        found = costs.expert_seconds(BLOCK, load, phase="decode")
        for seconds, one in zip(found, load, strict=True):
            assert costs.expert_floor_seconds(BLOCK, one.sum(), (one > 0).sum(), phase="decode") <= seconds * (1 + 1e-9)


def test_another_memory_moves_what_tables_price(costs):
    shape = {"inner": 8192, "outer": 16384, "element_type": "bf16"}
    faster = replace(costs, hardware=replace(costs.hardware, memory_Bps=2 * costs.hardware.memory_Bps))
    assert faster.gemm_seconds([1], **shape) < 0.8 * costs.gemm_seconds([1], **shape)


def test_ratios_are_exact_where_measured_and_stay_beyond_and_in_holes():
    points = (np.array([1.0, 2.0, 4.0, 1.0]), np.array([10.0, 10.0, 10.0, 20.0]))
    ratio = MeasuredRatio.of(points, [1.0, 2.0, 4.0, 3.0], [1.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(ratio.at([1, 2, 4, 1], [10, 10, 10, 20]), [1, 2, 4, 3])
    np.testing.assert_allclose(ratio.at([0.1, 100, 4], [10, 10, 20]), [1, 4, 4])
    np.testing.assert_allclose(ratio.at(np.sqrt(2), 10), np.sqrt(2))
    assert ratio.least == pytest.approx(1)


def test_tables_that_show_the_hosts_time_price_nothing(tmp_path):
    write_gemm(tmp_path, factor=1e3)
    costs = costs_of(kernels_on(CLUSTER, kernels=f"tables:{tmp_path}").hardware)
    assert not costs.covers_gemm(inner=512, outer=2048, element_type="bf16")


def test_a_forecast_says_part_by_part_what_priced_it(root):
    cluster, plan = kernels_on(CLUSTER, kernels=f"tables:{root}"), Plan.contiguous(QWEN, ep=8)
    trace = routing_by_law(parse_law("uniform"), QWEN, tokens=128, sequence=1, phase="decode", position=0, seed=0)
    work = Workload(phase="decode", tokens_per_rank=16, steps=1, context=1024, reuse=True)
    found = simulate(cluster, QWEN, plan, trace, work, network="bound", gains=False)
    by_tables, fitted = found.labels[-2:]
    assert by_tables == (
        f"kernels by tables of h200_sxm and vllm in {root}: attention's products, attention over caches, router, "
        "routed experts"
    )
    assert fitted.startswith("kernels by fitted parameters: LM head, norms")
    plain = simulate(CLUSTER, QWEN, plan, trace, work, network="bound", gains=False)
    assert not any("tables" in label for label in plain.labels)
    assert found.breakdown_s["expert"] == pytest.approx(EXPERTS * plain.breakdown_s["expert"], rel=0.02)


@pytest.mark.parametrize(
    ("make", "engine", "told"),
    [
        (lambda _: None, "vllm", "has no tables"),
        (write_gemm, "sglang", "name one by --engine"),
        (lambda root: (root / "h200_sxm/gemm/vllm/1/").mkdir(parents=True), "vllm", "has no tables"),
        (lambda root: written(root, "gemm", "gemm_perf.parquet", {"m": [1]}), "vllm", "no column gemm_dtype"),
        (lambda root: write_gemm(root, factor=-1), "vllm", "one positive number a row"),
    ],
)
def test_folders_without_what_is_needed_are_refused_in_one_line(tmp_path, make, engine, told):
    make(tmp_path)
    with pytest.raises(MoecastError, match=told) as caught:
        kernels_on(CLUSTER, kernels=f"tables:{tmp_path}", engine=engine)
    assert "\n" not in str(caught.value)


def test_other_gpus_files_that_are_none_and_missing_folders_are_refused(tmp_path, root):
    with pytest.raises(MoecastError, match=r"tables of b200_sxm.*has tables of h200_sxm"):
        kernels_on(load_cluster("dgx-b200", nodes=1), kernels=f"tables:{root}", engine="vllm")
    with pytest.raises(MoecastError, match="a folder of tables"):
        kernels_on(CLUSTER, kernels=f"tables:{tmp_path / 'none'}")
    with pytest.raises(MoecastError, match="fitted, roofline or tables:DIR"):
        kernels_on(CLUSTER, kernels="tables:")
    broken = tmp_path / "h200_sxm/gemm/vllm/1/gemm_perf.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_text("no table")
    with pytest.raises(MoecastError, match=r"gemm_perf\.parquet: .*a Parquet file"):
        kernels_on(CLUSTER, kernels=f"tables:{tmp_path}")


@pytest.mark.parametrize(
    ("engine", "version", "gates"), [("vllm", "0.24.0", 1), ("vllm", "0.19.0", 2), ("trtllm", "9", 2)]
)
def test_experts_without_a_gate_are_read_as_such(tmp_path, engine, version, gates):
    folder = tmp_path / "h200_sxm" / "moe" / engine / version
    folder.mkdir(parents=True)
    numbers = {"num_tokens": 8, "hidden_size": 1024, "inter_size": 2688, "moe_tp_size": 1, "moe_ep_size": 1}
    rows = [{"topk": 22, "num_experts": 512}, {"topk": 8, "num_experts": 512}]
    named = {"kernel_source": "some", "moe_dtype": "bfloat16", "distribution": "balanced", "latency": 1.0}
    pq.write_table(pa.Table.from_pylist([numbers | named | row for row in rows]), folder / "moe_perf.parquet")
    (table,) = read_moe(tmp_path)
    assert table.gated_R.sum() == gates
    assert table.gated_R[table.choices_R == 8].all()
