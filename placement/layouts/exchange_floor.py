"""Lower bounds on what an MoE layer's experts and exchanges take, for any placement of the experts.

Two chains through a layer, each a bound by itself; a whole step is the larger of their sums, never a mixture.

*By the mean rank.* A rank leaves an exchange no sooner than it entered and its setup; so the mean over ranks of what
they do one after the other is at most the step. Experts' time is convex in rows and hits: its mean is at least its
value at the mean load. Where ranks wait for each other at a barrier in every layer, the slowest counts: at least the
mean, at least the hottest expert; and behind a barrier what comes in over a port takes its time.

*By choices*, without barriers around what moves. Let every home rank r stand for its part of the tokens, and every
serving rank s for its part of the rows, n_rs of which come from r. Rank s leaves no sooner than any r that sends to it
began, so no sooner than their mean by n_rs; and of copies that begin at different times and share a port of w seconds
of work, the last is there no sooner than the mean of their beginnings and w / 2 (for every q, those after the q-th part
begin no sooner than its quantile and then take (1 - q) w: the mean over q of both). Summed over s by rows, the mean of
beginnings is again that of home ranks by tokens, so that layers add up. What a rank serves of its own domain's tokens
is at most what its slots' experts are chosen there (`PooledLoads.near_part_L`), and by rows the mean work of a port is
at least its plain mean (Cauchy). Whatever travels for a choice takes the latency of a way between its ranks, of a way
between domains where these differ. Weighted by rows, ranks hit P slots but for those without any rows
(`PooledLoads.lost_hits_L`).

Axes: L MoE layer, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives import mode_of
from moecast.sim.cost import ExpertBlock, costs_of

if TYPE_CHECKING:
    from moecast.placement.layouts.links_of_groups import LinksOfGroup
    from moecast.placement.layouts.pooled_loads import BatchLoads
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim.collectives import Mode

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFloor:
    """Least seconds of each MoE layer.

    Parameters
    ----------
    expert_LB, exchange_LB
        Experts, dispatch and combine by the mean rank.
    by_choice_LB
        All of it by choices; zero where that says nothing.
    """

    expert_LB: Float
    exchange_LB: Float
    by_choice_LB: Float


def layer_floor(
    question: ServingQuestion,
    layout: ServingLayout,
    loads: BatchLoads,
    tokens_B: Int,
    links: LinksOfGroup | None,
    phase: str,
) -> LayerFloor:
    """Bound the MoE layers of a layout for loads of several batches; `tokens_B` of an EP group."""
    return _Floor(question, layout, loads, tokens_B, links, phase).layers()


class _Floor:
    def __init__(
        self,
        question: ServingQuestion,
        layout: ServingLayout,
        loads: BatchLoads,
        tokens_B: Int,
        links: LinksOfGroup | None,
        phase: str,
    ) -> None:
        self.layout, self.loads, self.tokens_B, self.links = layout, loads, tokens_B, links
        self.model, self.hardware, self.phase = question.model, question.cluster.hardware, phase
        self.slots = layout.slots_per_rank(self.model.experts)
        self.sends = layout.ep > 1 and not layout.experts_are_summed
        self.mode = mode_of(layout.dispatch, phase) if self.sends else None

    def layers(self) -> LayerFloor:
        """All of it."""
        expert_LB = self._seconds("mean", self._mean)
        if self.layout.experts_are_summed or (self.mode and (self.mode.barrier or self.mode.counts_first)):
            expert_LB = np.maximum(expert_LB, self._seconds("hottest", self._hottest))
        exchange_LB = np.zeros_like(expert_LB) + self._setups_s()
        by_choice_LB = np.zeros_like(expert_LB)
        if self.mode is not None:
            assert self.links is not None
            if self.mode.barrier or self.mode.counts_first:
                exchange_LB = exchange_LB + self._behind_barriers(self.mode, self.links)
            if not (self.mode.barrier or self.mode.stay) and self.loads.every_choice:
                by_choice_LB = self._by_choice(self.mode, self.links)
        return LayerFloor(expert_LB=expert_LB, exchange_LB=exchange_LB, by_choice_LB=by_choice_LB)

    def _seconds(self, of: str, rows_and_hits: Callable[[], tuple[Float, Float]]) -> Float:
        """Seconds of experts; layouts that share loads, ranks and slots share these, however tokens travel."""
        seen_B = self._seen_B()

        def found() -> Float:
            block = ExpertBlock.of(self.model, etp=self.layout.etp)
            costs, (rows_LB, hits_LB) = costs_of(self.hardware), rows_and_hits()
            return costs.expert_floor_seconds(block, rows_LB, hits_LB, phase=self.phase, seen=seen_B)

        return self.loads.once((of, self.layout.ep, self.layout.etp, self.slots, *seen_B.tolist()), found)

    def _mean(self) -> tuple[Float, Float]:
        return self.loads.rows_LB / self.layout.ep, self.loads.hits_LB / self.layout.ep

    def _seen_B(self) -> Int:
        """Choices that every rank's kernels are shown, whoever serves them: of all tokens that it has."""
        all_there = self.layout.experts_are_summed or (self.mode is not None and self.mode.gathers)
        return self.tokens_B * self.model.choices if all_there else np.zeros_like(self.tokens_B)

    def _hottest(self) -> tuple[Float, Float]:
        """The rank that serves the most of the hottest expert, its replicas as many as there may be."""
        most = min(self.layout.ep, self.layout.ep * self.slots - self.model.experts + 1)
        rows_LB = np.ceil(self.loads.hottest_LB / most)
        return rows_LB, np.minimum(rows_LB, 1.0)

    def _setups_s(self) -> float:
        """Fixed costs of a layer's exchanges."""
        hardware = self.hardware
        shared = 0.0 if self.layout.etp == 1 or self.layout.experts_are_summed else 2 * hardware.collective_launch_s
        if self.mode is None:
            return shared
        counts = hardware.count_exchange_s if self.mode.counts_first else 0.0
        barriers = 2 * hardware.barrier_s if self.mode.barrier else 0.0
        return shared + counts + barriers + 2 * hardware.collective_launch_s

    def _behind_barriers(self, mode: Mode, links: LinksOfGroup) -> Float:
        """Mean seconds for which copies come in behind a barrier: dispatch, and combine where it has one."""
        both_Bps = self._into_gpu_Bps(links)
        ranks = self.layout.ranks_of_stage
        if mode.gathers:
            copies_B = self.tokens_B * (1 - 1 / self.layout.ep)
            return np.asarray(copies_B * (links.dispatch_bytes + links.combine_bytes) / both_Bps / self.layout.etp)
        if mode.per_choice:
            apart_LB, far_LB = self._parts_that_leave()
            port_s = np.maximum(far_LB / (links.far_Bps or np.inf), apart_LB / both_Bps)
            return np.asarray(port_s * self.loads.rows_LB / ranks * (links.dispatch_bytes + links.combine_bytes))
        reached = max(-(-self.model.choices // self.slots) - 1, 0)
        if not self.loads.every_choice:
            reached = 0
        return np.asarray(self.tokens_B * reached * links.dispatch_bytes / ranks / both_Bps)

    def _into_gpu_Bps(self, links: LinksOfGroup) -> float:
        """Bytes/s that the links into a GPU carry together: of groups inside a domain, those of the domain."""
        inside = links.domain_ranks >= self.layout.ranks_of_stage
        return (links.near_Bps if inside else links.near_Bps + links.far_Bps) or np.inf

    def _parts_that_leave(self) -> tuple[Float, Float]:
        """The part of all choices that leave their rank, and that leave their domain, at the least."""
        assert self.links is not None
        ranks, domain = self.layout.ranks_of_stage, self.links.domain_ranks
        width = self.layout.etp  # ranks of one member hold the same slots
        apart_LB = 1 - self.loads.near_part_LB(1, self.slots)
        whole_domains = domain * round(ranks / domain) == ranks
        if domain >= ranks or not whole_domains:
            return apart_LB, np.zeros_like(apart_LB)
        held = self.slots * -(-domain // width)
        return apart_LB, 1 - self.loads.near_part_LB(domain, held)

    def _by_choice(self, mode: Mode, links: LinksOfGroup) -> Float:
        """A layer by choices: setups, latencies, half of what comes in, and experts weighted by rows.

        Where copies of a token for one rank or domain are one, what comes in is left out.
        """
        apart_LB, far_LB = self._parts_that_leave()
        mean_LB = self.loads.rows_LB / self.layout.ranks_of_stage
        total_LB = self._seconds("by rows", self._by_rows) + self._setups_s()
        latencies = zip(links.latency_s, links.far_latency_s, strict=True)
        for size, (near_s, far_s) in zip((links.dispatch_bytes, links.combine_bytes), latencies, strict=True):
            # Copies of other ranks have the least latency, those of other domains what these have more.
            total_LB = total_LB + apart_LB * near_s + far_LB * max(far_s - near_s, 0.0)
            if mode.per_choice:
                total_LB = total_LB + self._port_s(links, apart_LB, far_LB) * mean_LB * size / 2
        return np.asarray(total_LB)

    def _port_s(self, links: LinksOfGroup, apart_LB: Float, far_LB: Float) -> Float:
        """Seconds for a byte of each choice, mean over choices: of other domains over the NIC, others over NVLink.

        If more went far than must, the sum would be least where both ports are as long busy.
        """
        both_Bps = self._into_gpu_Bps(links)
        if links.domain_ranks >= self.layout.ranks_of_stage or not links.far_Bps or not links.near_Bps:
            return np.asarray(np.maximum(apart_LB**2 / both_Bps, far_LB**2 / (links.far_Bps or np.inf)))
        each_LB = far_LB**2 / links.far_Bps + (apart_LB - far_LB) ** 2 / links.near_Bps
        more = far_LB * both_Bps >= apart_LB * links.far_Bps
        return np.where(more, each_LB, apart_LB**2 / both_Bps)

    def _by_rows(self) -> tuple[Float, Float]:
        """Rows, and slots that are hit, mean over ranks weighted by their rows."""
        lost_LB = self.loads.lost_hits_LB(self.layout.ep, self.slots)
        return self.loads.rows_LB / self.layout.ep, np.maximum(self.slots - lost_LB, 1.0)
