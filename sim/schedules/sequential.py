"""The sequential schedule: one task after the other, nothing overlaps."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.forward import ForwardPass
from moecast.sim.program import Task
from moecast.sim.schedules.lay import settled
from moecast.sim.schedules.layers import layer_in_sequence, layers_of


class Sequential:
    """What engines do without overlap: each layer's attention, then its MLP or its MoE layer, part by part.

    Communication and compute never share a GPU here, so experts have all its SMs.
    """

    name = "sequential"
    in_sequence = True

    def supports(self, _step: ForwardPass, /) -> str | None:
        """Everything that can be simulated."""
        return None

    def tasks(self, step: ForwardPass) -> Iterator[Task]:
        """Order a step's tasks."""
        yield from settled(self._in_order(step))

    def _in_order(self, step: ForwardPass) -> Iterator[Task]:
        if step.model.is_whole:
            yield step.embedding()
        for layer, moe in layers_of(step):
            yield from layer_in_sequence(step, layer, moe)
        yield from step.head()
