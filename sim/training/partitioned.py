"""Gradients in the gaps that FSMoE's chunks leave between domains, for the lowering of a pipeline.

How long the gaps are, the rung ``bound`` says of the step without them. This is for steps that
reduce gradients once, in whole backward passes (no split of input and weight gradients); others
reduce buckets (`moecast.sim.training.overlapped`).

Axes: C chunk, R rank of a task.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moecast.sim.collectives.template import no_flows
from moecast.sim.network import Bound
from moecast.sim.program import Exchange, Flows, Sizes, StepProgram
from moecast.sim.schedules.fsmoe import BETWEEN
from moecast.sim.schedules.fsmoe_training import degree_of
from moecast.sim.schedules.gradient_partition import Gap, Partition, partition
from moecast.sim.schedules.pipeline.cells import Cell
from moecast.sim.schedules.pipeline.companions import Ahead, Companions, Spot
from moecast.sim.schedules.pipeline.order import PipelineOrder
from moecast.sim.stage_tasks import OUTSIDE
from moecast.sim.training.buckets import local_layer
from moecast.sim.training.collectives import Collectives
from moecast.sim.training.gradients import Group, Reduction, reductions
from moecast.sim.training.overlapped import GROUPS
from moecast.sim.training.recipe import Recipe
from moecast.sim.training.stage import StageWork

SPOTS: tuple[Spot, ...] = ("turn", "rest")
Where = tuple[int, int, Spot]
"""Chunk, layer of it, spot of the layer."""


def partitions(recipe: Recipe, order: PipelineOrder) -> bool:
    """Whether a step's gradients go into gaps."""
    whole = all(cell.kind != "W" for rank in range(order.chunks.n_ranks) for cell in order.cells_of(rank))
    return recipe.overlap_grad_reduce and recipe.zero < 2 and degree_of(recipe.moe_schedule) > 1 and whole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partitioned:
    """Pieces of gradients at spots of each chunk's last backward pass, beside what else is sent beside the passes.

    Parameters
    ----------
    others
        What else is.
    last_C
        The microbatch of each chunk's last backward pass.
    pieces
        Exchanges by where they are put.
    left_C
        Reductions of each chunk that found no gap.
    """

    others: Companions
    last_C: tuple[int, ...]
    pieces: Mapping[Hashable, tuple[Exchange, ...]]
    left_C: tuple[tuple[Reduction, ...], ...]

    def ahead(self, cell: Cell, layer: int) -> Ahead:
        """As the others."""
        return self.others.ahead(cell, layer)

    def behind(self, cell: Cell, layer: int, spot: Spot) -> Sequence[Exchange]:
        """Pieces that go into a gap, and what the others have."""
        own = self.pieces.get((cell.chunk, layer, spot), ()) if self._is_last(cell) else ()
        return (*own, *self.others.behind(cell, layer, spot))

    def slow(self, cell: Cell, layer: int) -> bool:
        """Where pieces stand beside a layer, and as the others."""
        own = self._is_last(cell) and any((cell.chunk, layer, spot) in self.pieces for spot in SPOTS)
        return own or self.others.slow(cell, layer)

    def _is_last(self, cell: Cell) -> bool:
        return cell.kind == "BW" and cell.microbatch == self.last_C[cell.chunk]


def probe(order: PipelineOrder, works: Sequence[StageWork], others: Companions) -> Partitioned:
    """Mark all gaps by exchanges that take no time."""
    rank_C = order.chunks.rank_C
    cells = [[cell for cell in order.cells_of(rank) if cell.chunk == chunk] for chunk, rank in enumerate(rank_C)]
    return Partitioned(
        others=others,
        last_C=tuple(next(cell.microbatch for cell in reversed(own) if cell.kind == "BW") for own in cells),
        pieces={
            (chunk, layer, spot): (_marker(work, chunk, layer, spot),)
            for chunk, work in enumerate(works)
            for layer in work.layers
            for spot in SPOTS
        },
        left_C=((),) * len(works),
    )


def filled(
    probed: Partitioned,
    program: StepProgram,
    works: Sequence[StageWork],
    recipe: Recipe,
    collectives_C: Sequence[Collectives],
) -> Partitioned:
    """Fill the gaps that a program with marks has, with what its layers give.

    Parameters
    ----------
    collectives_C
        Makes the exchanges of each chunk's ranks.
    """
    gaps = dict(_gaps(program))
    pieces: dict[Hashable, tuple[Exchange, ...]] = {}
    left_C = []
    for chunk, (work, collectives) in enumerate(zip(works, collectives_C, strict=True)):
        parts = [
            part
            for part in reductions(work.shard, recipe.precision, zero=recipe.zero)
            if part.when == "backward" and part.group in GROUPS
        ]
        kinds = {part.group: part for part in reversed(parts)}
        found = _partition(chunk, work, parts, gaps, collectives)
        for where, taken in found.pieces.items():
            pieces[where] = tuple(
                collectives.beside(kinds[group].group, kinds[group].operation, size, stream=BETWEEN)
                for group, size in taken.items()
            )
        left_C.append(tuple(replace(kinds[group], bytes=size) for group, size in found.left.items()))
    return replace(probed, pieces=pieces, left_C=tuple(left_C))


def _partition(
    chunk: int,
    work: StageWork,
    parts: Sequence[Reduction],
    gaps: Mapping[Hashable, float],
    collectives: Collectives,
) -> Partition[Group]:
    kinds = {part.group: part for part in parts}

    def seconds(group: Group, size: float) -> float:
        return collectives.reckoned_s(group, kinds[group].operation, size)

    def layers() -> Iterator[tuple[list[Gap], dict[Group, float]]]:
        for layer in reversed(work.layers):
            given = dict.fromkeys(kinds, 0.0)
            for part in parts:
                given[part.group] += part.bytes * (local_layer(part.layer, work.layer_ids) == layer)
            places = [(chunk, layer, spot) for spot in SPOTS]
            yield [Gap(where=where, seconds=gaps[where]) for where in places if where in gaps], given

    return partition(layers(), seconds)


def _marker(work: StageWork, chunk: int, layer: int, spot: Spot) -> Exchange:
    group_R = np.zeros(len(work.ranks_R), np.int32)
    return Exchange(
        kind="other",
        layer=OUTSIDE,
        flows=_Mark((chunk, layer, spot)),
        setup_s=0.0,
        barrier=False,
        group_R=group_R,
        stream=BETWEEN,
    )


@dataclass(frozen=True, slots=True)
class _Mark:
    """No flows, and where they are not."""

    where: Where
    most: int = 0

    def fill(self) -> Flows:
        return no_flows()

    def sized(self) -> tuple[Flows, Sizes]:
        return self.fill().sized()


def _gaps(program: StepProgram) -> Iterator[tuple[Hashable, float]]:
    """Seconds from each mark to what is next on its stream, the least of its ranks'."""
    times = Bound().run(program)
    next_of: dict[int, int] = {}
    before: dict[int, int] = {}  # by the ranks, which chunks of a rank share
    for place, task in enumerate(program.tasks):
        if task.stream == BETWEEN:
            if id(task.ranks_R) in before:
                next_of[before[id(task.ranks_R)]] = place
            before[id(task.ranks_R)] = place
    for place, behind in next_of.items():
        task = program.tasks[place]
        if isinstance(task, Exchange) and isinstance(task.flows, _Mark):
            yield task.flows.where, float((times.enter_S[behind] - times.leave_S[place]).min())
