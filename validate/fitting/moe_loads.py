"""The loads behind measured times of experts, of which the tables give only the law.

`balanced`: every expert serves as many choices as any other, and every rank. `power_law_A`: the law
of `moecast.sim.made_routing` (counts drawn from a density x^-A, scaled to the number of choices),
and the time is that of the rank that has most. The draw itself is not known: these are others by
the same law, so that a single row of a small step may be far off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.tables.moe import even_loads, grouped_loads

Int = npt.NDArray[np.int64]

BALANCED = "balanced"
MOST_OF_TOKENS = 0.8
FEW = (0.01, 2.0)  # where there are no more choices than experts, counts are drawn between these


def loads_of_rank(
    *,
    tokens: int,
    choices: int,
    experts: int,
    parts: int,
    law: str,
    random: np.random.Generator,
    grouped: bool = False,
) -> Int:
    """Choices that each slot of the timed rank serves, of as many ranks as experts are cut in `parts`.

    `grouped`: even ones, as a router by groups turns them.

    Raises
    ------
    ValueError
        An unknown law.
    """
    pairs = tokens * choices
    if law == BALANCED and grouped:
        return grouped_loads(tokens=tokens, experts=experts, parts=parts)
    if law == BALANCED:
        return even_loads(tokens=tokens, choices=choices, experts=experts, parts=parts)
    if not law.startswith("power_law_"):
        raise ValueError(f"law {law!r}: balanced or power_law_A")
    load_E = _power_law(tokens, pairs, experts, float(law.removeprefix("power_law_")), random)
    load_GP = load_E.reshape(parts, -1)
    return load_GP[int(np.argmax(load_GP.sum(axis=1)))]


def _power_law(tokens: int, pairs: int, experts: int, exponent: float, random: np.random.Generator) -> Int:
    least, most = (1.0, MOST_OF_TOKENS * tokens) if pairs > experts else FEW
    most, power = max(most, 2 * least), 1.0 - exponent
    drawn_E = ((most**power - least**power) * random.random(experts) + least**power) ** (1 / power)
    load_E = np.minimum(np.round(drawn_E / drawn_E.sum() * pairs), tokens).astype(np.int64)
    order_E = np.argsort(-drawn_E)
    place = 0
    while missing := pairs - int(load_E.sum()):
        expert, sign = order_E[place % experts], 1 if missing > 0 else -1
        if 0 <= load_E[expert] + sign <= tokens:
            load_E[expert] += sign
        place += 1
    return load_E
