"""The questions: every dispatch mode, phase, rung, replica rule and preset, drawn by number, always the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from moecast.sim import ModelShape, Plan, Workload, kernels_on
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace
from tests.sim.plan_cases import RULES, random_slots, shares

N_QUESTIONS = 400

CLUSTERS = (
    ("dgx-h200", 1, None),
    ("dgx-h200", 2, "leaf-spine:2"),
    ("dgx-h200", 3, "single-switch"),
    ("dgx-h200", 4, "leaf-spine:8"),
    ("dgx-h100", 2, "rail:1"),
    ("dgx-h100", 4, "leaf-spine:1"),
    ("h800-node", 2, None),
    ("hgx-h100-roce", 2, None),
    ("hgx-h100-roce", 4, None),
    ("gb200-nvl72", 1, None),
)

BASE = {
    "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 32000,
    "num_hidden_layers": 3, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": BASE | {
        "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 4096,
    },
    "qwen3": BASE | {
        "model_type": "qwen3_moe", "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 768,
        "intermediate_size": 6144, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "deepseek": {
        "model_type": "deepseek_v3", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
        "q_lora_rank": 512, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 1, "moe_intermediate_size": 512,
        "intermediate_size": 4096, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 8, "topk_group": 4,
        "num_hidden_layers": 3, "vocab_size": 32000,
    },
    "gpt-oss": BASE | {
        "model_type": "gpt_oss", "num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 2048,
        "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}  # fmt: skip
MODES = ("per_choice", "per_rank", "per_domain", "nccl", "stay")
LAWS = ("uniform", "zipf:0.7", "power-law:1.2")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question to `simulate`, in words too."""

    number: int
    preset: str
    cluster: Cluster
    model: ModelShape
    plan: Plan
    trace: RoutingTrace
    workload: Workload
    network: str

    def words(self) -> tuple[str, ...]:
        """What must be covered by enough questions."""
        plan, phase = self.plan, self.workload.phase
        return (
            phase,
            self.network,
            plan.dispatch or "default mode",
            plan.replica_rule,
            self.preset,
            self.model.name,
            f"tp {plan.tp}",
            f"{plan.groups} EP groups",
            self.workload.steps_mode,
            "replicas" if plan.max_slots * plan.ep > plan.experts else "no replicas",
            "every GPU" if plan.ranks == self.cluster.n_gpus else "some GPUs",
            plan.dispatch_type or "default types",
        )


@cache
def _cluster(index: int) -> Cluster:
    preset, nodes, fabric = CLUSTERS[index]
    # These answers are about structure: kernels stay as they were when they were written down.
    return kernels_on(load_cluster(preset, nodes=nodes, fabric=fabric), kernels="roofline")


@cache
def _model(name: str) -> ModelShape:
    return ModelShape.from_config(CONFIGS[name], name=name)


@cache
def _trace(name: str, law: str, phase: str) -> RoutingTrace:
    length = 6 if phase == "decode" else 40
    return routing_by_law(parse_law(law), _model(name), tokens=6000, sequence=length, phase=phase, position=100, seed=1)


def question(number: int) -> Question:
    """The question of this number."""
    rng = np.random.default_rng([17, number])

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    place = int(rng.integers(len(CLUSTERS)))
    cluster = _cluster(place)
    name, phase = pick(*CONFIGS), pick("prefill", "decode")
    model, trace = _model(name), _trace(name, pick(*LAWS), phase)
    n_gpus = cluster.n_gpus
    ep = n_gpus if rng.random() < 0.6 else n_gpus // pick(2, 4)
    groups = pick(1, n_gpus // ep)
    plan = _plan(rng, model, n_gpus, ep=ep, groups=groups, pick=pick)
    dispatch = MODES[number % len(MODES)] if rng.random() < 0.9 else None
    tp = 1 if dispatch == "stay" or rng.random() < 0.6 else int(np.gcd(plan.ranks, pick(2, 4, 8)))
    types = pick(None, None, "fp8", "bf16")
    plan = plan.with_(dispatch=dispatch, tp=tp, dp=plan.ranks // tp, dispatch_type=types, combine_type=types)
    tokens = int(rng.integers(1, max(2, min(40, 1500 // (plan.ranks // tp)))))
    steps = pick(1, 2)
    recorded = rng.random() < 0.15
    if recorded:
        trace = _recorded(rng, trace, ranks=plan.ranks // tp)
    workload = Workload(
        phase=phase,
        tokens_per_rank=tokens,
        steps=steps,
        seed=number,
        reuse=not recorded,
        steps_mode="as-recorded" if recorded else "drawn",
    )
    network = "fluid" if rng.random() < 0.5 else "bound"
    return Question(
        number=number,
        preset=CLUSTERS[place][0],
        cluster=cluster,
        model=model,
        plan=plan,
        trace=trace,
        workload=workload,
        network=network,
    )


def _plan(rng: np.random.Generator, model: ModelShape, n_gpus: int, *, ep: int, groups: int, pick: Any) -> Plan:
    """Contiguous, or anything legal, on GPUs in order or not."""
    if rng.random() < 0.3:
        plan = Plan.contiguous(
            layers=model.layers,
            experts=model.experts,
            choices=model.choices,
            ep=ep,
            groups=groups,
            layer_ids=model.moe_layer_ids,
        )
    else:
        per_rank = -(-model.experts // ep) + pick(0, 1, 2)
        slots = [random_slots(rng, model.experts, ep * per_rank) for _ in range(groups * model.layers)]
        slots_DLGP = np.stack(slots).reshape(groups, model.layers, ep, per_rank)
        rule = pick(*RULES)
        weights = rng.random(slots_DLGP.shape) + 0.01
        plan = Plan(
            experts=model.experts,
            choices=model.choices,
            layer_ids=model.moe_layer_ids,
            slots_DLGP=slots_DLGP,
            gpu_of_rank=tuple(range(groups * ep)),
            replica_rule=rule,
            replica_weights_DLGP=shares(weights, slots_DLGP) if rule == "weights" else None,
        )
    if rng.random() < 0.3:
        plan = plan.with_(gpu_of_rank=tuple(rng.permutation(n_gpus)[: plan.ranks].tolist()))
    return plan


def _recorded(rng: np.random.Generator, trace: RoutingTrace, *, ranks: int) -> RoutingTrace:
    """The trace with steps of uneven sizes, on uneven ranks."""
    rows = trace.select(np.arange(trace.n_tokens) < 1200)
    step_T = np.sort(rng.integers(0, 3, 1200)).astype(np.uint32)
    return RoutingTrace(
        meta=rows.meta,
        experts_TLK=rows.experts_TLK,
        sequence_T=rows.sequence_T,
        position_T=rows.position_T,
        phase_T=rows.phase_T,
        topics=rows.topics,
        topic_T=rows.topic_T,
        step_T=step_T,
        source_rank_T=rng.integers(0, ranks, 1200).astype(np.uint16),
    )
