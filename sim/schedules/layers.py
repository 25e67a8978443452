"""The layers of a pass, as schedules go through them, and a layer in sequence."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.forward import ForwardPass
from moecast.sim.program import Task


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


def layer_in_sequence(step: ForwardPass, layer: int, moe: int | None) -> Iterator[Task]:
    """A hidden layer, part by part; `moe` as of `layers_of`."""
    yield from step.attention(layer)
    if moe is None:
        yield from step.dense_layer(layer)
        return
    yield step.router(moe)
    yield from step.shared_experts(moe)
    yield from step.dispatch(moe)
    yield step.experts(moe)
    yield from step.combine(moe)
