"""The cells of a pipeline as tasks on streams.

A cell's tasks stand one after another on its ranks' compute stream, exchanges too, as an engine without overlap runs
them. Of a pair of cells, dispatch and combine of the one stand on the stream "communication", under what the other
computes. What a cell gives to another rank of the pipeline travels on no stream, under whatever comes next there.

A lowering gives tasks their ranks, streams and what they wait for. How long they take is the work's alone.

Axes: R rank of a task, C chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.template import CountedFlows
from moecast.sim.network.links import narrowest_links
from moecast.sim.program import COMMUNICATION, COMPUTE, CONTEXT, Compute, Exchange, Float, Int, Task
from moecast.sim.schedules.lay import places_behind
from moecast.sim.schedules.pipeline.cells import Cell, Pair
from moecast.sim.schedules.pipeline.order import PipelineOrder, given

Int32 = npt.NDArray[np.int32]

OVERLAPPED = ("dispatch", "combine")
"""What travels under the other cell of a pair."""


class StageWork(Protocol):
    """The work of one chunk, layer by layer; tasks are of all its ranks, in order.

    `beside`: work that runs beside the communication of another microbatch.
    """

    @property
    def ranks_R(self) -> Int32:
        """Its ranks in the program."""

    @property
    def layers(self) -> Sequence[int]:
        """Its layers, as the methods below count them."""

    def forward(self, microbatch: int, layer: int, *, beside: bool = False) -> Iterable[Task]:
        """Forward through one layer."""

    def backward(self, microbatch: int, layer: int, *, weights: bool, beside: bool = False) -> Iterable[Task]:
        """Input gradients of one layer, with `weights` its weight gradients too."""

    def weights(self, microbatch: int, layer: int, *, beside: bool = False) -> Iterable[Compute]:
        """Weight gradients of one layer."""


class Sends(Protocol):
    """What chunks on different ranks of the pipeline send each other."""

    def __call__(self, source: int, destination: int, microbatch: int) -> Exchange:
        """Give the exchange from one chunk to another; its ranks are the source's, then the destination's."""


def lower(order: PipelineOrder, works: Sequence[StageWork], sends: Sends) -> list[Task]:
    """Lay all cells of a pipeline, each behind what it works on.

    Parameters
    ----------
    order
        What each rank of the pipeline does.
    works
        The work of each chunk [C].
    sends
        What a microbatch's forward, or its gradient, is from chunk to chunk.
    """
    lowering = _Lowering(order, works, sends)
    for _, block in order.merged():
        if isinstance(block, Pair):
            lowering.pair(block)
        else:
            lowering.cell(block)
    return lowering.tasks


@dataclass(frozen=True, slots=True)
class _Step:
    """One task of a cell; a loose one holds nobody up but its stream."""

    task: Task
    loose: bool = False

    @property
    def travels(self) -> bool:
        return isinstance(self.task, Exchange) and self.task.kind in OVERLAPPED


class _Lowering:
    """The tasks of a pipeline in the making."""

    def __init__(self, order: PipelineOrder, works: Sequence[StageWork], sends: Sends) -> None:
        self.tasks: list[Task] = []
        self._order, self._works, self._sends = order, works, sends
        rank_C = order.chunks.rank_C
        first_C = [rank_C.index(rank) for rank in rank_C]  # chunks of one rank share an array: `bound` tells by it
        self._ranks_C = [works[chunk].ranks_R for chunk in first_C]
        self._both: dict[tuple[int, int], Int32] = {}
        self._brought: dict[
            Cell, tuple[int, ...]
        ] = {}  # the tasks that bring what a cell gives to where it is worked on

    def cell(self, cell: Cell) -> None:
        """Put a cell's tasks, one after another."""
        last = self._needs(cell)
        for task in cell_tasks(self._works[cell.chunk], cell):
            last = self._put(task, cell, stream=COMPUTE, after=last)
        self._give(cell, last)

    def pair(self, pair: Pair) -> None:
        """Put both cells' parts in turn, the backward's first.

        On DeepSeek-V3's layers this is the order of figure 4 of arXiv 2412.19437: the forward's dispatch runs under the
        backward of the experts, their dispatch gradient under the forward's experts, its combine under the backward of
        attention, and the gradient of the next combine under the forward's attention.
        """
        parts = {
            pair.backward: _parts(_split_backward(self._works[pair.backward.chunk], pair.backward)),
            pair.forward: _parts(_beside_forward(self._works[pair.forward.chunk], pair.forward)),
        }
        last = {cell: self._needs(cell) for cell in parts}
        for turn in zip_longest(*parts.values(), fillvalue=()):
            for cell, steps in zip(parts, turn, strict=True):
                last[cell] = self._put_part(steps, cell, last[cell])
        for cell in parts:
            self._give(cell, last[cell])

    def _put_part(self, steps: Iterable[_Step], cell: Cell, last: tuple[int, ...]) -> tuple[int, ...]:
        for step in steps:
            put = self._put(step.task, cell, stream=COMMUNICATION if step.travels else COMPUTE, after=last)
            last = last if step.loose else put
        return last

    def _put(self, task: Task, cell: Cell, *, stream: str, after: tuple[int, ...]) -> tuple[int, ...]:
        ranks_R = self._ranks_C[cell.chunk] if self._order.chunks.n_ranks > 1 else None
        there = None if task.stream is None else stream  # what waits on no stream holds up its own cell alone
        if task.behind is not None:
            after = places_behind(task, len(self.tasks))
            there = CONTEXT if task.stream == CONTEXT else there
        self.tasks.append(
            replace(task, ranks_R=ranks_R, stream=there, after=after, behind=None, microbatch=cell.microbatch)
        )
        return (len(self.tasks) - 1,)

    def _needs(self, cell: Cell) -> tuple[int, ...]:
        return tuple(sorted({place for need in self._order.needs(cell) for place in self._brought[need]}))

    def _give(self, cell: Cell, last: tuple[int, ...]) -> None:
        """Bring what a cell gives to the chunk that works on it, which may be another rank's."""
        result, chunks = given(cell), self._order.chunks
        if result.kind != "W":
            to = (chunks.behind_C if result.kind == "F" else chunks.before_C)[cell.chunk]
            if to >= 0 and chunks.rank_C[to] != chunks.rank_C[cell.chunk]:
                last = self._send(cell, to, after=last)
        self._brought[result] = last

    def _send(self, cell: Cell, to: int, *, after: tuple[int, ...]) -> tuple[int, ...]:
        ends = cell.chunk, to
        if ends not in self._both:
            self._both[ends] = np.concatenate([self._ranks_C[chunk] for chunk in ends])
        exchange = self._sends(*ends, cell.microbatch)
        self.tasks.append(
            replace(exchange, ranks_R=self._both[ends], stream=None, after=after, microbatch=cell.microbatch)
        )
        return (len(self.tasks) - 1,)


def cell_tasks(work: StageWork, cell: Cell) -> Iterator[Task]:
    """Give a cell's tasks in order: layer by layer, backward from the last."""
    for layer in work.layers if cell.kind == "F" else reversed(work.layers):
        if cell.kind == "F":
            yield from work.forward(cell.microbatch, layer)
        elif cell.kind == "W":
            yield from work.weights(cell.microbatch, layer)
        else:
            yield from work.backward(cell.microbatch, layer, weights=cell.kind == "BW")


def _beside_forward(work: StageWork, cell: Cell) -> Iterator[_Step]:
    for layer in work.layers:
        yield from map(_Step, work.forward(cell.microbatch, layer, beside=True))


def _split_backward(work: StageWork, cell: Cell) -> Iterator[_Step]:
    """A backward whose weight gradients hold up nothing that is sent.

    Those of the experts and what is beside them are computed while the gradient of their dispatch travels, those of
    attention at the layer's end.
    """
    for layer in reversed(work.layers):
        inputs = [_Step(task) for task in work.backward(cell.microbatch, layer, weights=False, beside=True)]
        weights = [_Step(task, loose=True) for task in work.weights(cell.microbatch, layer, beside=True)]
        sent = max((place for place, step in enumerate(inputs) if step.travels), default=len(inputs))
        yield from inputs[:sent]
        yield from (step for step in weights if step.task.kind != "attention")
        yield from inputs[sent:]
        yield from (step for step in weights if step.task.kind == "attention")


def _parts(steps: Iterable[_Step]) -> Iterator[tuple[_Step, ...]]:
    """Cut a cell's tasks behind each dispatch and each combine."""
    part: list[_Step] = []
    for step in steps:
        if part and part[-1].travels and not step.travels:
            yield tuple(part)
            part = []
        part.append(step)
    yield tuple(part)


def on_narrowest(tasks: Sequence[Task], capacity_J: Float) -> tuple[list[Task], Int]:
    """Leave out of all paths the links that are not the narrowest of their row; see `narrowest_links`.

    Also gives for each link [J] the narrowest of its row. What many exchanges share is looked at once.
    """
    counted = [task.flows for task in tasks if isinstance(task, Exchange) and isinstance(task.flows, CountedFlows)]
    wide = {id(flows.template): flows.template for flows in counted}
    narrowest_J = narrowest_links((template.paths for template in wide.values()), capacity_J)
    narrow = {key: template.on_narrowest(narrowest_J) for key, template in wide.items()}

    def narrowed(task: Task) -> Task:
        if isinstance(task, Exchange) and isinstance(task.flows, CountedFlows):
            return replace(task, flows=narrow[id(task.flows.template)].counted(task.flows.counts_C))
        return task

    return [narrowed(task) for task in tasks], narrowest_J
