"""The compiled passes behind `drift`, `positions` and `stability`: load by part of the trace.

Axes: T token, L MoE layer, E expert and the place for no choice, K choice, G rank, C part (window,
topic), P bucket of positions.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from moecast.compiled import entry

_BLOCK = 512  # tokens whose choices stay in cache from layer to layer


@entry
def count_parts(experts_TLK, part_T, bucket_T, load_CLE, made_PL):
    """Add each choice to its part's load, [C, L, E + 1], and to the choices made at its bucket of positions."""
    tokens, layers, choices = experts_TLK.shape
    none = np.uint16(load_CLE.shape[2] - 1)
    for start in range(0, tokens, _BLOCK):
        end = min(start + _BLOCK, tokens)
        for layer in range(layers):
            for token in range(start, end):
                # a part's tokens stand together: it stays where it is cached
                load_E = load_CLE[part_T[token], layer]
                made = 0
                for choice in range(choices):
                    # No branch: empty ones have a place of their own.
                    expert = min(experts_TLK[token, layer, choice], none)
                    load_E[expert] += np.uint32(1)
                    made += expert != none
                made_PL[bucket_T[token], layer] += made


@entry
def count_tokens_at(experts_TLK, order_T, load_LE):
    """Add the choices of the tokens at `order_T` to a load table [L, E + 1]."""
    _, layers, choices = experts_TLK.shape
    none = np.uint16(load_LE.shape[1] - 1)
    for token in order_T:
        for layer in range(layers):
            for choice in range(choices):
                load_LE[layer, min(experts_TLK[token, layer, choice], none)] += 1


@entry
def pack(load_LE, order_LE, n_ranks, rank_LE):
    """Experts in their order, each to the least loaded rank that has a slot left, ⌈E / G⌉ slots to a rank."""
    layers, experts = load_LE.shape
    slots = (experts + n_ranks - 1) // n_ranks
    for layer in range(layers):
        load_G = np.zeros(n_ranks, np.float64)
        filled_G = np.zeros(n_ranks, np.int64)
        for place in range(experts):
            expert = order_LE[layer, place]
            best = -1
            for rank in range(n_ranks):
                # The lowest of equals, so that the packing depends on nothing but the loads.
                if filled_G[rank] < slots and (best < 0 or load_G[rank] < load_G[best]):
                    best = rank
            rank_LE[layer, expert] = best
            load_G[best] += load_LE[layer, expert]
            filled_G[best] += 1
