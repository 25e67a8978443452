"""Attention of ranks that share sequences, in a serving step: what is computed block by block, and what is sent for it.

Prefill: each rank has its tokens' queries, and keys and values go round (`ring`), are gathered
before (`all-gather`), or stay while queries go round (`token-ring`). Decode: each rank has a part
of every sequence's cache; queries are gathered, all ranks attend to their part, and what they found
is sent to the query's rank and added up there (vLLM's and SGLang's decode context parallelism;
Flash-Decoding between GPUs).

Axes: G rank, C share of the tokens, N place among the `cp` ranks, R ring.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import attention, compute
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.context import order, sizes
from moecast.sim.context.sends import ContextSends
from moecast.sim.context.shared import SharedContext
from moecast.sim.cost import costs_of
from moecast.sim.program import COMPUTE, Compute, Exchange, Task

if TYPE_CHECKING:
    from moecast.sim.layout import Layout
    from moecast.sim.placed_model import PlacedModel
    from moecast.sim.step import Step
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContextAttention:
    """The core of one layer's attention in a step.

    Parameters
    ----------
    placed, step
        The model under its plan, and the step.
    shared
        How a prefill step's sequences are cut; None in decode.
    shape, reads
        The layer's attention, and which keys it reads (`AttentionShape.reads_of`).
    moe
        What its tasks name as their layer.
    tokens_G
        Tokens that each rank attends for.
    keys_G, scored_G
        Keys that they read in all, and those that an indexer scores: of decode, where no keys
        travel.
    """

    placed: PlacedModel
    step: Step
    shared: SharedContext | None
    shape: AttentionShape
    reads: tuple[tuple[int | None, int], ...]
    moe: int
    tokens_G: Int
    keys_G: Float
    scored_G: Float

    def tasks(self) -> Iterator[Task]:
        """Give the core's tasks, what is sent for it among them; the last one ends it."""
        if self.shared is None:
            yield from self._decode()
        elif self.placed.plan.context_exchange == "all-gather":
            held_C = self._cut.keys().held_RC.sum(axis=0)
            yield self._sends.gather(held_C, sizes.cached_bytes(self.placed.model, self.shape, tp=self._tp))
            yield self._compute(self._whole_seconds())
        elif self.placed.plan.context_exchange == "token-ring":
            yield from self._token_ring()
        else:
            yield from self._ring()

    @property
    def _cut(self) -> SharedContext:
        assert self.shared is not None
        return self.shared

    def _ring(self) -> Iterator[Task]:
        shared, keys = self._cut, self._cut.keys(self.reads)
        held_RC, new_RC = shared.keys().held_RC, shared.new_RC
        steps, unit = shared.rings.steps(held_RC), sizes.cached_bytes(self.placed.model, self.shape, tp=self._tp)
        blocks = []
        for step in range(steps):
            tokens_C, keys_C = (
                shared.rings.read_at(values, step).sum(axis=0) for values in (keys.queries_RCN, keys.keys_RCN)
            )
            seconds_G = self._core(tokens_C, keys_C)
            if step:
                seconds_G = seconds_G + self._expand(shared.rings.of_sources(new_RC, step).sum(axis=0))
                seconds_G = seconds_G + self._merge(tokens_C)
            blocks.append(self._compute(seconds_G))
        sends = [self._sends.by_share(shared.rings.passed_on(held_RC, step) * unit) for step in range(steps - 1)]
        yield from order.ring(blocks, sends)

    def _token_ring(self) -> Iterator[Task]:
        shared, keys, rings = self._cut, self._cut.keys(self.reads), self._cut.rings
        new_RC, steps = shared.new_RC, rings.steps(shared.keys().held_RC)
        queries, outputs = (size(self.shape, tp=self._tp) for size in (sizes.query_bytes, sizes.output_bytes))
        found_SRC = [rings.read_at(keys.queries_RCN, step, by="queries") for step in range(steps)]
        blocks = []
        for step, found_RC in enumerate(found_SRC):
            keys_C = rings.read_at(keys.keys_RCN, step, by="queries").sum(axis=0)
            blocks.append(self._compute(self._core(found_RC.sum(axis=0), keys_C)))
        sends: list[Exchange | None] = []
        for step in range(steps + 1):
            sent_CN = np.zeros((shared.layout.shares, rings.cp))
            if step < steps - 1:
                sent_CN += rings.passed_on(new_RC, step) * queries
            if step > 1:  # of queries that read nothing there, nothing comes back
                sent_CN += rings.given_back(found_SRC[step - 1], step - 1) * outputs
            sends.append(self._sends.by_share(sent_CN) if sent_CN.any() else None)
        back_CN = keys.queries_RCN.sum(axis=0)
        merged = [self._merge(back_CN[np.arange(len(back_CN)), rings.others(step)]) for step in range(1, steps)]
        yield from order.token_ring(blocks, sends, self._compute(np.sum(merged, axis=0)))

    def _decode(self) -> Iterator[Task]:
        plan, latent = self.placed.plan, self.shape.kind == "mla"
        layout, tokens_G = plan.layout, self.tokens_G
        queries, outputs, merged = (
            size(self.shape, tp=self._tp, absorbed=latent)
            for size in (sizes.query_bytes, sizes.output_bytes, sizes.merge_bytes)
        )
        peers_GN = layout.peers_of_ranks("cp")
        yield self._sends.by_rank(np.broadcast_to(tokens_G[:, None], peers_GN.shape) * queries)
        keys_G, scored_G = (of_G[peers_GN].sum(axis=1) / plan.cp for of_G in (self.keys_G, self.scored_G))
        everyone_G = tokens_G[peers_GN].sum(axis=1)
        yield self._compute(self._core_G(everyone_G, keys_G) + self._index(everyone_G, scored_G))
        yield self._sends.by_rank(tokens_G[peers_GN] * outputs)
        rows_G = tokens_G * np.float64(plan.cp - 1)
        yield self._compute(costs_of(self._hardware).elementwise_seconds(rows_G, row_bytes=merged))

    def _whole_seconds(self) -> Float:
        """All keys at once, those of other ranks expanded first."""
        layout, shared = self.placed.plan.layout, self._cut
        keys = shared.keys(self.reads)
        new_C = shared.new_RC.sum(axis=0)
        others_C = layout.of_all_shares(new_C) - new_C
        seconds_G = self._core_G(self.tokens_G, layout.by_share(keys.keys_RCN.sum(axis=(0, 2))))
        scored_G = layout.by_share(shared.keys().keys_RCN.sum(axis=(0, 2)))
        return seconds_G + self._expand(others_C) + self._index(self.tokens_G, scored_G)

    def _core(self, tokens_C: Float, keys_C: Float) -> Float:
        layout = self._layout
        return self._core_G(layout.by_share(tokens_C), layout.by_share(keys_C))

    def _core_G(self, tokens_G: npt.ArrayLike, keys_G: npt.ArrayLike) -> Float:
        return attention.core_seconds(
            self.placed.model,
            self._hardware,
            phase=self.step.kernels,
            tokens_G=tokens_G,
            keys_G=keys_G,
            shape=self.shape,
            tp=self._tp,
            queries=self.step.kernels.readers(self.step.queries),
        )

    def _index(self, tokens_G: npt.ArrayLike, scored_G: Float) -> Float:
        """Scores of an indexer, where the layer has one."""
        if not self.shape.index_heads:
            return np.zeros(np.shape(tokens_G))
        return attention.index_seconds(
            self.placed.model,
            self._hardware,
            self.shape,
            phase=self.step.kernels,
            tokens_G=tokens_G,
            keys_G=scored_G / max(self.shape.compress, 1),
            queries=self.step.kernels.readers(self.step.queries),
        )

    def _expand(self, rows_C: Float) -> Float:
        """Make heads of latent vectors that came from other ranks."""
        rows_G = self._layout.by_share(rows_C)
        if self.shape.kind != "mla":
            return np.zeros(len(rows_G))
        heads = -(-self.shape.heads // self._tp)
        return costs_of(self._hardware).gemm_seconds(
            rows_G,
            inner=self.shape.kv_rank,
            outer=heads * (self.shape.nope_dim + self.shape.value_dim),
            element_type=self.placed.model.mixer_type,
        )

    def _merge(self, tokens_C: Float) -> Float:
        """Add what was attended to in a block to the sum of those before."""
        moved = sizes.merge_bytes(self.shape, tp=self._tp)
        return costs_of(self._hardware).elementwise_seconds(self._layout.by_share(tokens_C), row_bytes=moved)

    def _compute(self, seconds_G: Float) -> Compute:
        seconds_R = np.ascontiguousarray(seconds_G, np.float64)
        return Compute(kind="attention", layer=self.moe, seconds_R=seconds_R, stream=COMPUTE)

    @property
    def _sends(self) -> ContextSends:
        return ContextSends(placed=self.placed, moe=self.moe)

    @property
    def _layout(self) -> Layout:
        return self.placed.plan.layout

    @property
    def _hardware(self) -> Hardware:
        return self.placed.sites.cluster.hardware

    @property
    def _tp(self) -> int:
        return self.placed.plan.tp


def around_core(placed: PlacedModel, shape: AttentionShape, tokens_G: npt.ArrayLike) -> tuple[Float, Float]:
    """Seconds of a layer's projections before its core, and behind it [G]."""
    model, hardware, tp = placed.model, placed.sites.cluster.hardware, placed.plan.tp
    into_G = compute.into_seconds(model, hardware, tokens_G, shape=shape, tp=tp)
    return into_G, compute.projection_seconds(model, hardware, tokens_G, shape=shape, tp=tp) - into_G
