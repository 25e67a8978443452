"""The compiled pass behind `statistics`.

Every table has one place more than there are experts or ranks: empty choices are counted there, which spares the inner
loops a branch. Axes: T token, L MoE layer, E expert and the place for no choice, K choice, G rank and the place for
none, F fan-out 0…K.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np
from numba import njit

# Tokens of a block: its choices must stay in cache, and pairs must outnumber the entries of an E·E table brought in.
_MIN_BLOCK, _MAX_BLOCK = 512, 4096


@njit(cache=True, nogil=True)
def count_batch(experts_TLK, load_LE, coactivation_LEE, transition_LEE, rank_LE, fan_out_LF, same_rank_L, pairs_L):
    """Add a batch to the tables in place; a table of length 0 is not counted.

    `rank_LE` and `load_LE` are [L, E + 1], the pair tables [L or L-1, E + 1, E + 1].
    """
    tokens, _, choices = experts_TLK.shape
    experts = load_LE.shape[1]
    block = min(max(4 * experts**2 // choices**2, _MIN_BLOCK), _MAX_BLOCK)
    for start in range(0, tokens, block):
        block_TLK = experts_TLK[start : start + block]
        _count_load(block_TLK, load_LE)
        if len(coactivation_LEE) > 0:
            _count_coactivation(block_TLK, coactivation_LEE)
        if len(transition_LEE) > 0:
            _count_transition(block_TLK, transition_LEE)
        if len(rank_LE) > 0:
            _count_ranks(block_TLK, rank_LE, fan_out_LF, same_rank_L, pairs_L)


@njit(cache=True, nogil=True)
def _count_load(block_TLK, load_LE):
    tokens, layers, choices = block_TLK.shape
    none = np.uint16(load_LE.shape[1] - 1)
    for token in range(tokens):
        for layer in range(layers):
            for choice in range(choices):
                load_LE[layer, min(block_TLK[token, layer, choice], none)] += np.uint32(1)


@njit(cache=True, nogil=True)
def _gather(block_TLK, layer, none, chosen_TK):
    """Copy one layer's choices, ids above `none` as `none`."""
    for token in range(block_TLK.shape[0]):
        for choice in range(block_TLK.shape[2]):
            chosen_TK[token, choice] = min(block_TLK[token, layer, choice], none)


@njit(cache=True, nogil=True)
def _count_coactivation(block_TLK, coactivation_LEE):
    """Count each pair of a token's choices once, at [later, earlier]."""
    tokens, layers, choices = block_TLK.shape
    width = np.uint64(coactivation_LEE.shape[1])
    chosen_TK = np.empty((tokens, choices), np.uint16)
    for layer in range(layers):
        _gather(block_TLK, layer, np.uint16(width - 1), chosen_TK)
        pairs = coactivation_LEE[layer].reshape(-1)
        for token in range(tokens):
            for choice in range(1, choices):
                row = np.uint64(chosen_TK[token, choice]) * width
                for earlier in range(choice):
                    pairs[row + np.uint64(chosen_TK[token, earlier])] += np.uint32(1)


@njit(cache=True, nogil=True)
def _count_transition(block_TLK, transition_LEE):
    tokens, layers, choices = block_TLK.shape
    width = np.uint64(transition_LEE.shape[1])
    here_TK = np.empty((tokens, choices), np.uint16)
    next_TK = np.empty((tokens, choices), np.uint16)
    _gather(block_TLK, 0, np.uint16(width - 1), here_TK)
    for layer in range(layers - 1):
        _gather(block_TLK, layer + 1, np.uint16(width - 1), next_TK)
        pairs = transition_LEE[layer].reshape(-1)
        for token in range(tokens):
            for choice in range(choices):
                row = np.uint64(here_TK[token, choice]) * width
                for following in range(choices):
                    pairs[row + np.uint64(next_TK[token, following])] += np.uint32(1)
        here_TK, next_TK = next_TK, here_TK


@njit(cache=True, nogil=True)
def _count_ranks(block_TLK, rank_LE, fan_out_LF, same_rank_L, pairs_L):
    """Fan-out, and pairs of choices at consecutive layers: all of them, and those on one rank."""
    tokens, layers, choices = block_TLK.shape
    no_expert = np.uint16(rank_LE.shape[1] - 1)
    no_rank = rank_LE[0, no_expert]
    on_rank_G = np.zeros(no_rank + 1, np.uint32)
    for layer in range(layers):
        for token in range(tokens):
            distinct = 0
            for choice in range(choices):
                rank = rank_LE[layer, min(block_TLK[token, layer, choice], no_expert)]
                distinct += on_rank_G[rank] == 0
                on_rank_G[rank] += np.uint32(1)
            empty = on_rank_G[no_rank]
            on_rank_G[no_rank] = 0
            fan_out_LF[layer, distinct - (empty > 0)] += 1
            if layer + 1 < layers:
                same = following = 0
                for choice in range(choices):
                    rank = rank_LE[layer + 1, min(block_TLK[token, layer + 1, choice], no_expert)]
                    same += on_rank_G[rank]
                    following += rank != no_rank
                same_rank_L[layer] += same
                pairs_L[layer] += (choices - empty) * following
            for choice in range(choices):
                on_rank_G[rank_LE[layer, min(block_TLK[token, layer, choice], no_expert)]] = 0
