"""The cells of a pipeline as tasks on streams.

A cell's tasks stand one after another on its ranks' compute stream, exchanges too, as an engine
without overlap runs them. Of a pair of cells, dispatch and combine of the one stand on the stream
"communication", under what the other computes. What a cell gives to another rank of the pipeline
travels on no stream, under whatever comes next there. Gradients and parameters that are sent beside
the passes (`companions`) have streams of their own.

A lowering gives tasks their ranks, streams and what they wait for. How long they take is the work's
alone.

Axes: R rank of a task, C chunk.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.template import CountedFlows
from moecast.sim.network.links import narrowest_links
from moecast.sim.program import COMMUNICATION, COMPUTE, HOST, Compute, Exchange, Float, Int, Task
from moecast.sim.schedules.fsmoe_training import turn_of
from moecast.sim.schedules.pipeline.cells import Beside, Cell, Pair
from moecast.sim.schedules.pipeline.companions import Companions, Nothing, Spot
from moecast.sim.schedules.pipeline.order import PipelineOrder, given

Int32 = npt.NDArray[np.int32]

OVERLAPPED = ("dispatch", "combine")
"""What travels under the other cell of a pair."""


class StageWork(Protocol):
    """The work of one chunk, layer by layer; tasks are of all its ranks, in order."""

    @property
    def ranks_R(self) -> Int32:
        """Its ranks in the program."""

    @property
    def layers(self) -> Sequence[int]:
        """Its layers, as the methods below count them."""

    def forward(self, microbatch: int, layer: int, *, beside: Beside = "nothing") -> Iterable[Task]:
        """Forward through one layer."""

    def backward(self, microbatch: int, layer: int, *, weights: bool, beside: Beside = "nothing") -> Iterable[Task]:
        """Input gradients of one layer, with `weights` its weight gradients too."""

    def weights(self, microbatch: int, layer: int, *, beside: Beside = "nothing") -> Iterable[Compute]:
        """Weight gradients of one layer."""


class Sends(Protocol):
    """What chunks on different ranks of the pipeline send each other."""

    def __call__(self, source: int, destination: int, microbatch: int) -> Exchange:
        """Give the exchange from one chunk to another; its ranks are the source's, then the destination's."""


def lower(
    order: PipelineOrder, works: Sequence[StageWork], sends: Sends, companions: Companions | None = None
) -> list[Task]:
    """Lay all cells of a pipeline, each behind what it works on.

    Parameters
    ----------
    order
        What each rank of the pipeline does.
    works
        The work of each chunk [C].
    sends
        What a microbatch's forward, or its gradient, is from chunk to chunk.
    companions
        What is sent beside the passes; None: nothing.
    """
    lowering = _Lowering(order, works, sends, companions or Nothing())
    for _, block in order.merged():
        if isinstance(block, Pair):
            lowering.pair(block)
        else:
            lowering.cell(block)
    return lowering.tasks


@dataclass(frozen=True, slots=True)
class _Step:
    """One task of a cell; a loose one holds nobody up but its stream.

    It may be the first task of the cell in its layer, or the last one; the first that comes back
    between domains, or the last one there.
    """

    task: Task
    layer: int
    loose: bool = False
    opens: bool = False
    closes: bool = False
    turns: bool = False
    rests: bool = False

    @property
    def travels(self) -> bool:
        return isinstance(self.task, Exchange) and self.task.kind in OVERLAPPED


@dataclass(slots=True)
class _Layer:
    """A cell's tasks of a layer as far as they have been put, and what the first of them waits for."""

    before: tuple[int, ...]
    places: list[int] = field(default_factory=list)

    def behind(self, task: Task, last: tuple[int, ...]) -> tuple[int, ...]:
        """What a task waits for: what it names by how far before it that stands in the layer, or else `last`."""
        if task.behind is None:
            return last
        at = [len(self.places) - back for back in task.behind]
        return tuple(sorted({*(self.places[place] for place in at if place >= 0), *self._early(min(at, default=0))}))

    def _early(self, place: int) -> tuple[int, ...]:
        return self.before if place < 0 else ()


class _Lowering:
    """The tasks of a pipeline in the making."""

    def __init__(self, order: PipelineOrder, works: Sequence[StageWork], sends: Sends, companions: Companions) -> None:
        self.tasks: list[Task] = []
        self._order, self._works, self._sends, self._companions = order, works, sends, companions
        rank_C = order.chunks.rank_C
        # chunks of one rank share an array: `bound` tells by it
        first_C = [rank_C.index(rank) for rank in rank_C]
        self._ranks_C = [works[chunk].ranks_R for chunk in first_C]
        self._both: dict[tuple[int, int], Int32] = {}
        # the tasks that bring what a cell gives to where it is worked on
        self._brought: dict[Cell, tuple[int, ...]] = {}
        self._companion_at: dict[Hashable, int] = {}
        self._layer_of: dict[Cell, _Layer] = {}

    def cell(self, cell: Cell) -> None:
        """Put a cell's tasks, one after another."""
        work, last = self._works[cell.chunk], self._needs(cell)
        for layer in layers_of(work, cell):
            beside: Beside = "collectives" if self._companions.slow(cell, layer) else "nothing"
            tasks = layer_tasks(work, cell, layer, beside=beside)
            steps = _of_layer(_Step(task, layer) for task in tasks)
            last = self._put_all(steps, cell, last, travelling=COMPUTE)
        self._give(cell, last)

    def pair(self, pair: Pair) -> None:
        """Put both cells' parts in turn, the backward's first.

        On DeepSeek-V3's layers this is the order of figure 4 of arXiv 2412.19437: the forward's
        dispatch runs under the backward of the experts, their dispatch gradient under the forward's
        experts, its combine under the backward of attention, and the gradient of the next combine
        under the forward's attention.
        """
        parts = {
            pair.backward: _parts(_split_backward(self._works[pair.backward.chunk], pair.backward)),
            pair.forward: _parts(_beside_forward(self._works[pair.forward.chunk], pair.forward)),
        }
        last = {cell: self._needs(cell) for cell in parts}
        for turn in zip_longest(*parts.values(), fillvalue=()):
            for cell, steps in zip(parts, turn, strict=True):
                last[cell] = self._put_all(steps, cell, last[cell], travelling=COMMUNICATION)
        for cell in parts:
            self._give(cell, last[cell])

    def _put_all(
        self, steps: Iterable[_Step], cell: Cell, last: tuple[int, ...], *, travelling: str
    ) -> tuple[int, ...]:
        for step in steps:
            if step.opens:
                last = self._open(cell, step.layer, last)
                self._layer_of[cell] = _Layer(before=last)
            layer = self._layer_of[cell]
            if step.turns:
                self._beside(cell, step.layer, "turn", layer.before)
            stream = travelling if step.travels else COMPUTE
            put = self._put(step.task, cell, stream=stream, after=layer.behind(step.task, last))
            layer.places.append(put[0])
            # what a host does holds up what comes next beside what stands before it
            last = last if step.loose else (*last, *put) if step.task.stream == HOST else put
            if step.rests:
                self._beside(cell, step.layer, "rest", layer.before)
            if step.closes:
                self._beside(cell, step.layer, "end", tuple(sorted({*last, *put})))
        return last

    def _open(self, cell: Cell, layer: int, last: tuple[int, ...]) -> tuple[int, ...]:
        """Send what goes with a layer's start; gives what its tasks wait for."""
        ahead = self._companions.ahead(cell, layer)
        for companion in ahead.sent:
            at = self._put_beside(companion.exchange, cell, after=() if companion.at_once else last)
            self._companion_at[companion.key] = at
        return tuple(sorted({*last, *(self._companion_at[key] for key in ahead.wanted)}))

    def _beside(self, cell: Cell, layer: int, spot: Spot, after: tuple[int, ...]) -> None:
        for exchange in self._companions.behind(cell, layer, spot):
            self._put_beside(exchange, cell, after=after)

    def _put_beside(self, exchange: Exchange, cell: Cell, *, after: tuple[int, ...]) -> int:
        ranks_R = self._ranks_of(cell)
        self.tasks.append(replace(exchange, ranks_R=ranks_R, after=after, microbatch=cell.microbatch))
        return len(self.tasks) - 1

    def _ranks_of(self, cell: Cell) -> Int32 | None:
        return self._ranks_C[cell.chunk] if self._order.chunks.n_ranks > 1 else None

    def _put(self, task: Task, cell: Cell, *, stream: str, after: tuple[int, ...]) -> tuple[int, ...]:
        ranks_R = self._ranks_of(cell)
        # what waits on no stream holds up its own cell alone; what names what it waits for has its
        # own stream
        own = task.stream in (None, HOST) or task.behind is not None
        there = task.stream if own else stream
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
    for layer in layers_of(work, cell):
        yield from layer_tasks(work, cell, layer)


def layers_of(work: StageWork, cell: Cell) -> Iterable[int]:
    """A chunk's layers in the order of a cell."""
    return work.layers if cell.kind == "F" else reversed(work.layers)


def layer_tasks(work: StageWork, cell: Cell, layer: int, *, beside: Beside = "nothing") -> Iterable[Task]:
    """Give a cell's tasks of one layer."""
    if cell.kind == "F":
        return work.forward(cell.microbatch, layer, beside=beside)
    if cell.kind == "W":
        return work.weights(cell.microbatch, layer, beside=beside)
    return work.backward(cell.microbatch, layer, weights=cell.kind == "BW", beside=beside)


def _of_layer(steps: Iterable[_Step]) -> list[_Step]:
    """Mark the first and the last of a layer's steps."""
    found = list(steps)
    found[0] = replace(found[0], opens=True)
    found[-1] = replace(found[-1], closes=True)
    if (places := turn_of([step.task for step in found])) is not None:
        turn, rest = places
        found[turn] = replace(found[turn], turns=True)
        found[rest] = replace(found[rest], rests=True)
    return found


def _beside_forward(work: StageWork, cell: Cell) -> Iterator[_Step]:
    for layer in work.layers:
        tasks = layer_tasks(work, cell, layer, beside="microbatch")
        yield from _of_layer(_Step(task, layer) for task in tasks)


def _split_backward(work: StageWork, cell: Cell) -> Iterator[_Step]:
    """A backward whose weight gradients hold up nothing that is sent.

    Those of the experts and what is beside them are computed while the gradient of their dispatch
    travels, those of attention at the layer's end.
    """
    for layer in reversed(work.layers):
        backward = work.backward(cell.microbatch, layer, weights=False, beside="microbatch")
        inputs = [_Step(task, layer) for task in backward]
        weights = [_Step(task, layer, loose=True) for task in work.weights(cell.microbatch, layer, beside="microbatch")]
        sent = max((place for place, step in enumerate(inputs) if step.travels), default=len(inputs))
        early = [step for step in weights if step.task.kind != "attention"]
        late = [step for step in weights if step.task.kind == "attention"]
        yield from _of_layer([*inputs[:sent], *early, *inputs[sent:], *late])


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
    """Leave out of all paths the links that are not the narrowest of their row.

    See `narrowest_links`.

    Also gives for each link [J] the narrowest of its row. What many exchanges share is looked at
    once.
    """
    counted = [task.flows for task in tasks if isinstance(task, Exchange) and isinstance(task.flows, CountedFlows)]
    templates = {id(flows.template): flows.template for flows in counted}
    narrowest_J = narrowest_links((template.paths for template in templates.values()), capacity_J)
    narrow = {key: template.on_narrowest(narrowest_J) for key, template in templates.items()}

    made: dict[int, CountedFlows] = {}  # microbatches that share flows still do: rungs look at each once

    def narrowed(task: Task) -> Task:
        if not (isinstance(task, Exchange) and isinstance(task.flows, CountedFlows)):
            return task
        wide = task.flows
        if id(wide) not in made:
            made[id(wide)] = narrow[id(wide.template)].counted(wide.counts_C)
        return replace(task, flows=made[id(wide)])

    return [narrowed(task) for task in tasks], narrowest_J
