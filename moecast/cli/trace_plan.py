"""A trace under a Plan: the rank of each expert where there are no replicas, else of each choice by the plan's rule.

Axes: L MoE layer, E expert, K choice, G rank, S source rank, N domain, F fan-out 0…K.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim import Plan, read_plan
from moecast.sim.serving_ranks import ServingRanks
from moecast.sim.simulated import check_simulated, check_whole_experts
from moecast.sim.slots import EMPTY
from moecast.traces import RoutingTrace, TraceCounter, TraceMeta, TraceStats

_BLOCK_TOKENS = 1 << 15


def read_plan_for(path: Path, meta: TraceMeta) -> Plan:
    """Read a plan and check that it is for the trace's model.

    Raises
    ------
    MoecastError
        Not a legal plan, one with degrees that are not simulated, or its L, E or K is not the
        trace's.
    """
    plan = read_plan(path)
    for name in ("layers", "experts", "choices"):
        ours, theirs = getattr(plan, name), getattr(meta, name)
        if ours != theirs:
            raise MoecastError(f"the trace has {theirs}", file=path, field=name, value=ours)
    check_simulated(plan, file=path)
    check_whole_experts(plan, file=path)
    for name in ("tp", "cp"):
        if getattr(plan, name) > 1 and rank_of_expert_LE(plan) is None:
            rule = "replicas are counted here for ranks with tokens of their own: use 1"
            raise MoecastError(rule, file=path, field=name, value=getattr(plan, name))
    return plan


def rank_of_expert_LE(plan: Plan) -> npt.NDArray[np.int32] | None:
    """The member of its EP group that holds each expert; None with replicas, or EP groups that differ."""
    if (plan.replicas_DLE() != 1).any() or (plan.slots_DLGP != plan.slots_DLGP[:1]).any():
        return None
    rank_LE = np.empty((plan.layers, plan.experts), np.int32)
    layer, rank, slot = np.nonzero(plan.slots_DLGP[0] != EMPTY)
    rank_LE[layer, plan.slots_DLGP[0][layer, rank, slot]] = rank
    return rank_LE


class PlanCounter:
    """Counts what a plan with replicas makes of a trace, all tokens as one step.

    Sequences are dealt to the source ranks of all EP groups by their number; the rule is
    `ReplicaTable`'s. Each choice is replaced by the rank that serves it, and ranks are counted as
    experts are: what can be counted of a placement without replicas can be counted here too.
    """

    def __init__(self, plan: Plan, *, domain_size: int) -> None:
        self._plan = plan
        ranks = self._plan.ranks
        domain_G = (np.arange(ranks) // domain_size).astype(np.int32)
        self._serving = ServingRanks(self._plan, domain_G)
        # a token makes no more choices than there are experts, but may make more than there are
        # ranks
        width = max(ranks, plan.choices)
        self._meta = TraceMeta(model="", layers=plan.layers, experts=width, choices=plan.choices)
        rank_LE = np.tile(np.arange(width), (plan.layers, 1))
        self._ranks = TraceCounter(self._meta, rank_of_expert_LE=rank_LE)
        self._domains = TraceCounter(self._meta, rank_of_expert_LE=rank_LE // domain_size, crossings=False)

    def watch(self, batches: Iterable[RoutingTrace]) -> Iterator[RoutingTrace]:
        """Pass batches on, counting each."""
        for batch in batches:
            for start in range(0, batch.n_tokens, _BLOCK_TOKENS):
                self._add(batch.select(slice(start, start + _BLOCK_TOKENS)))
            yield batch

    def _add(self, block: RoutingTrace) -> None:
        home_T = self._plan.layout.dealt(block.sequence_T)
        rank_TLK = self._serving.next_TLK(block.experts_TLK, home_T)
        served = dataclasses.replace(block, meta=self._meta, experts_TLK=rank_TLK, weights_TLK=None)
        self._ranks.add(served)
        self._domains.add(served)

    def applied(self, stats: TraceStats) -> TraceStats:
        """The trace's counts with the plan's in the place of those of another placement."""
        by_rank = self._ranks.stats()
        return dataclasses.replace(
            stats,
            rank_load_LG=by_rank.load_LE[:, : self._plan.ranks],
            fan_out_LF=by_rank.fan_out_LF,
            same_rank_L=by_rank.same_rank_L,
            pairs_L=by_rank.pairs_L,
            ep_groups=self._plan.groups,
        )

    @property
    def fan_out_domains_LF(self) -> npt.NDArray[np.int64]:
        """Tokens by the distinct domains that serve their choices."""
        counts_LF = self._domains.stats().fan_out_LF
        assert counts_LF is not None
        return counts_LF
