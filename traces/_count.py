"""The compiled pass behind `statistics`.

Layers are walked inside blocks of tokens, so that a layer's tables stay in cache.
Axes: T token, L MoE layer, E expert, K choice, G rank, F fan-out 0…K.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK_TOKENS = 2048


@njit(cache=True, nogil=True)
def count_batch(
    experts_TLK, rank_LE, ranks, load_LE, coactivation_LEE, transition_LEE, fan_out_LF, same_rank_L, pairs_L
):
    """Add a batch to the tables in place; a table of length 0 is not counted. Ids of E and above are no choice."""
    tokens, layers, _ = experts_TLK.shape
    stamp_G = np.zeros(ranks, np.int64)
    on_rank_G = np.zeros(ranks, np.int64)
    for start in range(0, tokens, BLOCK_TOKENS):
        block_TLK = experts_TLK[start : start + BLOCK_TOKENS]
        for layer in range(layers):
            here_TK = block_TLK[:, layer]
            _count_load(here_TK, load_LE[layer])
            if len(coactivation_LEE) > 0:
                _count_pairs(here_TK, coactivation_LEE[layer])
            if len(fan_out_LF) > 0:
                _count_fan_out(here_TK, rank_LE[layer], stamp_G, fan_out_LF[layer])
            if layer + 1 == layers:
                continue
            next_TK = block_TLK[:, layer + 1]
            if len(transition_LEE) > 0:
                _count_transitions(here_TK, next_TK, transition_LEE[layer])
            if len(same_rank_L) > 0:
                same, pairs = _count_same_rank(here_TK, next_TK, rank_LE[layer], rank_LE[layer + 1], on_rank_G)
                same_rank_L[layer] += same
                pairs_L[layer] += pairs


@njit(cache=True, nogil=True)
def _count_load(chosen_TK, load_E):
    experts = len(load_E)
    for token in range(chosen_TK.shape[0]):
        for choice in range(chosen_TK.shape[1]):
            expert = chosen_TK[token, choice]
            if expert < experts:
                load_E[expert] += 1


@njit(cache=True, nogil=True)
def _count_pairs(chosen_TK, upper_EE):
    """Count each unordered pair of a token's experts once, at [smaller, larger]."""
    experts = len(upper_EE)
    for token in range(chosen_TK.shape[0]):
        for choice in range(chosen_TK.shape[1]):
            one = chosen_TK[token, choice]
            if one >= experts:
                continue
            for other in range(choice):
                two = chosen_TK[token, other]
                if two < experts:
                    upper_EE[min(one, two), max(one, two)] += 1


@njit(cache=True, nogil=True)
def _count_transitions(here_TK, next_TK, transition_EE):
    experts = len(transition_EE)
    for token in range(here_TK.shape[0]):
        for choice in range(here_TK.shape[1]):
            one = here_TK[token, choice]
            if one >= experts:
                continue
            for following in range(next_TK.shape[1]):
                two = next_TK[token, following]
                if two < experts:
                    transition_EE[one, two] += 1


@njit(cache=True, nogil=True)
def _count_fan_out(chosen_TK, rank_E, stamp_G, fan_out_F):
    """Histogram of the distinct ranks per token; `stamp_G` is scratch that remembers who saw a rank last."""
    experts = len(rank_E)
    stamp_G[:] = -1
    for token in range(chosen_TK.shape[0]):
        distinct = 0
        for choice in range(chosen_TK.shape[1]):
            expert = chosen_TK[token, choice]
            if expert < experts:
                rank = rank_E[expert]
                distinct += stamp_G[rank] != token
                stamp_G[rank] = token
        fan_out_F[distinct] += 1


@njit(cache=True, nogil=True)
def _count_same_rank(here_TK, next_TK, rank_E, next_rank_E, on_rank_G):
    """(pairs on one rank, pairs) over the choices of consecutive layers; `on_rank_G` is scratch, all 0."""
    experts = len(rank_E)
    same = pairs = 0
    for token in range(here_TK.shape[0]):
        here = following = 0
        for choice in range(here_TK.shape[1]):
            expert = here_TK[token, choice]
            if expert < experts:
                on_rank_G[rank_E[expert]] += 1
                here += 1
        for choice in range(next_TK.shape[1]):
            expert = next_TK[token, choice]
            if expert < experts:
                same += on_rank_G[next_rank_E[expert]]
                following += 1
        for choice in range(here_TK.shape[1]):
            expert = here_TK[token, choice]
            if expert < experts:
                on_rank_G[rank_E[expert]] = 0
        pairs += here * following
    return same, pairs
