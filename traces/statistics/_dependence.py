"""The compiled pass behind `dependence`: how much tokens of one group choose alike.

Axes: T token, K choice, R group.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

import numpy as np

from moecast.compiled import entry, njit


@entry
def group_overlap(chosen_TK, order_T, group_R1, experts, log_N, shared_T):
    """Write the choices that each token shares with another of its group on average, nan where it is alone.

    `order_T[group_R1[r] : group_R1[r + 1]]` are the tokens of group r; `log_N[n]` is n · log2 n.
    Returns the entropy in bits of a choice within its group, as counts stand.
    """
    count_E = np.zeros(experts, np.int32)
    logs = 0.0
    made = 0
    for group in range(len(group_R1) - 1):
        first, end = group_R1[group], group_R1[group + 1]
        members = order_T[first:end]
        in_group = _count(chosen_TK, members, experts, count_E)
        _share(chosen_TK, members, experts, count_E, shared_T)
        logs += _log(in_group, log_N) - _clear(chosen_TK, members, experts, log_N, count_E)
        made += in_group
    return logs / made if made > 0 else math.nan


@njit(cache=True, nogil=True, inline="always")
def _count(chosen_TK, members, experts, count_E):
    made = 0
    for index in range(len(members)):
        token = members[index]
        for choice in range(chosen_TK.shape[1]):
            expert = chosen_TK[token, choice]
            if expert < experts:
                count_E[expert] += 1
                made += 1
    return made


@njit(cache=True, nogil=True, inline="always")
def _share(chosen_TK, members, experts, count_E, shared_T):
    others = len(members) - 1
    for index in range(len(members)):
        token = members[index]
        shared = 0
        for choice in range(chosen_TK.shape[1]):
            expert = chosen_TK[token, choice]
            if expert < experts:
                shared += count_E[expert] - 1  # a token shares nothing with itself
        shared_T[token] = shared / others if others > 0 else math.nan


@njit(cache=True, nogil=True, inline="always")
def _clear(chosen_TK, members, experts, log_N, count_E):
    logs = 0.0
    for index in range(len(members)):
        token = members[index]
        for choice in range(chosen_TK.shape[1]):
            expert = chosen_TK[token, choice]
            if expert < experts and count_E[expert] > 0:
                logs += _log(count_E[expert], log_N)
                # By those that were counted: clearing all E for every small group would take
                # longer.
                count_E[expert] = 0
    return logs


@njit(cache=True, nogil=True, inline="always")
def _log(count, log_N):
    if count < len(log_N):  # nearly always, as groups are small: a logarithm takes longer
        return log_N[count]
    return count * math.log2(count)
