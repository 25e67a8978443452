"""Chunked MoE layers: dispatch, experts and combine of parts of the tokens, one part behind the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moecast.sim.forward import ForwardPass
from moecast.sim.program import Task
from moecast.sim.schedules.lay import Chain, TaskList
from moecast.sim.schedules.layers import layers_of
from moecast.sim.schedules.sequential import Sequential

MOST_DEGREE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class InChunks:
    """What schedules of MoE layers in `degree` chunks of tokens have in common.

    Raises
    ------
    ValueError
        A degree that is not from 1 to 64.
    """

    degree: int

    def __post_init__(self) -> None:
        if not 1 <= self.degree <= MOST_DEGREE:
            raise ValueError(f"degree = {self.degree}: must be from 1 to {MOST_DEGREE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunked(InChunks):
    """Attention for all tokens, then the MoE layer in `degree` chunks, whose copies travel beside experts (Tutel).

    On even work without fixed costs, chunks that send s and compute e seconds each take s + d
    max(s, e) + e at least and, when dispatch and combine share the communication stream, 2 s +
    max(d e, 2 (d - 1) s) at most; degree 1 is the sequential order. Each chunk pays its launches
    again, and experts read their weights once a chunk.

    Source: Tutel, arXiv 2206.03382, 4.3 (adaptive pipelining); FasterMoE, PPoPP 2022.
    """

    @property
    def name(self) -> str:
        """``chunked:`` and the degree."""
        return f"chunked:{self.degree}"

    @property
    def in_sequence(self) -> bool:
        """Whether there is one chunk."""
        return self.degree == 1

    def supports(self, step: ForwardPass, /) -> str | None:
        """Tokens come home between layers."""
        return "tokens that stay with their experts have no chunks" if step.placed.mode.stay else None

    def tasks(self, step: ForwardPass) -> Iterator[Task]:
        """Lay a step's tasks."""
        if self.degree == 1:  # nothing stands beside anything, so nothing pays for an overlap
            yield from Sequential().tasks(step)
            return
        tasks = TaskList()
        whole = Chain(tasks)
        parts = step.split(self.degree)
        if step.model.is_whole:
            whole.put(step.embedding())
        for layer, moe in layers_of(step):
            whole.put(step.attention(layer))
            if moe is None:
                whole.put(step.dense_layer(layer))
                continue
            routed = whole.put(step.router(moe))
            chunks = [Chain(tasks, microbatch=number, last=routed) for number in range(self.degree)]
            for chunk, part in zip(chunks, parts, strict=True):
                chunk.put(part.dispatch(moe))
            whole.beside(step.shared_experts(moe), after=routed)
            for chunk, part in zip(chunks, parts, strict=True):
                chunk.put(part.experts(moe))
                chunk.put(part.combine(moe))
            whole.join(chunks)
        whole.put(step.head())
        yield from tasks.tasks
