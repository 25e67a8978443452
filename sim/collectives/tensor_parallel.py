"""The exchanges around tensor-parallel attention: consecutive ranks share tokens and split the heads.

Before attention each rank gathers the hidden vectors of the others' tokens; after it, each sends the others its partial
sums of their tokens (a reduce-scatter). Both are direct, as NVLink does them fastest.

Axes: S source rank, D destination rank.
"""

from __future__ import annotations

import numpy as np

from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.sites import Sites


def hidden_template(layout: Sites, tp: int, row_bytes: float) -> FlowTemplate:
    """Lay out the flows between ranks that share tokens; counts are hidden vectors by (source, destination)."""
    ranks = np.arange(layout.n_ranks)
    together = (ranks[:, None] // tp == ranks[None, :] // tp) & (ranks[:, None] != ranks[None, :])
    source, destination = np.nonzero(together)
    return FlowTemplate.of(layout, Legs.direct(source, destination, source * layout.n_ranks + destination), row_bytes)
