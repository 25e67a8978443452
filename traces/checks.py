"""The rule on choices: ids below E or `NO_CHOICE`, and no expert twice for a token at one layer.

Axes: T token, L MoE layer, K choice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry
from moecast.traces.meta import NO_CHOICE


def check_choices(experts_TLK: npt.NDArray[np.uint16], experts: int, *, first_token: int = 0) -> None:
    """Fail at the first token that breaks the rule; tokens are counted from `first_token`.

    Raises
    ------
    TypeError
        Not an array of uint16 with three axes.
    ValueError
        Names the token, the layer and the id.
    """
    if not isinstance(experts_TLK, np.ndarray) or experts_TLK.dtype != np.uint16 or experts_TLK.ndim != 3:
        found = getattr(experts_TLK, "dtype", type(experts_TLK).__name__)
        raise TypeError(f"experts_TLK: must be an array of uint16 with three axes, not {found}")
    bad = first_bad_choice(experts_TLK, experts)
    if bad[0] >= 0:
        raise ValueError(complaint(bad, experts, first_token=first_token))


def complaint(bad: tuple[int, int, int], experts: int, *, first_token: int = 0) -> str:
    """Say what is wrong with the choice that `first_bad_choice` found."""
    token, layer, expert = bad
    where = f"token {first_token + token}, layer {layer}: expert {expert}"
    if expert >= experts:
        return f"{where} is outside 0…{experts - 1} and not {NO_CHOICE} (no choice)"
    return f"{where} is chosen twice"


@entry
def first_bad_choice(experts_TLK, experts):  # type: ignore[no-untyped-def]
    """(token, layer, expert) of the first choice out of range or repeated; token -1 when there is none."""
    tokens, layers, choices = experts_TLK.shape
    # The row in which each expert was seen last: nothing is cleared between rows.
    last_seen_E = np.full(experts, -1, np.int64)
    row = 0
    for token in range(tokens):
        for layer in range(layers):
            for choice in range(choices):
                expert = experts_TLK[token, layer, choice]
                if expert == NO_CHOICE:
                    continue
                if expert >= experts or last_seen_E[expert] == row:
                    # As wide as the -1 below: a compiled function has one type of result.
                    return token, layer, np.int64(expert)
                last_seen_E[expert] = row
            row += 1
    return -1, -1, np.int64(-1)
