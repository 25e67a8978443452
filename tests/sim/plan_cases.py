"""Questions drawn at random: a cluster, a trace, a plan with replicas, holes and repeats, and the tokens of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from moecast.sim import DISPATCH_MODES, REPLICA_RULES, ModelShape, Plan, Step
from moecast.sim.attention_shape import AttentionShape
from moecast.topology import Cluster
from moecast.traces import PHASES, RoutingTrace, TraceMeta
from tests.strategies import traces
from tests.topology.clusters import clusters

MODE_OR_DEFAULT = (None, *DISPATCH_MODES)
RULES = tuple(rule for rule in REPLICA_RULES if rule != "lplb")  # by what the source did; lplb: test_lplb.py


@dataclass(frozen=True, kw_only=True)
class Question:
    cluster: Cluster
    model: ModelShape
    plan: Plan
    trace: RoutingTrace
    step: Step


def tiny_model(trace: RoutingTrace, *, dense_layers: int = 1, shared: int = 0, window: int | None = None) -> ModelShape:
    """A model that has the trace's routing; its last layer is an MoE layer."""
    ids = tuple(range(dense_layers, dense_layers + trace.meta.layers))
    return ModelShape(
        name="tiny",
        hidden=256,
        n_layers=dense_layers + trace.meta.layers,
        moe_layer_ids=ids,
        experts=trace.meta.experts,
        choices=trace.meta.choices,
        expert_intermediate=128,
        shared_experts=shared,
        shared_intermediate=128 * shared,
        dense_intermediate=512,
        vocab=1000,
        attention=AttentionShape(
            kind="gqa",
            heads=8,
            kv_heads=2,
            head_dim=32,
            value_dim=32,
            window=window,
            windowed_layers=() if window is None else ids,
        ),
    )


@st.composite
def questions(
    draw: st.DrawFn,
    *,
    modes: tuple[str | None, ...] = DISPATCH_MODES,
    rules: tuple[str, ...] = RULES,
    phases: tuple[str, ...] = ("prefill", "decode"),
    routing: str | None = None,
    tokens: tuple[int, int] = (1, 40),
) -> Question:
    """A whole question about one step."""
    cluster = draw(clusters(routing=routing, max_domains=3))
    trace = draw(traces(layers=(1, 3), tokens=tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    plan = draw(plans(trace, n_gpus=cluster.n_gpus, rng=rng, modes=modes, rules=rules))
    phase = draw(st.sampled_from(phases))
    n = draw(st.integers(1, trace.n_tokens))
    step = random_step(rng, trace, ranks=plan.ranks, tokens=n, phase=phase)
    model = tiny_model(
        trace,
        dense_layers=draw(st.integers(0, 1)),
        shared=draw(st.integers(0, 1)),
        window=draw(st.sampled_from([None, 8])),
    )
    return Question(cluster=cluster, model=model, plan=plan, trace=trace, step=step)


def random_step(rng: np.random.Generator, trace: RoutingTrace, *, ranks: int, tokens: int, phase: str) -> Step:
    """Any tokens, repeats too, on any ranks."""
    token_T = rng.integers(0, trace.n_tokens, tokens)
    source_T = np.sort(rng.integers(0, ranks, tokens)).astype(np.int32)
    return Step(
        token_T=token_T,
        source_T=source_T,
        context_T=trace.position_T[token_T].astype(np.int64) + 1,
        phase=phase,
        last_T=rng.random(tokens) < 0.3 if phase == "prefill" else None,
    )


@st.composite
def plans(
    draw: st.DrawFn,
    trace: RoutingTrace,
    *,
    n_gpus: int,
    rng: np.random.Generator,
    modes: tuple[str | None, ...] = DISPATCH_MODES,
    rules: tuple[str, ...] = RULES,
) -> Plan:
    """A legal plan for a trace on any of the GPUs."""
    groups = draw(st.integers(1, min(2, n_gpus)))
    ep = draw(st.integers(1, n_gpus // groups))
    experts, layers = trace.meta.experts, trace.meta.layers
    per_rank = -(-experts // ep) + draw(st.integers(0, 2))
    slots_DLGP = np.stack([random_slots(rng, experts, ep * per_rank) for _ in range(groups * layers)]).reshape(
        groups, layers, ep, per_rank
    )
    rule = draw(st.sampled_from(rules))
    weights = rng.random(slots_DLGP.shape) * (rng.random(slots_DLGP.shape) < 0.8)
    return Plan(
        experts=experts,
        choices=trace.meta.choices,
        layer_ids=tuple(range(layers)),
        slots_DLGP=slots_DLGP,
        gpu_of_rank=tuple(rng.permutation(n_gpus)[: groups * ep].tolist()),
        replica_rule=rule,
        replica_weights_DLGP=shares(weights, slots_DLGP) if rule == "weights" else None,
        dispatch=draw(st.sampled_from(modes)),
    )


def shares(weights_DLGP: np.ndarray, slots_DLGP: np.ndarray) -> np.ndarray:
    """Scale the weights of each expert's replicas so that they sum to 1; those that are all 0 stay so."""
    shares_DLGP = np.where(slots_DLGP < 0, 0.0, weights_DLGP)
    for group, layer in np.ndindex(slots_DLGP.shape[:2]):
        for expert in range(slots_DLGP.max() + 1):
            held = slots_DLGP[group, layer] == expert
            shares_DLGP[group, layer][held] /= shares_DLGP[group, layer][held].sum() or 1.0
    return shares_DLGP


def random_slots(rng: np.random.Generator, experts: int, slots: int) -> np.ndarray:
    """Every expert once, the other slots anything: replicas, repeats on a rank, or empty."""
    filled = np.concatenate([np.arange(experts), rng.integers(-1, experts, slots - experts)])
    return rng.permutation(filled).astype(np.int32)


def small_trace(
    *, tokens: int = 6000, layers: int = 3, experts: int = 16, choices: int = 2, seed: int = 0, topics: int = 2
) -> RoutingTrace:
    """Prefill and decode rows of sequences of 20 tokens, skewed routing."""
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(tokens, layers, experts)) + rng.normal(size=(layers, experts))
    sequence_T = np.arange(tokens) // 20
    return RoutingTrace(
        meta=TraceMeta(model="random", layers=layers, experts=experts, choices=choices),
        experts_TLK=np.argsort(-score, axis=2)[:, :, :choices].astype(np.uint16),
        sequence_T=sequence_T.astype(np.uint32),
        position_T=(np.arange(tokens) % 20).astype(np.uint32),
        phase_T=np.where(sequence_T % 2, PHASES.index("decode"), PHASES.index("prefill")).astype(np.uint8),
        topics=tuple(f"topic-{i}" for i in range(topics)),
        topic_T=(sequence_T // 2 % topics).astype(np.int16),
    )


def contiguous(**changes: object) -> Plan:
    """`small_trace`'s plan on 16 ranks, two slots each."""
    return Plan.contiguous(layers=3, experts=16, choices=2, ep=16, slots_per_rank=2).with_(**changes)
