"""DualPipe and DualPipeV: a forward of one microbatch beside a backward of another, from both ends of the pipeline.

Both walk through the same eight parts: of a rank's two chunks, `near` is the one that microbatches
reach first, `far` the one that they come back through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from moecast.sim.schedules.pipeline.cells import Block, Cell, Chunks, Pair, Pipeline, Turns
from moecast.sim.schedules.pipeline.routes import both_ways, down_and_up
from moecast.sim.schedules.pipeline.support import one_chunk, two_chunks


def _order(near: Turns, far: Turns, *, place: int, half: int, turns: int) -> Iterator[Block]:
    """What one rank does, in this order.

    Parameters
    ----------
    near, far
        Its two chunks.
    place, half
        Its place among the `half` ranks from where microbatches enter to where they turn.
    turns
        Microbatches of each chunk.
    """
    owed: deque[Cell] = deque()

    def split(chunk: Turns) -> Cell:
        owed.append(cell := chunk.inputs())
        return cell

    def paid() -> Cell:
        cell = owed.popleft()
        return Cell("W", cell.chunk, cell.microbatch)

    to_turn = half - 1 - place  # ranks from here to the turn
    for _ in range(2 * to_turn):
        yield near.forward()
    for _ in range(place + 1):
        yield near.forward()
        yield far.forward()
    for _ in range(to_turn):
        yield split(far)
        yield paid()
        yield far.forward()
    for turn in range(turns - 2 * half + place + 1):
        if turn == 0 and to_turn == 0:
            # At the turn both would wait for the other's chunk, and apart they fill and drain
            # sooner.
            yield near.forward()
            yield far.backward()
        else:
            yield Pair(near.forward(), far.backward())
        yield Pair(far.forward(), near.backward())
    for _ in range(to_turn):
        yield far.backward()
        yield Pair(far.forward(), near.backward())
    for turn in range(2 * (place + 1)):  # of the far and the near chunk in turn; the second half leaves its W for later
        chunk = near if turn % 2 else far
        yield split(chunk) if turn > place else chunk.backward()
    for _ in range(to_turn):
        yield paid()
        yield split(near)
    while owed:
        yield paid()


class DualPipe:
    """Two copies of the model and microbatches from both ends: DeepSeek-V3, arXiv 2412.19437, figures 4 and 5.

    A rank holds a piece of each copy. On even work the bubble is the published (p/2 − 1)(F&B + B −
    2W), where F&B is a pair and B the gradient of the input alone, if F = B ≥ W and F&B is no
    longer than both apart; F stands for B if it is longer. The ranks in the middle, with the fewest
    pairs, wait that long, the others less. A rank keeps the activations of p + 1 microbatches at
    most.
    """

    name = "dualpipe"

    def supports(self, pipeline: Pipeline) -> str | None:
        """An even number of stages and microbatches, at least two of these per stage."""
        if pipeline.pp % 2:
            return "an even number of pipeline stages, because microbatches come from both ends"
        if pipeline.microbatches % 2 or pipeline.microbatches < 2 * pipeline.pp:
            return f"an even number of microbatches, at least {2 * pipeline.pp}: two per pipeline stage"
        return one_chunk(pipeline)

    def chunks(self, pipeline: Pipeline) -> Chunks:
        """From both ends; even microbatches start at the first rank, odd ones at the last."""
        return both_ways(pipeline.pp)

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        pp = pipeline.pp
        there, back = Turns(rank, first=0, every=2), Turns(pp + rank, first=1, every=2)
        near, far = (there, back) if rank < pp // 2 else (back, there)
        place = min(rank, pp - 1 - rank)
        return _order(near, far, place=place, half=pp // 2, turns=pipeline.microbatches // 2)


class DualPipeV:
    """DualPipe cut in half: one copy of the model, folded, on half the ranks: deepseek-ai/DualPipe, after Sea AI Lab.

    On even work the bubble is DualPipe's of 2p ranks, (p − 1)(F&B + B − 2W) of a chunk where a rank
    holds two. It keeps the activations of 2p + 1 chunks at most.
    """

    name = "dualpipe_v"

    def supports(self, pipeline: Pipeline) -> str | None:
        """Two chunks per rank and at least two microbatches per rank."""
        least = 2 * pipeline.pp
        few = None if pipeline.microbatches >= least else f"at least {least} microbatches: two per pipeline rank"
        return two_chunks(pipeline) or few

    def chunks(self, pipeline: Pipeline) -> Chunks:
        """Down and up."""
        return down_and_up(pipeline.pp)

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        near, far = Turns(rank), Turns(2 * pipeline.pp - 1 - rank)
        return _order(near, far, place=rank, half=pipeline.pp, turns=pipeline.microbatches)
