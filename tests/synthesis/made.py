"""Traces whose routing is known in advance."""

import numpy as np

from moecast.traces import NO_CHOICE, RoutingTrace, TraceMeta


def trace_of(experts_TLK, *, experts, sequences=24, topic_Q=None, topics=(), phase_Q=None, token_id_T=None):
    """A trace of sequences of equal length."""
    tokens, layers, choices = experts_TLK.shape
    length = tokens // sequences
    nothing = np.full(sequences, -1)
    return RoutingTrace(
        meta=TraceMeta(model="made up", layers=layers, experts=experts, choices=choices),
        experts_TLK=experts_TLK.astype(np.uint16),
        sequence_T=np.repeat(np.arange(sequences, dtype=np.uint32), length),
        position_T=np.tile(np.arange(length, dtype=np.uint32), sequences),
        phase_T=np.repeat(np.ones(sequences) if phase_Q is None else phase_Q, length).astype(np.uint8),
        topics=topics,
        topic_T=np.repeat(nothing if topic_Q is None else topic_Q, length).astype(np.int16),
        token_id_T=token_id_T,
    )


def uniform(tokens=2400, layers=4, experts=16, choices=4, *, seed=0, empty=0.0, **more):
    """Every token chooses at random, and leaves a share of its choices empty."""
    rng = np.random.default_rng(seed)
    experts_TLK = rng.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=2)[:, :, :choices]
    experts_TLK[rng.random(experts_TLK.shape) < empty] = NO_CHOICE
    return trace_of(experts_TLK, experts=experts, **more)


def halves(tokens=2400, layers=3, experts=16, choices=2, *, of_topics):
    """Half of the experts in one half of the sequences, the others in the rest: two topics, or early and late."""
    rng = np.random.default_rng(1)
    rows = rng.permuted(np.tile(np.arange(experts // 2), (tokens, layers, 1)), axis=2)[:, :, :choices]
    half_Q = np.arange(24) % 2 if of_topics else np.arange(24) // 12
    rows += (np.repeat(half_Q, tokens // 24) * (experts // 2))[:, None, None]
    if of_topics:
        return trace_of(rows, experts=experts, topic_Q=half_Q, topics=("low", "high"))
    return trace_of(rows, experts=experts)


def paths(tokens=2400, layers=4, experts=8):
    """One choice at each layer, which settles all of the token's others."""
    rng = np.random.default_rng(2)
    next_LE = np.stack([rng.permutation(experts) for _ in range(layers)])
    first_T = rng.integers(experts, size=tokens)
    return trace_of(next_LE[:, first_T].T[:, :, None], experts=experts)
