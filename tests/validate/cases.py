"""One small question: a random trace, a model with narrow experts, a plan with replicas on the first GPUs of a node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecast.sim import ModelShape, Plan, Workload
from moecast.sim import Question as WholeQuestion
from moecast.sim.attention_shape import AttentionShape
from moecast.topology import Cluster, load_cluster
from moecast.traces import NO_CHOICE, RoutingTrace, TraceMeta
from tests.sim.plan_cases import shares

LAYERS, EXPERTS, CHOICES = 3, 8, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    cluster: Cluster
    model: ModelShape
    plan: Plan
    trace: RoutingTrace
    workload: Workload

    @property
    def arguments(self) -> tuple[Cluster, ModelShape, Plan, RoutingTrace, Workload]:
        return self.cluster, self.model, self.plan, self.trace, self.workload

    @property
    def whole(self) -> WholeQuestion:
        return WholeQuestion(
            cluster=self.cluster, model=self.model, plan=self.plan, trace=self.trace, workload=self.workload
        )


def question(*, ranks: int, groups: int = 1, rule: str = "round_robin", tokens: int = 40, seed: int = 0) -> Question:
    """Skewed routing with some empty choices; rank 0's experts have replicas on the group's last rank."""
    return Question(
        cluster=load_cluster("dgx-h200"),
        model=model(),
        plan=plan(ranks=ranks, groups=groups, rule=rule),
        trace=trace(tokens=tokens, seed=seed),
        workload=Workload(phase="prefill", tokens_per_rank=tokens // ranks // 2, steps=2, seed=seed),
    )


def model() -> ModelShape:
    return ModelShape(
        name="narrow",
        hidden=24,
        n_layers=LAYERS,
        moe_layer_ids=tuple(range(LAYERS)),
        experts=EXPERTS,
        choices=CHOICES,
        expert_intermediate=12,
        vocab=100,
        attention=AttentionShape(kind="gqa", heads=4, kv_heads=2, head_dim=8, value_dim=8),
    )


def plan(*, ranks: int, groups: int = 1, rule: str = "round_robin") -> Plan:
    ep = ranks // groups
    extra = 2 if ep > 1 else 0
    made = Plan.contiguous(
        layers=LAYERS, experts=EXPERTS, choices=CHOICES, ep=ep, groups=groups, slots_per_rank=-(-EXPERTS // ep) + extra
    )
    slots_DLGP = made.slots_DLGP.copy()
    if extra:
        slots_DLGP[:, :, -1, -extra:] = slots_DLGP[:, :, 0, :extra]
    rising = np.broadcast_to(1.0 + np.arange(slots_DLGP.shape[-1]), slots_DLGP.shape)
    weights = shares(rising, slots_DLGP) if rule == "weights" else None
    return made.with_(slots_DLGP=slots_DLGP, replica_rule=rule, replica_weights_DLGP=weights)


def trace(*, tokens: int, seed: int = 0) -> RoutingTrace:
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(tokens, LAYERS, EXPERTS)) + np.linspace(2, 0, EXPERTS)
    experts_TLK = np.argsort(-score, axis=2)[:, :, :CHOICES].astype(np.uint16)
    experts_TLK[rng.random(experts_TLK.shape) < 0.1] = NO_CHOICE
    return RoutingTrace(
        meta=TraceMeta(model="narrow", layers=LAYERS, experts=EXPERTS, choices=CHOICES),
        experts_TLK=experts_TLK,
        sequence_T=np.arange(tokens, dtype=np.uint32) // 5,
        position_T=np.arange(tokens, dtype=np.uint32) % 5,
        phase_T=np.ones(tokens, np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )
