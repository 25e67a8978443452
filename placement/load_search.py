"""The search of one layer by load alone: replicas, longest first, then swaps, with no token to look at.

Axes: E expert, V item (a replica, or a hole), G rank, N domain, W window, P slot of a rank, T token, K choice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.placement import anneal, swaps
from moecast.placement.replicas import HOLE, Items, longest_first, replica_counts
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
        return items.slots_GP(items.rank_V, ranks=ranks, slots=most_slots)
    state, prices = _state(items, load_E, domain_G)
    nobody = swaps.Tokens.of(np.zeros((0, 1), np.int16), np.zeros(0, np.int32), len(items.rank_V))
    layer = anneal.Layer.of(nobody, nobody, prices, state)
    anneal.descend(layer, proposals, anneal.LEAST_GAIN * mean)
    return items.slots_GP(state.best_rank_V, ranks=ranks, slots=most_slots)


def _state(items: Items, load_E: npt.NDArray[np.int64], domain_G: Int32) -> tuple[State, anneal.Prices]:
    """Where the items stand, and what each weighs; copies cost nothing."""
    held_V, replicas_E = items.expert_V != HOLE, np.diff(items.first_E1)
    load_V1 = np.zeros((len(items.rank_V), 1))
    load_V1[held_V, 0] = (load_E / np.maximum(replicas_E, 1))[items.expert_V[held_V]]
    nothing = np.zeros(1)
    state = State.of(
        items.rank_V, items.expert_V, domain_G=domain_G, experts=len(load_E), scenario_W=np.zeros(1, np.int32)
    )
    return state, anneal.Prices(load_V1, nothing, nothing, nothing, nothing)
