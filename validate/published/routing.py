"""Uniform routing: what benchmarks of kernels draw, since they have no model.

Axes: T token, L MoE layer, E expert, K choice.
"""

from __future__ import annotations

import numpy as np

from moecast.traces import RoutingTrace, TraceMeta


def uniform_trace(*, tokens: int, experts: int, choices: int, layers: int = 1, seed: int = 0) -> RoutingTrace:
    """Draw K different experts for every token and layer, all alike."""
    rng = np.random.default_rng(seed)
    experts_TLK = np.empty((tokens, layers, choices), np.uint16)
    for layer in range(layers):
        score_TE = rng.random((tokens, experts), np.float32)
        experts_TLK[:, layer] = np.argpartition(score_TE, choices, axis=1)[:, :choices]
    return RoutingTrace(
        meta=TraceMeta(model="uniform", layers=layers, experts=experts, choices=choices),
        experts_TLK=experts_TLK,
        sequence_T=np.zeros(tokens, np.uint32),
        position_T=np.arange(tokens, dtype=np.uint32),
        phase_T=np.ones(tokens, np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )
