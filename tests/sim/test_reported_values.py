"""Values from public reports of people who run such models: what a forecast of theirs must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moecast.placement.engines import read_any
from moecast.sim import ModelShape, Plan, Prediction, Workload, kernels_on, load_model, simulate
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import Cluster, load_cluster

QWEN_235B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94,
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536, "intermediate_size": 12288, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "vocab_size": 151936, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
NVFP4 = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}
FLOAT4 = {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}
INT4 = {"group_0": {"targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True}}}  # fmt: skip


def gpus(folder: Path, preset: str, count: int) -> Cluster:
    """One host of so many GPUs."""
    file = folder / "host.yaml"
    file.write_text(
        f"name: host\npreset: {preset}\nnodes: 1\ndomain: {{gpus_per_host: {count}, nics_per_host: {count}}}\n"
    )
    return load_cluster(str(file))


def decode(cluster: Cluster, model: ModelShape, plan: Plan, *, sequences: int, steps: int = 1) -> Prediction:
    """A few steps of even routing."""
    tokens = 2 * sequences * steps * plan.ranks
    trace = routing_by_law(
        parse_law("uniform"), model, tokens=tokens, sequence=steps, phase="decode", position=8, seed=0
    )
    workload = Workload(phase="decode", tokens_per_rank=sequences, steps=steps, context=8)
    return simulate(cluster, model, plan, trace, workload, network="bound", gains=False)


@pytest.mark.parametrize(
    ("inside", "beside"),
    [
        (None, {"producer": {"name": "modelopt"}, "quantization": NVFP4}),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "config_groups": FLOAT4}, None),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": INT4}, None),
    ],
    ids=["hf_quant_config.json", "modelopt in config.json", "int4 by compressed-tensors"],
)
def test_four_bit_experts_of_qwen3_235b(
    tmp_path: Path, inside: dict[str, Any] | None, beside: dict[str, Any] | None
) -> None:
    """227.1 G weights of experts at 4.5 bits on 4 GPUs are 31.9 GB on each; in bf16 they would be 113.6."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN_235B | ({"quantization_config": inside} if inside else {})))
    if beside is not None:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    model = load_model(str(tmp_path))
    cluster = gpus(tmp_path, "dgx-h200", 4)
    found = decode(cluster, model, Plan.contiguous(model, cluster), sequences=4)
    assert found.memory_bytes is not None
    assert found.memory_bytes["slots"] / 1e9 == pytest.approx(94 * 128 * 3 * 4096 * 1536 * 4.5 / 8 / 4 / 1e9, rel=1e-3)
    assert found.memory_bytes["slots"] / 1e9 == pytest.approx(31.9, abs=0.05)


@pytest.mark.parametrize("sequences", [1, 3, 8])
def test_few_tokens_of_mixtral_read_the_experts_they_hit(tmp_path: Path, sequences: int) -> None:
    """B tokens hit N (1 - (1 - k/N)^B) of N experts at random, whose weights are read once."""
    model, cluster = load_model("mixtral-8x7b"), kernels_on(gpus(tmp_path, "dgx-h200", 1), kernels="roofline")
    found = decode(cluster, model, Plan.contiguous(model, cluster), sequences=sequences, steps=16)
    hit = 8 * (1 - 0.75**sequences)
    read_s = hit * 32 * 3 * 4096 * 14336 * 2 / (cluster.hardware.memory_Bps * cluster.hardware.efficiency["memory"])
    assert found.breakdown_s["expert"] == pytest.approx(read_s, rel=0.05)


def test_a_copy_of_all_experts_on_each_node_keeps_tokens_there(tmp_path: Path) -> None:
    """SGLang's static dispatch serves from the own node's replica: no token leaves it."""
    model, cluster = load_model("olmoe-1b-7b"), load_cluster("dgx-h100", nodes=2)
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"physical_to_logical_map": np.tile(np.arange(64), (16, 2)).tolist()}))
    plan = read_any(file, model=model, ep=16)
    assert plan.replica_rule == "fixed"
    found = decode(cluster, model, plan, sequences=16, steps=2)
    assert found.fan_out_domains == 1.0
    assert not any(link["kind"].startswith("nic") for link in found.link_utilisation)
