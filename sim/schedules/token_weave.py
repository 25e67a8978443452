"""TokenWeave: one half of the tokens computes while the other half's sums are all-reduced and normalised."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.forward import ForwardPass
from moecast.sim.program import COMMUNICATION, Task
from moecast.sim.schedules.lay import Chain, TaskList
from moecast.sim.schedules.layers import layers_of
from moecast.sim.schedules.two_batch import take_turns


class TokenWeave:
    """Each group's tokens are cut into two halves, whose attention and MLP take turns on the compute stream.

    A half's sums are added up in the NVLink switch, where there is one, by a kernel on few SMs that
    also normalises them, each rank its part of the tokens; the other half computes beside it.
    Experts that are not cut by width dispatch and combine there, and their tokens are normalised at
    home.

    On even work whose halves cost half, with a and m seconds of attention and MLP and s of a sum
    and its norm, it takes layers x (a + m) + s / 2 where compute is longer (a, m >= s), and layers
    x 2 s + a / 2 where sums are. Experts read their weights twice. Halves are equal: cuts that fill
    whole waves are not modelled.

    Source: TokenWeave, arXiv 2505.11329.
    """

    name = "token-weave"
    in_sequence = False

    def supports(self, step: ForwardPass, /) -> str | None:
        """There are sums to hide."""
        if not step.placed.sum_choices:
            return "needs ranks that share tokens and keep all of them: tp > 1, without sequence parallelism"
        return None

    def tasks(self, step: ForwardPass) -> Iterator[Task]:
        """Lay both halves' tasks."""
        tasks = TaskList()
        first, second = (
            self._blocks(half, Chain(tasks, microbatch=n)) for n, half in enumerate(step.split(2, fused=True))
        )
        take_turns(first, second, behind=0)
        yield from tasks.tasks

    def _blocks(self, half: ForwardPass, chain: Chain) -> Iterator[None]:
        """Put one half's tasks; each block ends at a yield."""
        if half.model.is_whole:
            chain.put(half.embedding())
        for layer, moe in layers_of(half):
            chain.put(half.attention(layer, norms=False))
            chain.put(half.norm(layer), stream=COMMUNICATION)
            yield
            if moe is None:
                chain.put(half.dense_layer(layer))
            else:
                chain.put(half.router(moe))
                chain.put(half.shared_experts(moe))
                chain.put(half.dispatch(moe))
                chain.put(half.experts(moe))
                chain.put(half.combine(moe))
            fused = moe is None or half.placed.experts_are_summed
            chain.put(half.norm(layer), stream=COMMUNICATION if fused else None)
            yield
        chain.put(half.head())
