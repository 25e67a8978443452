"""How the blocks of context-parallel attention and what is sent for them stand beside each other.

All take the block of each step and the exchange of each step, and give tasks that name what they
wait for by how far before them it stands (`moecast.sim.program.OfRanks.behind`); the first ones
wait for the task before all. Exchanges stand on the stream "context", blocks on "compute"; the last
task is a block, or behind all of them. In closed forms n ranks share a sequence, and a block takes
b seconds and an exchange x.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moecast.sim.program import COMPUTE, CONTEXT, Compute, Exchange, Task
from moecast.sim.schedules.lay import BEFORE, Places


class _Places(Places):
    """Blocks on the stream "compute", exchanges on "context"."""

    def lay(self, task: Task, *after: int) -> int:
        """Append a task behind others; returns its place."""
        return self.put(task, *after, stream=COMPUTE if isinstance(task, Compute) else CONTEXT)


def ring(blocks: Sequence[Compute], sends: Sequence[Exchange]) -> Iterator[Task]:
    """A ring passes keys and values on while each rank attends to what it got the step before.

    n blocks, n - 1 exchanges. They take b + (n - 1) max(b, x): all but the first block wait for an
    exchange, and where blocks are longer only the first x is beside them and none is waited for. An
    exchange starts when its rank has done with the block before the last one, as on
    TransformerEngine's two streams (`AttnFuncWithCPAndKVP2P`).
    """
    laid, sent, done = _Places(), [BEFORE], [BEFORE, BEFORE]
    for step, block in enumerate(blocks):
        arrived = sent[-1]
        if step < len(sends):
            sent.append(laid.lay(sends[step], arrived, done[step]))
        done.append(laid.lay(block, arrived))
    yield from laid.tasks


def gradient_ring(blocks: Sequence[Compute], sends: Sequence[Exchange]) -> Iterator[Task]:
    """The ring of the backward pass: keys and values go round again, and their gradients one step behind them.

    n blocks and n exchanges, of which the first carries keys and values, the last gradients, and
    the others both. Each but the first waits for the block before it, which adds to the gradients.
    They take the sum over steps of max(b, x of the step), since block and exchange of a step begin
    together. Ranks end with their own block, so the last gradients come home (TransformerEngine's
    backward pass, whose ring runs the other way round).
    """
    laid, sent, done = _Places(), BEFORE, BEFORE
    for block, exchange in zip(blocks, sends, strict=True):
        before, sent = sent, laid.lay(exchange, sent, done)
        done = laid.lay(block, before, done)
    laid.lay(_nothing(blocks[-1]), sent, done)
    yield from laid.tasks


def token_ring(blocks: Sequence[Compute], sends: Sequence[Exchange | None], merge: Compute) -> Iterator[Task]:
    """Queries go on to the next rank, what was attended to for them goes straight back, both ways at once (TokenRing).

    n blocks, n + 1 exchanges: that of step s carries queries (s < n - 1) and the outputs of block s
    - 1 (s > 1); None carries nothing. Where all take x they take n max(b, x) + x: the last outputs
    are waited for, and then added up by `merge`.
    """
    laid, sent, done = _Places(), BEFORE, BEFORE
    for step, exchange in enumerate(sends):
        before = sent
        if exchange is not None:
            sent = laid.lay(exchange, sent, done if step > 1 else BEFORE)
        if step < len(blocks):
            done = laid.lay(blocks[step], before)
    laid.lay(merge, sent, done)
    yield from laid.tasks


def _nothing(like: Compute) -> Compute:
    """No work, behind which a rank has waited for all that was sent."""
    return replace(like, seconds_R=np.zeros_like(like.seconds_R))
