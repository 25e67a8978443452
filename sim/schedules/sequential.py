"""The sequential schedule: one stage after the other, nothing overlaps."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.forward import ForwardPass
from moecast.sim.program import Task


class Sequential:
    """What engines do without overlap: each layer's attention, then its MLP or its MoE layer, part by part.

    Communication and compute never share a GPU here, so experts have all its SMs.
    """

    name = "sequential"

    def stages(self, step: ForwardPass) -> Iterator[Task]:
        """Order a step's stages; of MoE layers alone where a step of the named model is not what is asked for."""
        model = step.model
        if model.is_whole:
            yield step.embedding()
        moe = 0
        for layer in range(model.n_layers):
            if not model.is_whole and layer not in model.moe_layer_ids:
                continue
            yield from step.attention(layer)
            if layer not in model.moe_layer_ids:
                if layer not in model.no_mlp_layers:
                    yield from step.dense_layer(layer)
                continue
            yield step.router(moe)
            yield from step.shared_experts(moe)
            yield from step.dispatch(moe)
            yield step.experts(moe)
            yield from step.combine(moe)
            moe += 1
        yield from step.head()
