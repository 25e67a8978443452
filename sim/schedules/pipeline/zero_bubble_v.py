"""ZB-V: two chunks per rank, down the ranks and up again, so that no rank has to wait."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.schedules.pipeline.cells import Block, Cell, Chunks, Pipeline, Turns
from moecast.sim.schedules.pipeline.routes import down_and_up
from moecast.sim.schedules.pipeline.support import two_chunks


class ZeroBubbleV:
    """Zero bubble with the memory of 1F1B: ZB-V of arXiv 2401.10241, section 6, V-ZB of arXiv 2405.15362.

    The rank with the model's first layers has its last ones too, and goes backward without waiting
    for others. Where F = B = W no rank waits between its first cell and its last: the bubble is the
    (p − 1) F of one chunk by which the last rank starts late. A rank keeps the activations of 2p
    chunks at most: of p microbatches.
    """

    name = "zb_v"

    def supports(self, pipeline: Pipeline) -> str | None:
        """Two chunks per rank."""
        return two_chunks(pipeline)

    def chunks(self, pipeline: Pipeline) -> Chunks:
        """Down and up."""
        return down_and_up(pipeline.pp)

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order; of fewer than 2p − 1 microbatches, what is left without the others."""
        pp, microbatches = pipeline.pp, pipeline.microbatches
        full = self._order(rank, pp, max(microbatches, 2 * pp - 1))
        return (cell for cell in full if cell.microbatch < microbatches)

    def _order(self, rank: int, pp: int, microbatches: int) -> Iterator[Cell]:
        down, up = Turns(rank), Turns(2 * pp - 1 - rank)
        for _ in range(2 * (pp - rank) - 1):
            yield down.forward()
        for _ in range(rank):
            yield up.forward()
            yield down.forward()
        for _ in range(pp - rank):
            yield from (up.forward(), up.inputs(), up.weights())
        ahead = pp - 1 - rank
        for turn in range(microbatches - pp):
            if turn < microbatches - pp - ahead:
                yield down.forward()
            yield from (down.inputs(), down.weights())
            yield from (up.forward(), up.inputs(), up.weights())
        for _ in range(rank):
            yield from (down.inputs(), up.inputs())
        for _ in range(pp - rank):
            yield from (down.inputs(), down.weights())
        for turns in (up, down):
            while turns.owed:
                yield turns.weights()
