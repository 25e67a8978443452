"""ZB-H1: 1F1B whose weight gradients wait, and fill what was bubble at the end."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.schedules.pipeline.cells import Block, Pipeline, Turns
from moecast.sim.schedules.pipeline.support import OneChunk


class ZeroBubbleH1(OneChunk):
    """1F1B with the backward split; rank r puts r weight gradients off: arXiv 2401.10241, figure 2.

    On even work with W ≤ B and W ≤ F the bubble is (p − 1)(F + B − W), where B is the gradient of
    the input alone. Every rank keeps the activations of p microbatches at most, as 1F1B's first
    does.
    """

    name = "zb_h1"

    def order(self, rank: int, pipeline: Pipeline) -> Iterator[Block]:
        """What one rank does, in this order."""
        turns = Turns(rank)
        ahead = min(pipeline.pp - 1 - rank, pipeline.microbatches)
        for _ in range(ahead):
            yield turns.forward()
        for _ in range(pipeline.microbatches - ahead):
            yield turns.forward()
            yield turns.inputs()
            if turns.owed > rank:
                yield turns.weights()
        for _ in range(ahead):
            yield turns.inputs()
            yield turns.weights()
        while turns.owed:
            yield turns.weights()
