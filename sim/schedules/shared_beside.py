"""Shared experts beside dispatch: what they compute hides part of what dispatch sends."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.forward import ForwardPass
from moecast.sim.program import Task
from moecast.sim.schedules.lay import Chain, TaskList
from moecast.sim.schedules.layers import layers_of


class SharedBeside:
    """The sequential order, but dispatch starts before the shared experts, which run while its copies are under way.

    As SGLang and vLLM do on a second CUDA stream, and Megatron with
    ``--moe-shared-expert-overlap``. On even work a layer takes max(shared, dispatch) instead of
    their sum. Experts have all SMs: only the shared ones run beside dispatch, which normal kernels
    slow no more than they are slowed by its few SMs.
    """

    name = "shared-beside"
    in_sequence = False

    def supports(self, step: ForwardPass, /) -> str | None:
        """A model without shared experts has nothing to put beside."""
        return None if step.model.shared_intermediate else "the model has no shared experts"

    def tasks(self, step: ForwardPass) -> Iterator[Task]:
        """Lay a step's tasks."""
        tasks = TaskList()
        chain = Chain(tasks)
        if step.model.is_whole:
            chain.put(step.embedding())
        for layer, moe in layers_of(step):
            chain.put(step.attention(layer))
            if moe is None:
                chain.put(step.dense_layer(layer))
                continue
            routed = chain.put(step.router(moe))
            chain.put(step.dispatch(moe))
            chain.beside(step.shared_experts(moe), after=routed)
            chain.put(step.experts(moe))
            chain.put(step.combine(moe))
        chain.put(step.head())
        yield from tasks.tasks
