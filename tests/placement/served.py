"""Which item serves each choice, as the search deals them out."""

from __future__ import annotations

import numpy as np

from moecast.placement import PlacementProblem, swaps
from moecast.placement.holders import Holders
from moecast.placement.layer_search import places, turns_of
from moecast.placement.priced_layer import serve
from moecast.placement.replicas import Items
from moecast.placement.windows import Windows


def served(problem: PlacementProblem, items: Items, experts_TK: np.ndarray, windows: Windows) -> np.ndarray:
    """The item of each choice (int16 [T, K]); tokens come from the windows' ranks, in their steps."""
    experts, place_G = problem.wanted.experts, places(problem)
    tokens = swaps.Tokens.of(
        np.where(experts_TK < experts, experts_TK, -1).astype(np.int16),
        np.zeros(len(experts_TK), np.int32),
        experts,
        place_T=place_G[windows.rank_T],
        turn_TK=turns_of(experts_TK, windows, problem.wanted),
    )
    serve(
        tokens,
        Holders.of(items.expert_V, place_G, np.zeros((experts, int(place_G.max()) + 1, 1)), np.zeros(1)),
        items.rank_V,
    )
    return tokens.item_TK
