"""A trace of some of its MoE layers, as a pipeline stage has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecast.traces import RoutingTrace


def trace_of_layers(trace: RoutingTrace, rows: list[int]) -> RoutingTrace:
    """The trace of some MoE layers."""
    if rows == list(range(trace.meta.layers)):
        return trace
    ids = trace.meta.layer_ids
    meta = replace(trace.meta, layers=len(rows), layer_ids=None if ids is None else tuple(ids[row] for row in rows))
    weights = trace.weights_TLK
    return replace(
        trace,
        meta=meta,
        experts_TLK=np.ascontiguousarray(trace.experts_TLK[:, rows]),
        weights_TLK=None if weights is None else np.ascontiguousarray(weights[:, rows]),
    )
