"""The compiled pass behind rolling caches: an expert cache that knows how often each expert comes next.

Axes: T token, K choice, R run, E expert, S cache size, P place in a cache.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from moecast.compiled import entry, inner


@entry
def count_hits(chosen_TK, first_R, end_R, experts, length, size_S, hits_S):
    """Serve each run from an empty cache of each size.

    Adds the choices found in it, returns all choices.

    Where an expert must give way, it is the one that the next `length` tokens choose least, of
    those the one that was used longest ago. Experts of the token at hand stay; a cache that they
    fill serves the rest without keeping it.
    """
    choices = chosen_TK.shape[1]
    coming_E = np.zeros(experts, np.int32)
    used_E = np.zeros(experts, np.int64)
    sizes = len(size_S)
    held_SP = np.empty((sizes, max(size_S.max(), 1) if sizes else 1), np.int64)
    filled_S = np.zeros(sizes, np.int64)
    inside_SE = np.zeros((sizes, experts), np.bool_)
    served = 0
    for run in range(len(first_R)):
        first, end = first_R[run], end_R[run]
        coming_E[:] = 0
        used_E[:] = -1
        filled_S[:] = 0
        inside_SE[:] = False
        for token in range(first, min(first + length, end)):
            _add(chosen_TK, token, experts, coming_E, 1)
        for token in range(first, end):
            # The window slides: what is chosen now lies ahead no longer.
            _add(chosen_TK, token, experts, coming_E, -1)
            if token + length < end:
                _add(chosen_TK, token + length, experts, coming_E, 1)
            for choice in range(choices):
                expert = chosen_TK[token, choice]
                if expert < experts:
                    served += 1
                    # of all its choices first: none may push out another of them
                    used_E[expert] = token
            for size in range(sizes):
                hits = 0
                for choice in range(choices):
                    expert = chosen_TK[token, choice]
                    hits += expert < experts and inside_SE[size, expert]
                hits_S[size] += hits
                for choice in range(choices):
                    expert = chosen_TK[token, choice]
                    if expert < experts and not inside_SE[size, expert]:
                        _take_in(expert, token, size_S[size], size, held_SP, filled_S, inside_SE, coming_E, used_E)
    return served


@entry
def _add(chosen_TK, token, experts, coming_E, times):
    for choice in range(chosen_TK.shape[1]):
        expert = chosen_TK[token, choice]
        if expert < experts:
            coming_E[expert] += times


@inner
def _take_in(expert, token, most, size, held_SP, filled_S, inside_SE, coming_E, used_E):
    if filled_S[size] < most:
        held_SP[size, filled_S[size]] = expert
        filled_S[size] += 1
        inside_SE[size, expert] = True
        return
    worst = -1
    for place in range(most):
        held = held_SP[size, place]
        if used_E[held] == token:
            continue
        if worst >= 0:
            least = held_SP[size, worst]
            if coming_E[held] > coming_E[least]:
                continue
            if coming_E[held] == coming_E[least] and (used_E[held], held) > (used_E[least], least):
                continue
        worst = place
    if worst >= 0:
        inside_SE[size, held_SP[size, worst]] = False
        held_SP[size, worst] = expert
        inside_SE[size, expert] = True
