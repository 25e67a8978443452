"""Two-batch overlap: one half of the tokens computes while the other half's copies are under way."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.forward import ForwardPass
from moecast.sim.program import Task
from moecast.sim.schedules.lay import Chain, TaskList
from moecast.sim.schedules.layers import layers_of


class TwoBatch:
    """Each rank's tokens are cut into two halves whose blocks take turns on its compute stream (SGLang, DeepSeek).

    Prefill: a half's block ends with the start of its dispatch or of its combine, and the other
    half's block runs beside that; shared experts run beside the combine. Decode: a layer is five
    blocks, of which the second half is two behind the first: projections, attention core and
    router, dispatch with the shared experts beside it, experts and combine, and the wait for the
    combine.

    On even work whose halves cost half, a layer takes max(compute, communication), and the step one
    half's communication more at its end. What it costs: experts get half the tokens at a time,
    weights are read twice, and normal kernels take SMs from compute (`moecast.sim.overlap`).

    Source: SGLang, "Deploying DeepSeek with PD disaggregation and large-scale expert parallelism"
    (2025-05) and its ``operations_strategy.py``; DeepSeek-V3, arXiv 2412.19437, 3.4.
    """

    name = "two-batch"
    in_sequence = False

    def supports(self, step: ForwardPass, /) -> str | None:
        """Tokens have a home, and there is something to overlap."""
        if step.placed.mode.stay:
            return "tokens that stay with their experts have no halves"
        return None

    def tasks(self, step: ForwardPass) -> Iterator[Task]:
        """Lay both halves' tasks."""
        tasks = TaskList()
        blocks, behind = (self._decode, 2) if step.step.decodes_only else (self._prefill, 0)
        first, second = (blocks(half, Chain(tasks, microbatch=n)) for n, half in enumerate(step.split(2)))
        take_turns(first, second, behind=behind)
        yield from tasks.tasks

    def _prefill(self, half: ForwardPass, chain: Chain) -> Iterator[None]:
        """Put one half's tasks; each block ends at a yield."""
        if half.model.is_whole:
            chain.put(half.embedding())
        for layer, moe in layers_of(half):
            chain.put(half.attention(layer))
            if moe is None:
                chain.put(half.dense_layer(layer))
                continue
            routed = chain.put(half.router(moe))
            chain.put(half.dispatch(moe))
            yield
            chain.put(half.experts(moe))
            chain.put(half.combine(moe))
            chain.beside(half.shared_experts(moe), after=routed)
            yield
        chain.put(half.head())

    def _decode(self, half: ForwardPass, chain: Chain) -> Iterator[None]:
        """Put one half's tasks; each block ends at a yield."""
        if half.model.is_whole:
            chain.put(half.embedding())
        for layer, moe in layers_of(half):
            chain.put(half.attention_projections(layer))
            yield
            chain.put(half.attention_core(layer))
            if moe is None:
                chain.put(half.dense_layer(layer))
                continue
            routed = chain.put(half.router(moe))
            yield
            chain.put(half.dispatch(moe))
            chain.beside(half.shared_experts(moe), after=routed)
            yield
            chain.put(half.experts(moe))
            chain.put(half.combine(moe))
            yield
            yield  # what the combine brings is waited for in the block after
        chain.put(half.head())


def take_turns(first: Iterator[None], second: Iterator[None], *, behind: int) -> None:
    """Let two halves put a block each in turn, the second `behind` blocks behind the first."""
    more = True
    turn = 0
    while more:
        went = next(first, False) is None
        more = (next(second, False) is None if turn >= behind else True) or went
        turn += 1
