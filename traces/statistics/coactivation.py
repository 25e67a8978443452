"""Which experts meet in a token more often than their loads alone would bring them together.

Axes: L MoE layer, E expert.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from moecast.traces.statistics.summary import Counts, Fractions, mean_known

_LEAST_EXPECTED = 5.0  # the usual least expected count for a cell of a contingency table


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two experts of a layer that meet: tokens that chose both, and how many times the expected number that is."""

    layer: int
    experts: tuple[int, int]
    tokens: int
    lift: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coactivation:
    """Strength of co-activation against what loads make expect.

    Lift (Brin et al., "Beyond Market Baskets", 1997) is observed ÷ expected pairs; expected are a
    layer's pairs shared out in proportion to the product of the two experts' loads.

    Parameters
    ----------
    strength_L
        Root mean square of lift − 1 over pairs, weighted by expectation: 0 when pairs meet as loads
        say; nan without pairs.
    noise_L
        The strength that counting alone gives if pairs meet as loads say: √(pairs of experts ÷
        pairs counted).
    top
        Pairs of highest lift among those expected at least 5 times, best first.
    """

    strength_L: Fractions
    noise_L: Fractions
    top: tuple[Pair, ...]

    @property
    def strength(self) -> float:
        """Mean of the layers' strengths."""
        return mean_known(self.strength_L)


def coactivation(coactivation_LEE: Counts, *, pairs: int = 20) -> Coactivation:
    """Sum up the table that `coactivation_LEE` counts, naming the `pairs` of highest lift."""
    layers, experts, _ = coactivation_LEE.shape
    strength_L, noise_L = np.full((2, layers), math.nan)
    best: list[Pair] = []
    one_E, two_E = np.triu_indices(experts, 1)
    for layer, met_EE in enumerate(coactivation_LEE):
        expected_P = expected_pairs_EE(met_EE)[one_E, two_E]
        met_P = met_EE[one_E, two_E]
        seen = expected_P > 0
        if met_P.sum() == 0:
            continue
        lift_P = np.ones(len(met_P))
        lift_P[seen] = met_P[seen] / expected_P[seen]
        strength_L[layer] = math.sqrt(np.average((lift_P[seen] - 1) ** 2, weights=expected_P[seen]))
        noise_L[layer] = math.sqrt(seen.sum() / met_P.sum())
        lift_P[expected_P < _LEAST_EXPECTED] = 0
        for index in np.argsort(-lift_P, kind="stable")[:pairs]:
            if lift_P[index] > 0:
                ids = int(one_E[index]), int(two_E[index])
                best.append(Pair(layer=layer, experts=ids, tokens=int(met_P[index]), lift=float(lift_P[index])))
    best.sort(key=lambda pair: (-pair.lift, pair.layer, pair.experts))
    return Coactivation(strength_L=strength_L, noise_L=noise_L, top=tuple(best[:pairs]))


def expected_pairs_EE(met_EE: Counts) -> npt.NDArray[np.float64]:
    """Pairs of one layer shared out by the product of loads: float64 [E, E], the diagonal 0; adds up to the pairs."""
    load_E = met_EE.diagonal().astype(np.float64)
    expected_EE = np.outer(load_E, load_E)
    np.fill_diagonal(expected_EE, 0)
    total = expected_EE.sum()
    return expected_EE * ((met_EE.sum() - load_E.sum()) / total) if total else expected_EE
