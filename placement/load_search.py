"""The search of one layer by load alone: replicas, longest first, then swaps, with no token to look at.

Axes: E expert, V item (a replica, or a hole), G rank, N domain, W window, P slot of a rank, T
token, K choice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.placement import anneal, swaps
from moecast.placement.holders import Holders
from moecast.placement.priced_layer import Layer, Prices
from moecast.placement.replicas import longest_first, replica_counts, slots_of
from moecast.placement.standing import State

Int32 = npt.NDArray[np.int32]


def balance_layer(load_E: npt.NDArray[np.int64], slots_G: Int32, domain_G: Int32, *, proposals: int) -> Int32:
    """Spread one layer's load as evenly as swaps can, an expert's load being even over its replicas: int32 [G, P].

    Parameters
    ----------
    slots_G, domain_G
        Slots and domain of each rank.
    proposals
        Swaps to judge at most.
    """
    ranks, most_slots = len(slots_G), int(slots_G.max())
    replicas_E = replica_counts(load_E, slots=int(slots_G.sum()), ranks=ranks)
    items = longest_first(load_E, replicas_E, slots_G, domain_G)
    mean = float(load_E.sum()) / ranks
    if mean == 0:
        return slots_of(items.rank_V, items.expert_V, ranks=ranks, slots=most_slots)
    experts, nothing = len(load_E), np.zeros(1)
    holders = Holders.of(
        items.expert_V, np.zeros(ranks, np.int32), load_E.astype(np.float64).reshape(experts, 1, 1), nothing
    )
    prices = Prices(np.zeros((len(items.rank_V), 1)), nothing, nothing, nothing, nothing)
    state = State.of(items.rank_V, items.expert_V, domain_G=domain_G, experts=experts, scenario_W=np.zeros(1, np.int32))
    nobody = swaps.Tokens.of(np.zeros((0, 1), np.int16), np.zeros(0, np.int32), experts)
    layer = Layer.of(nobody, prices, state, holders)
    anneal.descend(layer, proposals, anneal.LEAST_GAIN * mean)
    return slots_of(state.best_rank_V, state.best_expert_V, ranks=ranks, slots=most_slots)
