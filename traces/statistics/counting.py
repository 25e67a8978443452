"""The compiled pass behind `statistics`.

Every table has one place more than there are experts or ranks: empty choices are counted there,
which spares the inner loops a branch. Axes: T token, L MoE layer, E expert and the place for no
choice, K choice, G rank and the place for none, F fan-out 0…K.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from moecast.compiled import entry, inner

# Tokens of a block: its choices must stay in cache, and pairs must outnumber the entries of an E·E
# table brought in.
_MIN_BLOCK, _MAX_BLOCK = 512, 4096
# tokens whose ranks are compared at once; with their choices they stay in cache
_VECTOR_TOKENS = 256
_FEW_CHOICES = 32  # whose pairs with MAX_CHOICES others can be counted in 16 bits


@entry
def count_batch(experts_TLK, rank_LE, load_LE, coactivation_LEE, transition_LEE, fan_out_LF, same_rank_L, pairs_L):
    """Add a batch to the tables in place; a table of length 0 is not counted.

    `rank_LE` (uint16) and `load_LE` are [L, E + 1], the pair tables [L or L-1, E + 1, E + 1].
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
            for first in range(0, len(block_TLK), _VECTOR_TOKENS):
                part_TLK = block_TLK[first : first + _VECTOR_TOKENS]
                _count_ranks(part_TLK, rank_LE, fan_out_LF, same_rank_L, pairs_L)


@inner
def _count_load(block_TLK, load_LE):
    tokens, layers, choices = block_TLK.shape
    none = np.uint16(load_LE.shape[1] - 1)
    for token in range(tokens):
        for layer in range(layers):
            for choice in range(choices):
                load_LE[layer, min(block_TLK[token, layer, choice], none)] += np.uint32(1)


@inner
def _gather(block_TLK, layer, none, chosen_TK):
    """Copy one layer's choices, ids above `none` as `none`."""
    for token in range(block_TLK.shape[0]):
        for choice in range(block_TLK.shape[2]):
            chosen_TK[token, choice] = min(block_TLK[token, layer, choice], none)


@inner
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


@inner
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


@inner
def _count_ranks(block_TLK, rank_LE, fan_out_LF, same_rank_L, pairs_L):
    """Fan-out, and pairs of choices at consecutive layers: all of them, and those on one rank.

    Choices are compared with each other, one with one for all tokens at once, which fills whole
    vectors.
    """
    tokens, layers, choices = block_TLK.shape
    no_rank = rank_LE[0, rank_LE.shape[1] - 1]
    here_KT, before_KT = np.empty((choices, tokens), np.uint16), np.empty((choices, tokens), np.uint16)
    for layer in range(layers):
        _look_up(block_TLK, layer, rank_LE[layer], here_KT)
        _count_distinct(here_KT, no_rank, fan_out_LF[layer])
        if layer > 0 and len(same_rank_L) > 0:
            same, pairs = count_pairs(before_KT, here_KT, no_rank)
            same_rank_L[layer - 1] += same
            pairs_L[layer - 1] += pairs
        here_KT, before_KT = before_KT, here_KT


@inner
def _look_up(block_TLK, layer, rank_E, rank_KT):
    """Find the rank of each choice at one layer."""
    no_expert = np.uint16(len(rank_E) - 1)
    for token in range(block_TLK.shape[0]):
        for choice in range(block_TLK.shape[2]):
            rank_KT[choice, token] = rank_E[min(block_TLK[token, layer, choice], no_expert)]


@inner
def _count_distinct(rank_KT, no_rank, fan_out_F):
    """Count tokens by how many ranks they go to."""
    choices, tokens = rank_KT.shape
    distinct_T, known_T = np.zeros(tokens, np.uint16), np.empty(tokens, np.uint16)
    for choice in range(choices):
        rank_T = rank_KT[choice]
        for token in range(tokens):
            known_T[token] = rank_T[token] == no_rank
        for earlier in range(choice):
            other_T = rank_KT[earlier]
            for token in range(tokens):
                known_T[token] |= np.uint16(rank_T[token] == other_T[token])
        for token in range(tokens):
            distinct_T[token] += known_T[token] ^ np.uint16(1)
    for token in range(tokens):
        fan_out_F[distinct_T[token]] += 1


@inner
def count_pairs(before_KT, here_KT, no_rank):
    """Pairs of a token's choices at two layers: those on one rank, and all."""
    choices, tokens = here_KT.shape
    same_T = np.empty(tokens, np.uint16)
    empty_before_T, empty_here_T = np.zeros(tokens, np.uint16), np.zeros(tokens, np.uint16)
    same, pairs = np.int64(0), np.int64(0)
    for first in range(0, choices, _FEW_CHOICES):
        same_T[:] = 0
        for choice in range(first, min(first + _FEW_CHOICES, choices)):
            before_T, here_T = before_KT[choice], here_KT[choice]
            for following in range(choices):
                other_T = here_KT[following]
                for token in range(tokens):
                    same_T[token] += np.uint16(before_T[token] == other_T[token])
            for token in range(tokens):
                empty_before_T[token] += np.uint16(before_T[token] == no_rank)
            for token in range(tokens):
                empty_here_T[token] += np.uint16(here_T[token] == no_rank)
        for token in range(tokens):
            same += np.int64(same_T[token])
    for token in range(tokens):
        empty_before, empty_here = np.int64(empty_before_T[token]), np.int64(empty_here_T[token])
        same -= empty_before * empty_here
        pairs += (choices - empty_before) * (choices - empty_here)
    return same, pairs
