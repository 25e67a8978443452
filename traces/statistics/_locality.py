"""The compiled pass behind `locality`: how often each expert is chosen in every window of consecutive tokens.

Axes: T token, K choice, R run, E expert, F times chosen 0…length, S cache size.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from moecast.compiled import entry, njit


@entry
def count_windows(chosen_TK, run_R1, experts, length, size_S, times_F, hits_S):
    """Slide a window over each run of one layer's choices; returns how many windows there are.

    Adds to `times_F[f]` the (window, expert) pairs in which the expert is chosen f > 0 times, and
    to `hits_S[s]` the choices in a window that fall on its `size_S[s]` (rising) most chosen
    experts.
    """
    count_E = np.zeros(experts, np.int32)  # times chosen in the window
    experts_F = np.zeros(length + 1, np.int32)  # experts chosen so often
    windows = 0
    for run in range(len(run_R1) - 1):
        first, end = run_R1[run], run_R1[run + 1]
        if end - first < length:
            continue
        count_E[:] = 0
        experts_F[:] = 0
        highest = 0
        for token in range(first, end):
            if token - first >= length:
                _leave(chosen_TK, token - length, experts, count_E, experts_F)
            highest = _enter(chosen_TK, token, experts, count_E, experts_F, highest)
            if token - first >= length - 1:
                windows += 1
                highest = _look(experts_F, highest, size_S, times_F, hits_S)
    return windows


@njit(cache=True, nogil=True, inline="always")
def _leave(chosen_TK, token, experts, count_E, experts_F):
    for choice in range(chosen_TK.shape[1]):
        expert = chosen_TK[token, choice]
        if expert < experts:
            times = count_E[expert]
            experts_F[times] -= 1
            experts_F[times - 1] += 1
            count_E[expert] = times - 1


@njit(cache=True, nogil=True, inline="always")
def _enter(chosen_TK, token, experts, count_E, experts_F, highest):
    for choice in range(chosen_TK.shape[1]):
        expert = chosen_TK[token, choice]
        if expert < experts:
            times = count_E[expert] + 1
            experts_F[times - 1] -= 1
            experts_F[times] += 1
            count_E[expert] = times
            highest = max(highest, times)
    return highest


@njit(cache=True, nogil=True, inline="always")
def _look(experts_F, highest, size_S, times_F, hits_S):
    """Add one window, from its most chosen experts down; returns how often those are chosen."""
    while highest > 0 and experts_F[highest] == 0:
        highest -= 1
    taken = served = cache = 0
    for times in range(highest, 0, -1):
        found = experts_F[times]
        times_F[times] += found
        while cache < len(size_S) and taken + found >= size_S[cache]:
            hits_S[cache] += served + (size_S[cache] - taken) * times
            cache += 1
        taken += found
        served += found * times
    for rest in range(cache, len(size_S)):
        hits_S[rest] += served
    return highest
