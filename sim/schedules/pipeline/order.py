"""The order of a whole pipeline: every rank's own, checked, merged into one, and timed.

Axes: G rank of the pipeline, C chunk, N block of the merged order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from moecast.errors import MoecastError
from moecast.sim.schedules.pipeline.cells import Block, Cell, Chunks, Pass, Pipeline


class PipelineSchedule(Protocol):
    """In which order each rank of a pipeline takes its cells; its docstring says the source and the closed form."""

    @property
    def name(self) -> str:
        """What plans call it."""

    def supports(self, pipeline: Pipeline) -> str | None:
        """What it asks for where it cannot do this, in one line; None where it can."""

    def chunks(self, pipeline: Pipeline) -> Chunks:
        """Where the model's chunks stand."""

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order: a generator that reads like the rank's timeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOrder:
    """What each rank of a pipeline does, in which order.

    Parameters
    ----------
    chunks
        Where the model's chunks stand.
    microbatches
        How many go through.
    blocks_G
        Each rank's blocks, in its order.
    """

    chunks: Chunks
    microbatches: int
    blocks_G: tuple[tuple[Block, ...], ...]

    def __post_init__(self) -> None:
        if len(self.blocks_G) != self.chunks.n_ranks:
            rule = f"{self.chunks.n_ranks} ranks' blocks"
            raise MoecastError(rule, field="blocks_G", value=len(self.blocks_G))
        seen = set()
        for rank, cell in self._cells():
            if not (0 <= cell.microbatch < self.microbatches and cell.chunk in self.chunks.route_of(cell.microbatch)):
                rule = "a chunk and microbatch of the pipeline"
                raise MoecastError(rule, field="blocks_G", value=str(cell))
            if self.chunks.rank_C[cell.chunk] != rank:
                rule = f"on rank {self.chunks.rank_C[cell.chunk]}"
                raise MoecastError(rule, field="blocks_G", value=str(cell))
            if cell in seen:
                raise MoecastError("every cell once", field="blocks_G", value=str(cell))
            seen.add(cell)
        self._check_whole(seen)

    def _cells(self) -> Iterator[tuple[int, Cell]]:
        return ((rank, cell) for rank, blocks in enumerate(self.blocks_G) for block in blocks for cell in block.cells)

    def _check_whole(self, seen: set[Cell]) -> None:
        backward = any(cell.kind != "F" for cell in seen)
        for microbatch in range(self.microbatches):
            for chunk in self.chunks.route_of(microbatch):
                passes = sorted(kind for kind in ("F", "B", "W", "BW") if Cell(kind, chunk, microbatch) in seen)
                if passes not in ((["B", "F", "W"], ["BW", "F"]) if backward else (["F"],)):
                    what = "F, and B and W or both in one" if backward else "F"
                    rule = f"{what} of microbatch {microbatch} in chunk {chunk}"
                    raise MoecastError(rule, field="blocks_G")

    def cells_of(self, rank: int) -> Iterator[Cell]:
        """One rank's cells in its order; of a pair the forward first."""
        return (cell for block in self.blocks_G[rank] for cell in block.cells)

    def peak_in_flight(self, rank: int) -> int:
        """The most microbatches whose activations one rank keeps at a time, each in one of its chunks.

        Kept from the start of a forward to the end of the weights' gradient; counted from the order
        itself.
        """
        kept = most = 0
        for block in self.blocks_G[rank]:
            for cell in block.cells:
                kept += cell.kind == "F"
                most = max(most, kept)
                kept -= cell.kind in ("W", "BW")
        return most

    def needs(self, cell: Cell) -> tuple[Cell, ...]:
        """What a cell works on, as the F and B that give it: a BW does what its B does."""
        here, chunks = cell.chunk, self.chunks
        if cell.kind == "F":
            return _at(chunks.before_C[here], "F", cell)
        if cell.kind == "W":
            return (Cell("B", here, cell.microbatch),)
        return (Cell("F", here, cell.microbatch), *_at(chunks.behind_C[here], "B", cell))

    def merged(self) -> tuple[tuple[int, Block], ...]:
        """All blocks with their ranks, each behind what it works on and behind its rank's earlier ones.

        Raises
        ------
        MoecastError
            There is no such order: ranks wait for each other in a circle.
        """
        done: set[Cell] = set()
        waiting: dict[Cell, list[int]] = defaultdict(list)
        next_G = [0] * len(self.blocks_G)
        merged: list[tuple[int, Block]] = []
        ready = deque(range(len(self.blocks_G)))
        while ready:
            rank = ready.popleft()
            if next_G[rank] == len(self.blocks_G[rank]):
                continue
            block = self.blocks_G[rank][next_G[rank]]
            if missing := self._missing(block, done):
                waiting[missing].append(rank)
                continue
            merged.append((rank, block))
            next_G[rank] += 1
            ready.append(rank)
            for cell in block.cells:
                done.add(result := given(cell))
                ready.extend(waiting.pop(result, ()))
        self._check_all_done(next_G, done)
        return tuple(merged)

    def _missing(self, block: Block, done: set[Cell]) -> Cell | None:
        return next((need for cell in block.cells for need in self.needs(cell) if need not in done), None)

    def _check_all_done(self, next_G: list[int], done: set[Cell]) -> None:
        stuck = [
            f"rank {rank} at {blocks[place]} waits for {self._missing(blocks[place], done)}"
            for rank, (blocks, place) in enumerate(zip(self.blocks_G, next_G, strict=True))
            if place < len(blocks)
        ]
        if stuck:
            rule = f"an order without a deadlock; here {'; '.join(stuck[:4])}"
            raise MoecastError(rule, field="blocks_G")


def given(cell: Cell) -> Cell:
    """What a cell gives to others: the B that they ask for, where it is a BW."""
    return Cell("B", cell.chunk, cell.microbatch) if cell.kind == "BW" else cell


def _at(chunk: int, kind: Pass, cell: Cell) -> tuple[Cell, ...]:
    return () if chunk < 0 else (Cell(kind, chunk, cell.microbatch),)


def make_order(schedule: PipelineSchedule, pipeline: Pipeline) -> PipelineOrder:
    """Ask a schedule for every rank's order, and check it.

    Raises
    ------
    MoecastError
        The schedule cannot do that.
    """
    if (reason := schedule.supports(pipeline)) is not None:
        raise MoecastError(f"{reason}; asked for {pipeline}", field="schedule", value=schedule.name)
    return PipelineOrder(
        chunks=schedule.chunks(pipeline),
        microbatches=pipeline.microbatches,
        blocks_G=tuple(tuple(schedule.order(rank, pipeline)) for rank in range(pipeline.pp)),
    )
