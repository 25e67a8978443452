"""The layers of a pass, as schedules go through them."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.forward import ForwardPass


def layers_of(step: ForwardPass) -> Iterator[tuple[int, int | None]]:
    """Each hidden layer with its place among the MoE layers, None for one that is not MoE.

    Of MoE layers alone where a step of the named model is not what is asked for.
    """
    moe = 0
    for layer in range(step.model.n_layers):
        if layer in step.model.moe_layer_ids:
            yield layer, moe
            moe += 1
        elif step.model.is_whole:
            yield layer, None
