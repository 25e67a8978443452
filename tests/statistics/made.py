"""Traces made to have a known property, for statistics with closed forms."""

import numpy as np

from moecast.traces import RoutingTrace, TraceMeta


def trace_of(experts_TLK, *, experts, lengths=None, topics=(), topic_Q=None, ids_T=None, meta=None, **changes):
    """A trace of sequences of these lengths (one of all tokens by default)."""
    ids = np.asarray(experts_TLK, np.uint16)
    lengths = [len(ids)] if lengths is None else lengths
    sequence_T = np.repeat(np.arange(len(lengths)), lengths)
    columns = {
        "meta": meta or TraceMeta(model="made", layers=ids.shape[1], experts=experts, choices=ids.shape[2]),
        "experts_TLK": ids,
        "sequence_T": sequence_T.astype(np.uint32),
        "position_T": np.concatenate([np.arange(length) for length in lengths]).astype(np.uint32),
        "phase_T": np.ones(len(ids), np.uint8),
        "topics": topics,
        "topic_T": np.full(len(ids), -1, np.int16) if topic_Q is None else np.asarray(topic_Q, np.int16)[sequence_T],
        "token_id_T": None if ids_T is None else np.asarray(ids_T, np.int32),
    }
    return RoutingTrace(**(columns | changes))


def uniform(tokens, layers, experts, choices, *, seed=0):
    """Choices drawn evenly, each token and layer apart from all others: uint16 [T, L, K]."""
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, layers, experts)), axis=2)[:, :, :choices].astype(np.uint16)


def by_id(ids_T, layers, experts, choices, *, seed=0):
    """The same choices wherever a token id comes again."""
    table = uniform(int(np.max(ids_T)) + 1, layers, experts, choices, seed=seed)
    return table[np.asarray(ids_T)]


def batches(trace, step):
    """Cut into batches of so many tokens."""
    return (trace.select(slice(start, start + step)) for start in range(0, trace.n_tokens, step))
