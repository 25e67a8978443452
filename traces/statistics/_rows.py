"""The compiled pass behind `check_health`: rows that a router hardly makes.

Axes: T token, L MoE layer, K choice.
"""

# numba functions carry no annotations: their types come from the call
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import numpy as np

from moecast.compiled import entry


@entry
def count_in_order(experts_TLK):
    """Rows that choose experts 0, 1, … K-1 in this order at every layer: what a router of zeros gives."""
    tokens, layers, choices = experts_TLK.shape
    found = 0
    for token in range(tokens):
        same = True
        for layer in range(layers):
            for choice in range(choices):
                # Real rows differ at once, so that one number is read of each: this may run over
                # all of a trace.
                if experts_TLK[token, layer, choice] != choice:
                    same = False
                    break
            if not same:
                break
        found += same
    return found


@entry
def repeats_T(experts_TLK, repeat_T):
    """Mark the rows that equal the row before."""
    tokens, layers, choices = experts_TLK.shape
    for token in range(1, tokens):
        same = True  # by comparison, not by hashes: rows that differ do so within the first choices
        for layer in range(layers):
            for choice in range(choices):
                if experts_TLK[token, layer, choice] != experts_TLK[token - 1, layer, choice]:
                    same = False
                    break
            if not same:
                break
        repeat_T[token] = same


@entry
def hash_runs(experts_TLK, run_R1, most, hash_R):
    """Hash the choices of each run's first `most` rows (FNV-1a, a choice at a time)."""
    _, layers, choices = experts_TLK.shape
    for run in range(len(run_R1) - 1):
        # wraps around as the definition wants it, being unsigned
        value = np.uint64(14695981039346656037)
        for token in range(run_R1[run], min(run_R1[run + 1], run_R1[run] + most)):
            for layer in range(layers):
                for choice in range(choices):
                    value = (value ^ np.uint64(experts_TLK[token, layer, choice])) * np.uint64(1099511628211)
        hash_R[run] = value
