"""The linear layer cost in plain Python, as the heads of `moecast.placement.cost` and `exact` say it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from moecast.placement import PlacementProblem
from moecast.placement.cost import MEAN_SHARE, LayerCost


def every_placement(experts: int, ranks: int) -> Iterator[np.ndarray]:
    """All ways to stand experts on ranks of equally many slots, each expert once: int32 [G, P]."""
    share = experts // ranks
    for order in itertools.permutations(range(experts)):
        table = np.array(order, np.int32).reshape(ranks, share)
        if (np.diff(table, axis=1) > 0).all():
            yield table


def linear_cost(problem: PlacementProblem, slots_GP: np.ndarray) -> float:
    """Seconds of the first layer, summed over windows; own ranks and own domains cost no copy."""
    cost, windows, ep, domain_G = LayerCost.of(problem), problem.windows, problem.wanted.ep, problem.domain_G
    rank_of = {int(e): g for g in range(ep) for e in slots_GP[g] if e >= 0}
    held_G = [sum(e >= 0 for e in row) for row in slots_GP]
    total = 0.0
    for window in range(windows.n):
        steps = round(float(windows.step_share_W[window]) * windows.n_steps)
        seconds = [steps * cost.replica_s * held for held in held_G]
        shared = 0.0
        for t in np.flatnonzero(windows.window_T == window):
            own = int(windows.rank_T[t])
            ranks = [rank_of[int(e)] for e in problem.trace.experts_TLK[windows.row_T[t], 0] if int(e) in rank_of]
            for g in ranks:
                seconds[g] += cost.choice_s
            into_domains = {int(domain_G[g]) for g in ranks} - {int(domain_G[own])}
            for g in range(ep):
                copies = cost.copy_s * (g in ranks and g != own) + cost.domain_copy_s * (
                    int(domain_G[g]) in into_domains
                )
                seconds[g] += (1 - MEAN_SHARE) * copies
                shared += MEAN_SHARE * copies / ep
        total += max(seconds) + shared
    return total
