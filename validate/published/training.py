"""Training steps that others measured: rows of `training.csv`, asked as questions.

Loads are exactly even, as these runs force them, so one microbatch of one layer stands for all.
What a row leaves to its recipe is assumed, and said.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecast.errors import MoecastError
from moecast.sim import ModelShape, Plan, Step, load_model
from moecast.sim.training import NONE, HostWait, TimedTraining, time_training
from moecast.topology import Cluster, list_presets, load_cluster
from moecast.traces import RoutingTrace, TraceMeta
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.routing import forced_trace
from moecast.validate.published.row import Use
from moecast.validate.published.training_recipe import (
    Fields,
    dispatch_of,
    host_of,
    positive,
    recipe_of,
    recompute_of,
    whole,
)

FAMILY = "training steps"
CLUSTERS = {
    "b300 (16 EFA per node of 8)": "p6-b300", "b300": "dgx-b300", "gb300": "gb300-nvl72", "gb200": "gb200-nvl72",
    "h100": "dgx-h100", "h200": "dgx-h200", "h800": "h800-node", "b200": "dgx-b200",
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
DEEPSEEK_V3 = DEEPSEEK_V2 | {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 128, "q_lora_rank": 1536,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "vocab_size": 129280,
    "topk_group": 4, "num_key_value_heads": 128, "first_k_dense_replace": 1,
}  # fmt: skip


def answer_training(row: Fields, *, network: str = "bound", host: HostWait | None = None) -> RowAnswer:
    """Forecast a row, or say why not; `host` None: the fitted one."""
    use: Use = "fit" if row.get("use") == "fit" else "check"
    names = ("source", "model", "gpu", "gpus", "tp", "pp", "cp", "ep")
    about = {
        "id": row["id"],
        "family": FAMILY,
        "source": row.get("source") or "unknown",
        "use": use,
        "configuration": " ".join(row.get(name) or "-" for name in names),
        "unit": row.get("unit") or "s/iteration",
    }
    value = None
    try:
        value = positive(row, "value")
        check_asked(row)
        published_s = measured_seconds(row)
        predicted_s = predict_seconds(row, network=network, host=host)
    except (MoecastError, ValueError) as error:
        return RowAnswer(why=str(error), published=value, **about)  # type: ignore[arg-type]
    predicted = value * (published_s / predicted_s if is_rate(row) else predicted_s / published_s)
    return RowAnswer(
        published=value,
        published_s=published_s,
        predicted_s=predicted_s,
        predicted=predicted,
        note=assumed_of(row),
        **about,  # type: ignore[arg-type]
    )


def check_asked(row: Fields) -> None:
    """Refuse a row that cannot be asked.

    Raises
    ------
    ValueError
        It has no layout, or leaves out how much is computed.
    """
    if why := unasked(row):
        raise ValueError(why)


def unasked(row: Fields) -> str:
    """Why a row cannot be asked; empty where it can."""
    if not any(row.get(name) for name in ("tp", "pp", "ep")):
        return "no layout: tp, pp and ep are empty"
    missing = [name for name in ("seq", "gbs", "gpus") if not row.get(name)]
    return f"{' and '.join(missing)}: empty" if missing else ""


def predict_seconds(row: Fields, *, network: str = "bound", host: HostWait | None = None) -> float:
    """Seconds of a step; as of `time_row`."""
    return time_row(row, network=network, host=host).times.step_time_s


def time_row(row: Fields, *, network: str = "bound", host: HostWait | None = None) -> TimedTraining:
    """Lay a row's step out and time it; `host` None: the fitted launches and waits.

    Raises
    ------
    MoecastError
        A layout that does not fit the model or its cluster.
    ValueError
        A number that is none.
    """
    cluster, model, recipe = cluster_of(row), model_of(row), recipe_of(row)
    plan = plan_of(row, cluster, model)
    recipe = replace(recipe, host=host_of(row, model) if host is None else host)
    routing = forced_routing if row.get("balance") == "forced" else even_routing
    trace, step = routing(model, dp=plan.dp, tokens=recipe.tokens_of_microbatch, sequence=recipe.sequence)
    schedule = schedule_of(row, plan.virtual)
    return time_training(cluster, model, plan, trace, recipe, schedule=schedule, steps=[step], network=network)


def plan_of(row: Fields, cluster: Cluster, model: ModelShape) -> Plan:
    """The row's layout.

    Raises
    ------
    ValueError
        A number that is none, or GPUs that are no multiple of pp x ep.
    """
    gpus, tp, pp, cp = (whole(row, name) for name in ("gpus", "tp", "pp", "cp"))
    virtual, ep = whole(row, "vp"), whole(row, "ep")
    if gpus % (pp * ep):
        raise ValueError(f"gpus = {gpus}: not a multiple of pp {pp} x ep {ep}")
    return Plan.contiguous(model, ep=ep, groups=gpus // (pp * ep)).with_(
        tp=tp, pp=pp, cp=cp, virtual=virtual, dp=0, gpu_of_rank=gpus_of(cluster, gpus), dispatch=dispatch_of(row)
    )


def cluster_of(row: Fields) -> Cluster:
    """As many nodes or racks as the row's GPUs fill.

    Raises
    ------
    ValueError
        A GPU that nothing is known of.
    """
    presets = [preset.name for preset in list_presets()]
    name = CLUSTERS.get(row["gpu"], row["gpu"])
    if name not in presets:
        raise ValueError(f"gpu = {row['gpu']!r}: one of {', '.join([*CLUSTERS, *presets])}")
    per_node = IN_RACK if "nvl72" in name else 8
    return load_cluster(name, nodes=-(-whole(row, "gpus") // per_node))


def model_of(row: Fields) -> ModelShape:
    """The row's model; of SimuMax's four layers, one dense."""
    if row["model"] in SIMUMAX:
        name = SIMUMAX[row["model"]]
        config = DEEPSEEK_V2 if name == "deepseek-v2" else DEEPSEEK_V3
        return ModelShape.from_config({**config, "num_hidden_layers": 4}, name=f"{name}, 4 layers")
    return load_model(row["model"])


def gpus_of(cluster: Cluster, gpus: int) -> tuple[int, ...]:
    """The first GPUs of each node; of a rack as many as jobs use."""
    if "nvl72" not in cluster.name:
        return tuple(range(gpus))
    per_rack = cluster.n_gpus // cluster.n_domains
    return tuple(rack * per_rack + gpu for rack in range(cluster.n_domains) for gpu in range(IN_RACK))[:gpus]


def schedule_of(row: Fields, virtual: int) -> str:
    """1F1B, interleaved where a rank holds several chunks; overlapped where the row says so."""
    if "all-to-all" in (row.get("overlap") or ""):
        return "1f1b_overlapped"
    return "1f1b" if virtual == 1 else "interleaved_1f1b"


def assumed_of(row: Fields) -> str:
    """What the row leaves open."""
    parts = []
    if row.get("dispatcher") in ("as the recipe", "", None):
        parts.append("a copy per domain")
    if row.get("overlap") in ("as the recipe", "", None):
        parts.append("no overlap")
    if row.get("precision") == "mxfp8":
        parts.append("FP8 by blocks")
    if (again := recompute_of(row)) != NONE:
        parts.append("whole layers again" if again.full else f"{again.name} again")
    return ", ".join(parts)


def is_rate(row: Fields) -> bool:
    """Whether more is faster."""
    return row.get("unit") == "tokens/s/GPU"


def measured_seconds(row: Fields) -> float:
    """Seconds of a step, from whatever unit the row has.

    Raises
    ------
    ValueError
        A unit that is none of those of such rows.
    """
    value, unit = positive(row, "value"), row.get("unit") or "s/iteration"
    if unit == "tokens/s/GPU":
        recipe = recipe_of(row)
        return recipe.batch * recipe.sequence / (value * whole(row, "gpus"))
    scale = {"ms/iteration": 1e-3, "s/iteration": 1.0}
    if unit not in scale:
        raise ValueError(f"unit = {unit!r}: s/iteration, ms/iteration or tokens/s/GPU")
    return value * scale[unit]


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
    return trace, microbatch_of(trace, dp=dp, tokens=tokens, sequence=sequence)


def forced_routing(model: ModelShape, *, dp: int, tokens: int, sequence: int) -> tuple[RoutingTrace, Step]:
    """One layer of a router that draws its scores at random, as Megatron's forced balance does, and a microbatch."""
    trace = forced_trace(
        experts=model.experts,
        choices=model.choices,
        groups=model.expert_groups,
        groups_per_token=model.groups_per_token,
    )
    return trace, microbatch_of(trace, dp=dp, tokens=tokens, sequence=sequence)


def microbatch_of(trace: RoutingTrace, *, dp: int, tokens: int, sequence: int) -> Step:
    """As many tokens on every data-parallel rank, the trace's in turn."""
    total = dp * tokens
    return Step(
        token_T=np.arange(total) % len(trace.experts_TLK),
        source_T=np.repeat(np.arange(dp, dtype=np.int32), tokens),
        context_T=np.arange(total) % sequence + 1,
        phase="prefill",
    )
