"""The core of one layer's attention in training where ranks share sequences: blocks, and what is sent for them.

Keys and values travel as attention takes them (`moecast.sim.context.sizes.expanded_bytes`), round a
ring or gathered at once. On the way back they travel again, as nobody keeps those of others, and
their gradients with them: round the ring one step behind, or added up at their owners by a
reduce-scatter (TransformerEngine; Llama 3, arXiv 2407.21783).

Axes: G rank, C share of the tokens, R ring.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.attention_shape import AttentionShape
from moecast.sim.context import order, sizes
from moecast.sim.context.keys import BlockKeys
from moecast.sim.context.sends import ContextSends
from moecast.sim.context.shared import SharedContext
from moecast.sim.cost import costs_of
from moecast.sim.program import Compute, Exchange, Task
from moecast.sim.training import modules
from moecast.sim.training.passes import Passes

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.placed_model import PlacedModel

Float = npt.NDArray[np.float64]

ADDED = 3
"""Two gradients are read and their sum is written, all in bf16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContextCore:
    """The core of a layer in a microbatch.

    Parameters
    ----------
    placed
        The stage's part of the model under its plan.
    shared
        How the microbatch's sequences are cut.
    shape, reads
        The layer's attention, and which keys it reads (`AttentionShape.reads_of`).
    moe
        What its tasks name as their layer.
    """

    placed: PlacedModel
    shared: SharedContext
    shape: AttentionShape
    reads: tuple[tuple[int | None, int], ...]
    moe: int

    @property
    def gathers(self) -> bool:
        """Whether keys are gathered before, so that the core is one block."""
        return self.placed.plan.context_exchange == "all-gather"

    def gather(self) -> Exchange:
        """Bring all keys and values of a group to each of its ranks."""
        return self._sends.gather(self._held_C, self._unit)

    def scatter_sums(self) -> Exchange:
        """Add up the gradients of keys and values at those who made these."""
        return self._sends.scatter_sums(self._held_C, self._unit)

    def forward(self) -> Iterator[Task]:
        """Go round the ring."""
        rings, held_RC = self.shared.rings, self.shared.keys().held_RC
        blocks = []
        for step in range(self._steps):
            tokens_G, passes = self._block(step)
            merged = sizes.merge_bytes(self.shape, tp=self._tp)
            blocks.append(self._compute(passes.forward_G + (self._moved(tokens_G, merged) if step else 0.0)))
        sends = [self._sends.by_share(rings.passed_on(held_RC, step) * self._unit) for step in range(self._steps - 1)]
        yield from order.ring(blocks, sends)

    def backward(self) -> Iterator[Task]:
        """Go round the ring the other way, with gradients one step behind; each rank ends with its own block."""
        rings, held_RC = self.shared.rings, self.shared.keys().held_RC
        layout, queries = self.placed.plan.layout, sizes.query_bytes(self.shape, tp=self._tp)
        blocks, sends = [], []
        for step in reversed(range(self._steps)):
            tokens_G, passes = self._block(step)
            held_G = layout.by_share(rings.of_sources(held_RC, step).sum(axis=0))
            added_G = self._moved(tokens_G, ADDED * queries) + self._moved(held_G, ADDED * self._unit)
            blocks.append(self._compute(passes.input_G + (added_G if step < self._steps - 1 else 0.0)))
            sent_CN = np.zeros((layout.shares, layout.cp))
            if step:
                sent_CN += rings.passed_on(held_RC, step, back=True)
            if step < self._steps - 1:  # gradients of the block before
                sent_CN += rings.passed_on(held_RC, step + 1, back=True)
            sends.append(self._sends.by_share(sent_CN * self._unit))
        yield from order.gradient_ring(blocks, sends)

    def _block(self, step: int) -> tuple[Float, Passes]:
        """The tokens that read some of a block, and what they take."""
        keys, layout = self._keys, self.placed.plan.layout
        tokens_G, keys_G = (
            layout.by_share(self.shared.rings.read_at(values, step).sum(axis=0))
            for values in (keys.queries_RCN, keys.keys_RCN)
        )
        hardware = self.placed.sites.cluster.hardware
        return tokens_G, modules.core_passes(
            self.placed.model, hardware, tokens_G, keys_G, shape=self.shape, tp=self._tp
        )

    def _moved(self, rows_G: Float, row_bytes: float) -> Float:
        return costs_of(self.placed.sites.cluster.hardware).elementwise_seconds(rows_G, row_bytes=row_bytes)

    def _compute(self, seconds_G: Float) -> Compute:
        return Compute(kind="attention", layer=self.moe, seconds_R=np.ascontiguousarray(seconds_G, np.float64))

    @property
    def _keys(self) -> BlockKeys:
        return self.shared.keys(self.reads)

    @property
    def _held_C(self) -> Float:
        return np.asarray(self.shared.keys().held_RC.sum(axis=0), np.float64)

    @property
    def _steps(self) -> int:
        return self.shared.rings.steps(self.shared.keys().held_RC)

    @property
    def _unit(self) -> int:
        return sizes.expanded_bytes(self.shape, tp=self._tp)

    @property
    def _tp(self) -> int:
        return self.placed.plan.tp

    @property
    def _sends(self) -> ContextSends:
        return ContextSends(placed=self.placed, moe=self.moe)


def travelling_bytes(model: ModelShape, tokens: int, *, tp: int, cp: int, exchange: str) -> float:
    """Bytes of one layer's keys and values that come from the ranks that share sequences.

    0 without.

    All of a data-parallel rank's `tokens` forward, or on the way back a ring's two blocks with
    their gradients; `exchange` as a plan's `context_exchange`.
    """
    if cp == 1:
        return 0.0
    unit = sizes.expanded_bytes(model.attention, tp=tp)
    if exchange == "all-gather":  # gradients of all of them, before they are added up
        return 2.0 * unit * tokens
    return float(unit * max(tokens, 4 * -(-tokens // cp)))
