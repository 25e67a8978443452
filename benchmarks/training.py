"""Measured training steps beside the forecast: every row of training.csv with a layout, and the ratios between them.

    python benchmarks/training.py [--rows FILE] [--network bound] [--only SUBSTRING]

Rows are read from ``measured/training.csv`` of the shared data (MOECAST_SHARED). Routing is exactly even, as all of
these runs force it, so one microbatch of one layer stands for all. What a row leaves to its recipe is assumed, and
said.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moecast.sim import ModelShape, Plan, Step, load_model
from moecast.sim.training import BF16, FP8, Recipe, time_training
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace, TraceMeta

Row = Mapping[str, str]

CLUSTERS = {
    "b300 (16 EFA per node of 8)": "p6-b300", "b300": "dgx-b300", "gb300": "gb300-nvl72", "gb200": "gb200-nvl72",
    "h100": "dgx-h100", "b200": "dgx-b200",
}  # fmt: skip
IN_RACK = 64  # GPUs of a 72-GPU domain that jobs of 64, 128, 256 … use
SIMUMAX = {f"{name}, 4 layers (1 dense, 3 MoE)": name for name in ("deepseek-v2", "deepseek-v3")}
DEEPSEEK_V2 = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 5120,
    "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 60, "num_attention_heads": 128,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 160, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1, "vocab_size": 102400, "n_group": 8,
    "topk_group": 3, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
LEAST_RATIO = 0.05
"""Ratios nearer to 1 than this are not judged."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row beside its forecast, in seconds of a step."""

    row: Row
    measured_s: float
    predicted_s: float
    assumed: str
    cpu_s: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted_s / self.measured_s - 1


def whole(row: Row, name: str, default: int = 1) -> int:
    """A number of the row, or what it is where it is empty."""
    return int(row[name]) if row[name] else default


def cluster_of(row: Row) -> Cluster:
    """As many nodes or racks as the row's GPUs fill."""
    name, gpus = CLUSTERS[row["gpu"]], whole(row, "gpus")
    per_node = IN_RACK if "nvl72" in name else 8
    return load_cluster(name, nodes=-(-gpus // per_node))


def model_of(row: Row) -> ModelShape:
    """The row's model; of SimuMax's four layers, one dense."""
    if row["model"] in SIMUMAX:
        name = SIMUMAX[row["model"]]
        config = DEEPSEEK_V2 if name == "deepseek-v2" else {**load_config("deepseek-v3"), "first_k_dense_replace": 1}
        return ModelShape.from_config({**config, "num_hidden_layers": 4}, name=f"{name}, 4 layers")
    return load_model(row["model"])


def load_config(name: str) -> dict[str, object]:
    """DeepSeek-V3's numbers, from the shape that ships."""
    assert name == "deepseek-v3"
    v3 = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 128, "q_lora_rank": 1536,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "vocab_size": 129280,
        "topk_group": 4, "num_key_value_heads": 128,
    }  # fmt: skip
    return {**DEEPSEEK_V2, **v3}


def answer(row: Row, *, network: str, host_s: float | None = None) -> Answer:
    """Forecast one row; `host_s` None: the fitted one."""
    cluster, model = cluster_of(row), model_of(row)
    gpus, tp, pp, cp = (whole(row, name) for name in ("gpus", "tp", "pp", "cp"))
    virtual, ep = whole(row, "vp"), whole(row, "ep")
    plan = Plan.contiguous(model, ep=ep, groups=gpus // (pp * ep)).with_(
        tp=tp, pp=pp, cp=cp, virtual=virtual, dp=0, gpu_of_rank=gpus_of(cluster, gpus), dispatch=dispatch_of(row)
    )
    recipe = replace(recipe_of(row), host_s=host_seconds(row) if host_s is None else host_s)
    trace, step = even_routing(model, dp=plan.dp, tokens=recipe.tokens_of_microbatch, sequence=recipe.sequence)
    began = time.process_time()
    timed = time_training(
        cluster, model, plan, trace, recipe, schedule=schedule_of(row, virtual), steps=[step], network=network
    )
    predicted_s = timed.times.step_time_s
    return Answer(
        row=row,
        measured_s=measured_seconds(row, recipe),
        predicted_s=predicted_s,
        assumed=assumed_of(row),
        cpu_s=time.process_time() - began,
    )


HOST_S = {"AWS": 0.011, "SimuMax": 0.0078}
"""Seconds that a rank of a source's jobs waits for its host in each direction of an MoE layer.

Fitted on rows marked fit. AWS: its four by themselves ask for 11.7 and 19.9 (DeepSeek-V3, DeepEP and NCCL), 10.4 and
7.0 ms (Qwen3-235B, DeepEP, and NCCL overlapped). SimuMax: its two ask for 7.1 and 9.4. Other sources: 0.
"""


def host_seconds(row: Row) -> float:
    """The fitted wait of the system that the row was measured on."""
    return HOST_S.get(row["source"], 0.0)


def gpus_of(cluster: Cluster, gpus: int) -> tuple[int, ...]:
    """The first GPUs of each node; of a rack as many as jobs use."""
    if "nvl72" not in cluster.name:
        return tuple(range(gpus))
    per_rack = cluster.n_gpus // cluster.n_domains
    return tuple(rack * per_rack + gpu for rack in range(cluster.n_domains) for gpu in range(IN_RACK))[:gpus]


def dispatch_of(row: Row) -> str:
    """NCCL's all-to-all where the row says so, else kernels that send a copy to each domain once."""
    return "nccl" if row["dispatcher"].startswith("nccl") else "per_domain"


def schedule_of(row: Row, virtual: int) -> str:
    """1F1B, interleaved where a rank holds several chunks; overlapped where the row says so."""
    if "all-to-all" in row["overlap"]:
        return "1f1b_overlapped"
    return "1f1b" if virtual == 1 else "interleaved_1f1b"


def recipe_of(row: Row) -> Recipe:
    """Sequence, batch, microbatch and precision of the row; Megatron's distributed optimizer."""
    precision = FP8 if "fp8" in row["precision"] else BF16
    return Recipe(
        sequence=whole(row, "seq"), batch=whole(row, "gbs"), microbatch=whole(row, "mbs"), precision=precision, zero=1
    )


def assumed_of(row: Row) -> str:
    """What the row leaves open."""
    parts = []
    if row["dispatcher"] == "as the recipe":
        parts.append("a copy per domain")
    if row["overlap"] == "as the recipe":
        parts.append("no overlap")
    if row["precision"] == "mxfp8":
        parts.append("FP8 by blocks")
    return ", ".join(parts)


def measured_seconds(row: Row, recipe: Recipe) -> float:
    """Seconds of a step, from whatever unit the row has."""
    value = float(row["value"])
    if row["unit"] == "tokens/s/GPU":
        return recipe.batch * recipe.sequence / (value * whole(row, "gpus"))
    return value / 1000 if row["unit"] == "ms/iteration" else value


def even_routing(model: ModelShape, *, dp: int, tokens: int, sequence: int) -> tuple[RoutingTrace, Step]:
    """One layer in which successive tokens take successive experts, and a microbatch of it on every rank."""
    experts, choices = model.experts, model.choices
    n = int(np.lcm(experts, choices)) // choices * 8
    # Far enough apart that a token's choices are of different ranks, as a balanced router's are.
    stride = max(experts // choices, 1)
    first_T = np.arange(n) % experts
    chosen_TK = (first_T[:, None] + stride * np.arange(choices)[None, :]) % experts
    trace = RoutingTrace(
        meta=TraceMeta(model="even", layers=1, experts=experts, choices=choices),
        experts_TLK=chosen_TK[:, None, :].astype(np.uint16),
        sequence_T=np.zeros(n, np.uint32),
        position_T=np.arange(n, dtype=np.uint32),
        phase_T=np.zeros(n, np.uint8),
        topic_T=np.full(n, -1, np.int16),
    )
    total = dp * tokens
    step = Step(
        token_T=np.arange(total) % n,
        source_T=np.repeat(np.arange(dp, dtype=np.int32), tokens),
        context_T=np.arange(total) % sequence + 1,
        phase="prefill",
    )
    return trace, step


def pairs(answers: Sequence[Answer]) -> Iterator[tuple[str, Answer, Answer]]:
    """Rows that differ in one thing: overlap off and on, a microbatch of 1 and of 4."""
    same = (
        "source",
        "model",
        "gpu",
        "gpus",
        "precision",
        "seq",
        "gbs",
        "tp",
        "pp",
        "cp",
        "ep",
        "dispatcher",
        "balance",
    )
    for one in answers:
        for other in answers:
            if any(one.row[name] != other.row[name] for name in same):
                continue
            off, on = one.row["overlap"] == "off", "all-to-all" in other.row["overlap"]
            if off and on and one.row["mbs"] == other.row["mbs"]:
                yield "overlap on / off", one, other
            if one.row["overlap"] == other.row["overlap"] and (one.row["mbs"], other.row["mbs"]) == ("1", "4"):
                yield "microbatch 4 / 1", one, other


def median(errors: Sequence[float]) -> str:
    """The median of the sizes of errors."""
    return f"{100 * float(np.median(np.abs(errors))):.1f} %" if len(errors) else "-"


def main() -> None:
    """Print the rows and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("MOECAST_SHARED", "../shared"))
    parser.add_argument("--rows", type=Path, default=shared / "measured" / "training.csv")
    parser.add_argument("--network", default="bound")
    parser.add_argument("--only", default="")
    parser.add_argument("--no-host-wait", action="store_true", help="Without the one number that is fitted.")
    options = parser.parse_args()
    with options.rows.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if options.only in row["id"]]
    answers = []
    print(f"{'row':<58}{'use':<6}{'measured s':>11}{'predicted s':>12}{'error':>9}{'CPU s':>7}  assumed")
    for row in rows:
        if not row["tp"]:
            print(f"{row['id']:<58}{row['use']:<6}{'no layout':>11}")
            continue
        found = answer(row, network=options.network, host_s=0.0 if options.no_host_wait else None)
        answers.append(found)
        numbers = f"{found.measured_s:>11.3f}{found.predicted_s:>12.3f}{100 * found.error:>+8.1f}%{found.cpu_s:>7.1f}"
        print(f"{row['id']:<58}{row['use']:<6}{numbers}  {found.assumed}", flush=True)
    for use in ("fit", "check"):
        errors = [found.error for found in answers if found.row["use"] == use]
        print(f"{use}: {len(errors)} rows, median error {median(errors)}")
    for source in dict.fromkeys(found.row["source"] for found in answers):
        errors = [found.error for found in answers if found.row["source"] == source]
        print(f"{source}: {len(errors)} rows, errors from {min(errors):+.1%} to {max(errors):+.1%}")
    print(f"\n{'ratio':<20}{'of':<70}{'measured':>9}{'predicted':>10}{'error':>8}")
    errors = []
    for what, one, other in pairs(answers):
        measured, predicted = other.measured_s / one.measured_s, other.predicted_s / one.predicted_s
        judged = abs(measured - 1) > LEAST_RATIO
        errors += [predicted / measured - 1] if judged else []
        error = f"{100 * (predicted / measured - 1):>+7.1f}%" if judged else "   near 1"
        print(f"{what:<20}{other.row['id']:<70}{measured:>9.3f}{predicted:>10.3f}{error}")
    print(f"ratios that differ from 1 by more than {LEAST_RATIO:.0%}: {len(errors)}, median error {median(errors)}")


if __name__ == "__main__":
    main()
