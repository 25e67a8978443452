"""The cells of a pipeline as tasks on streams.

A cell's tasks stand one after another on its ranks' compute stream, exchanges too, as an engine without overlap runs
them. Of a pair of cells the tensor-parallel exchanges do; dispatch and combine of the one stand on the stream
"communication" under what the other computes, part by part in turn (DualPipe, arXiv 2412.19437, 3.2.1). What a cell
gives to another pipeline rank travels on no stream, under whatever comes next there.

Axes: R rank of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.forward import OUTSIDE
from moecast.sim.program import COMMUNICATION, COMPUTE, Exchange, Task
from moecast.sim.schedules.pipeline.cells import Cell, Pair
from moecast.sim.schedules.pipeline.order import PipelineOrder, given
from moecast.sim.sites import Sites
from moecast.sim.training.stage import StageWork

Int32 = npt.NDArray[np.int32]

OVERLAPPED = ("dispatch", "combine")
"""What travels under the other cell of a pair."""

HIDDEN_BYTES = 2
"""Of an element that one pipeline stage gives to the next: bf16."""


class Laying:
    """The tasks of a training step in the making.

    Parameters
    ----------
    sites
        Where the job's ranks stand.
    works
        The work of each chunk.
    order
        What each pipeline rank does.
    """

    def __init__(self, *, sites: Sites, works: Sequence[StageWork], order: PipelineOrder) -> None:
        self.tasks: list[Task] = []
        self._sites, self._works, self._order = sites, works, order
        self._brought: dict[Cell, int] = {}  # the task that brings what a cell gives to where it is worked on
        self._sends: dict[tuple[int, int], FlowTemplate] = {}

    def pipeline(self) -> None:
        """Put all cells, each behind what it works on."""
        for _, block in self._order.merged():
            if isinstance(block, Pair):
                self._pair(block)
                continue
            last = self._needs(block)
            for task in cell_tasks(self._works[block.chunk], block):
                last = (self.put(task, self._works[block.chunk].ranks_R, stream=COMPUTE, after=last),)
            self._give(block, last)

    def put(self, task: Task, ranks_R: Int32, *, stream: str | None, after: Iterable[int] = ()) -> int:
        """Append a task of some ranks; returns its place."""
        self.tasks.append(replace(task, ranks_R=ranks_R, stream=stream, after=tuple(sorted(after))))
        return len(self.tasks) - 1

    def _needs(self, cell: Cell) -> tuple[int, ...]:
        return tuple({self._brought[need] for need in self._order.needs(cell)})

    def _pair(self, pair: Pair) -> None:
        """Put both cells' parts in turn, the backward's first."""
        cells = (pair.backward, pair.forward)
        last = {cell: self._needs(cell) for cell in cells}
        parts = [list(_parts(cell_tasks(self._works[cell.chunk], cell, beside=True))) for cell in cells]
        for turn in zip_longest(*parts, fillvalue=()):
            for cell, tasks in zip(cells, turn, strict=True):
                for task in tasks:
                    stream = COMMUNICATION if _travels(task) else COMPUTE
                    last[cell] = (self.put(task, self._works[cell.chunk].ranks_R, stream=stream, after=last[cell]),)
        for cell in cells:
            self._give(cell, last[cell])

    def _give(self, cell: Cell, last: tuple[int, ...]) -> None:
        """Bring what a cell gives to the chunk that works on it, which may be another rank's."""
        result, chunks = given(cell), self._order.chunks
        (self._brought[result],) = last
        if result.kind == "W":
            return
        to = (chunks.behind_C if result.kind == "F" else chunks.before_C)[cell.chunk]
        if to >= 0 and chunks.rank_C[to] != chunks.rank_C[cell.chunk]:
            self._brought[result] = self._send(cell, to, after=last)

    def _send(self, cell: Cell, to: int, *, after: tuple[int, ...]) -> int:
        work, ranks = self._works[cell.chunk], (cell.chunk, to)
        both_R = np.concatenate([work.ranks_R, self._works[to].ranks_R])
        if ranks not in self._sends:
            self._sends[ranks] = _side_by_side(self._sites, both_R)
        tokens_R = work.step(cell.microbatch).tokens_at(0)
        exchange = Exchange(
            kind="other",
            layer=OUTSIDE,
            flows=self._sends[ranks].counted(tokens_R * (HIDDEN_BYTES * work.shard.model.hidden)),
            setup_s=self._sites.cluster.hardware.collective_launch_s,
            barrier=False,
            group_R=np.zeros(len(both_R), np.int32),
            microbatch=cell.microbatch,
        )
        return self.put(exchange, both_R, stream=None, after=after)


def cell_tasks(work: StageWork, cell: Cell, *, beside: bool = False) -> Iterator[Task]:
    """Give a cell's tasks in order: layer by layer, backward from the last."""
    microbatch = cell.microbatch
    for layer in work.layers if cell.kind == "F" else reversed(work.layers):
        if cell.kind == "F":
            tasks: Iterator[Task] = work.forward(microbatch, layer, beside=beside)
        elif cell.kind == "W":
            tasks = work.weights(microbatch, layer, beside=beside)
        else:
            tasks = work.backward(microbatch, layer, weights=cell.kind == "BW", beside=beside)
        yield from (replace(task, microbatch=microbatch) for task in tasks)


def _travels(task: Task) -> bool:
    return isinstance(task, Exchange) and task.kind in OVERLAPPED


def _parts(tasks: Iterable[Task]) -> Iterator[tuple[Task, ...]]:
    """Cut a cell's tasks behind each dispatch and each combine."""
    part: list[Task] = []
    for task in tasks:
        if part and _travels(part[-1]) and not _travels(task):
            yield tuple(part)
            part = []
        part.append(task)
    yield tuple(part)


def _side_by_side(sites: Sites, both_R: Int32) -> FlowTemplate:
    """Flows from each of the first half of some ranks to the same of the second; counts are bytes of each."""
    first = np.arange(len(both_R) // 2)
    second = first + len(first)
    found = FlowTemplate.of(sites, Legs.direct(both_R[first], both_R[second], first), 1.0)
    return replace(found, legs=Legs.direct(first, second, first))
