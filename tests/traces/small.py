"""A trace written out by hand, without hypothesis, so that subprocesses start fast."""

import numpy as np

from moecast.traces import RoutingTrace, TraceMeta


def small(tokens=4, layers=2, experts=4, choices=2, **changes):
    meta = TraceMeta(model="m", layers=layers, experts=experts, choices=choices)
    row = np.arange(choices, dtype=np.uint16)
    columns = {
        "meta": meta,
        "experts_TLK": np.tile(row, (tokens, layers, 1)),
        "sequence_T": np.arange(tokens, dtype=np.uint32),
        "position_T": np.zeros(tokens, np.uint32),
        "phase_T": np.ones(tokens, np.uint8),
        "topic_T": np.full(tokens, -1, np.int16),
    }
    return RoutingTrace(**(columns | changes))
