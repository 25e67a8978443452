"""A trace under a Plan: the rank of each expert where there are no replicas, else traffic counted by the plan's rule.

Axes: L MoE layer, E expert, G rank, S source rank, N domain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim import Plan, read_plan
from moecast.sim.layout import Layout
from moecast.sim.plan import EMPTY
from moecast.sim.replicas import ReplicaTable
from moecast.sim.traffic import count_traffic
from moecast.topology import load_cluster
from moecast.traces import RoutingTrace, TraceMeta

_BLOCK_TOKENS = 1 << 15


def read_plan_for(path: Path, meta: TraceMeta) -> Plan:
    """Read a plan and check that it is for the trace's model.

    Raises
    ------
    MoecastError
        Not a legal plan, or its L, E or K is not the trace's.
    """
    plan = read_plan(path)
    for name in ("layers", "experts", "choices"):
        ours, theirs = getattr(plan, name), getattr(meta, name)
        if ours != theirs:
            raise MoecastError(f"the trace has {theirs}", file=path, field=name, value=ours)
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
    """Counts what a plan with replicas makes of a trace, whole sequences dealt to source ranks by their number.

    The i-th choice of an expert is counted per source within blocks of 32,768 tokens.
    """

    def __init__(self, plan: Plan, *, domain_size: int) -> None:
        self._plan = plan.with_(gpu_of_rank=tuple(range(plan.groups * plan.ep)), pp=1, etp=1, tp=1, cp=1, dp=0)
        ranks = self._plan.ranks
        domain_G = (np.arange(ranks) // domain_size).astype(np.int32)
        cluster = load_cluster("dgx-h100", nodes=-(-ranks // 8))  # stands for any: counts take the domains alone
        self._layout = dataclasses.replace(
            Layout.of(cluster, self._plan),
            domain_G=domain_G,
            relay_SN=np.zeros((ranks, int(domain_G[-1]) + 1), np.int32),
        )
        self._table = ReplicaTable.of(self._plan, domain_G)
        self._load_LG = np.zeros((plan.layers, ranks), np.int64)
        self._copies_L = np.zeros(plan.layers, np.int64)
        self._domain_copies_L = np.zeros(plan.layers, np.int64)
        self._tokens = self._same = self._pairs = 0

    def watch(self, batches: Iterable[RoutingTrace]) -> Iterator[RoutingTrace]:
        """Pass batches on, counting each."""
        for batch in batches:
            for start in range(0, batch.n_tokens, _BLOCK_TOKENS):
                self._add(batch.select(slice(start, start + _BLOCK_TOKENS)))
            yield batch

    def _add(self, block: RoutingTrace) -> None:
        home_T = (block.sequence_T % self._plan.ranks).astype(np.int32)
        token_T = np.arange(block.n_tokens)
        traffic = count_traffic(self._plan, self._layout, block.experts_TLK, token_T, home_T, table=self._table)
        self._load_LG += traffic.rank_load_LG
        self._copies_L += traffic.copies_LSD.sum(axis=(1, 2), dtype=np.int64)
        self._domain_copies_L += traffic.domain_copies_LSN.sum(axis=(1, 2), dtype=np.int64)
        self._tokens += block.n_tokens
        self._same += traffic.same_rank_pairs
        self._pairs += traffic.pairs

    def facts(self) -> dict[str, Any]:
        """The numbers of the plan, by their names in the JSON of ``trace stats``; those by layer end in ``_L``."""
        load_LDG = self._load_LG.reshape(len(self._load_LG), self._plan.groups, self._plan.ep)
        highest_LD = load_LDG.max(axis=2)
        balance_LD = np.full(highest_LD.shape, math.nan)
        np.divide(load_LDG.mean(axis=2), highest_LD, out=balance_LD, where=highest_LD > 0)
        balance_L = np.array([_mean(balance_D) for balance_D in balance_LD])
        fan_out_L, domains_L = self._copies_L / max(self._tokens, 1), self._domain_copies_L / max(self._tokens, 1)
        return {
            "balance_pooled": _mean(balance_L),
            "fan_out": float(fan_out_L.mean()),
            "fan_out_domains": float(domains_L.mean()),
            "crossings": 1 - self._same / self._pairs if self._pairs else math.nan,
            "balance_pooled_L": balance_L,
            "fan_out_L": fan_out_L,
        }


def _mean(values: npt.NDArray[np.float64]) -> float:
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))
