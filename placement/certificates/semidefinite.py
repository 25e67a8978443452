"""The least fan-out by a semidefinite program: where sets are too large to look at one by one, such as domains.

A placement on D sets of P experts each is a matrix X of pairs, 1 where both experts stand in one
set. It is positive semidefinite, has 1 on its diagonal, nothing below 0 or above 1 elsewhere, and
rows that sum to P.

*Copies.* A token's choice k shares its set with s_k − 1 others of the token, and the token has Σ_k
1/s_k copies. For every whole m ≥ 1 and whole s ≥ 1,

    1/s ≥ (2m + 1 − s) / (m (m + 1)),

the chord of 1/s between m and m + 1, since 1/s less that is (s − m) (s − m − 1) / (m (m + 1) s). As
s_k is a sum of entries of X, any mixture of chords for each choice gives copies ≥ a − ⟨W, X⟩.

*Proof.* It remains to bound ⟨W, X⟩ from above over all placements. For any matrix M let y be the
diagonal of M − W and N the rest of it. Then ⟨W, X⟩ = ⟨M, X⟩ − Σ y − ⟨N, X⟩, and ⟨N, X⟩ is at least
the sum of what is below 0 in N. The vector of ones is an eigenvector of X with the eigenvalue P;
the others are 0 or P, and D − 1 of them are P. So ⟨M, X⟩ is at most (P/E) 1ᵀM1 and P times the D − 1
largest eigenvalues of M beside that vector (Donath and Hoffman, 1973). This holds for whatever M
and W, so that the bound needs no solver to be accurate. Where it is known that two of the nodes
stand apart, X is 0 there and N costs nothing.

Good M and W come from alternating projections with multipliers (ADMM): between matrices with these
entries, and those with these eigenvalues. The chords are those at X, averaged over rounds.

*Homes.* A token's own set costs no copy. Of the tokens that are not at home on set N, the copies into
it are at least ⟨A_N, Y⟩, with A_N their chords (with a on the diagonal) and Y = xxᵀ the pairs of
experts in N, whose sum over sets is X. With C the mean of the A_N, all copies are at least ⟨C, X⟩,
bounded as above, and for each set the least of ⟨A_N − C, xxᵀ⟩. Of a symmetric Q with the rows' sums
q, and x = (P/E) 1 + z,

    xᵀQx = (2P/E) qᵀx − (P/E)² 1ᵀq + zᵀQz,

at least the sum of the P least (2P/E) q_e, that constant, and (P − P²/E) times the least eigenvalue
of Q beside the ones (where that is below 0). It costs little where homes have little to do with
experts. Otherwise: each set has a node of its own, apart from those of other sets, and a token
chooses the node of its home as well; the sets that it meets are then one more than its copies.

Axes: T token, K choice, E expert or other node, N set at home in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

ITERATIONS = 300
ROUND = 10  # iterations between looks at the tokens and at the bound
LEAST_MIXED = 0.02  # of the chords at hand into those that are kept, however late
OVER = 1.6  # over-relaxation
ROUNDING = 1e-9


def semidefinite_copies(
    chosen_TK: Int, experts: int, sets: int, *, home_T: Int | None = None, iterations: int = ITERATIONS
) -> float:
    """Copies of all tokens that no placement on equal sets goes below.

    Parameters
    ----------
    chosen_TK
        Experts, each of a token once; −1 for none.
    sets
        That the experts stand in, as many in each.
    home_T
        The set that each token is at home in, to which it needs no copy; None: all copies count.

    Raises
    ------
    ValueError
        As many experts cannot stand in each set.
    """
    if sets < 1 or experts % sets:
        raise ValueError(f"sets = {sets}: {experts} experts do not stand in them evenly")
    chosen_TK, none_EE = np.asarray(chosen_TK, np.int64), np.zeros((experts, experts), bool)
    some = int((chosen_TK >= 0).any(axis=1).sum())
    if sets == 1 or not some:
        return 0.0 if home_T is not None else float(some)
    room = ROUNDING * (1 + len(chosen_TK))
    if home_T is None:
        found, _ = _most_met(_Chords(chosen_TK, experts), sets, none_EE, iterations)
        return max(found - room, float(some))
    home_T = np.asarray(home_T, np.int64)
    found, away = _most_met(_Chords(chosen_TK, experts, home_T, sets), sets, none_EE, iterations)
    nodes = experts + sets
    apart_EE = np.zeros((nodes, nodes), bool)
    apart_EE[experts:, experts:] = ~np.eye(sets, dtype=bool)
    with_homes_TK = np.column_stack([chosen_TK, experts + home_T])
    met, _ = _most_met(_Chords(with_homes_TK, nodes), sets, apart_EE, iterations)
    return max(found - some, away, met - len(chosen_TK), room) - room


def _most_met(chords: _Chords, sets: int, apart_EE: Bool, iterations: int) -> tuple[float, float]:
    """Raise the bound on sets met, for some iterations; the best of all rounds, of all copies and of those away."""
    nodes = len(apart_EE)
    size = nodes // sets
    x_EE = np.where(np.eye(nodes, dtype=bool), 1.0, (size - 1) / max(nodes - 1, 1))
    z_EE, u_EE, best, best_away = x_EE, np.zeros_like(x_EE), -np.inf, -np.inf
    kept = chords.at(x_EE)
    scale = float(np.abs(kept.w_NEE.sum(axis=0)[~np.eye(nodes, dtype=bool)]).mean()) or 1.0
    for iteration in range(iterations):
        if iteration % ROUND == 0:
            mixed = max(2 / (iteration / ROUND + 2), LEAST_MIXED)
            kept = kept.mixed(chords.at(x_EE), mixed)
            w_EE = kept.w_NEE.sum(axis=0)
        x_EE = np.clip(z_EE - u_EE + w_EE / scale, 0.0, 1.0)
        x_EE[apart_EE] = 0.0
        np.fill_diagonal(x_EE, 1.0)
        relaxed_EE = OVER * x_EE + (1 - OVER) * z_EE
        z_EE = _with_eigenvalues(relaxed_EE + u_EE, size, sets)
        u_EE = u_EE + relaxed_EE - z_EE
        if iteration % ROUND == ROUND - 1:
            found = float(kept.a_NE.sum()) - _most_together(w_EE, scale * u_EE, size, sets, apart_EE)
            best = max(best, found)
            if chords.sets > 1:
                best_away = max(best_away, (1 - 1 / sets) * found + kept.least_apart(size))
    return best, best_away


class _Chords:
    """The chords of all choices, and what they come to as a matrix of pairs."""

    def __init__(self, met_TK: Int, nodes: int, home_T: Int | None = None, sets: int = 1) -> None:
        self.nodes, self.sets, self.valid_TK = nodes, sets, met_TK >= 0
        self.node_TK = np.where(self.valid_TK, met_TK, 0)
        self.at_home_T = np.zeros(len(met_TK), np.int64) if home_T is None else home_T
        self.pair_TKK = self.node_TK[:, :, None] * nodes + self.node_TK[:, None, :]
        self.both_TKK = self.valid_TK[:, :, None] & self.valid_TK[:, None, :]

    def at(self, x_EE: Float) -> _Kept:
        """Give the chords below 1/s at the sums that X gives."""
        sum_TK = (x_EE.ravel()[self.pair_TKK] * self.both_TKK).sum(axis=2)
        m_TK = np.maximum(np.floor(sum_TK + ROUNDING), 1.0)
        slope_TK = 1 / (m_TK * (m_TK + 1))
        place_TKK = self.pair_TKK + self.at_home_T[:, None, None] * self.nodes**2
        weight_TKK = slope_TK[:, :, None] * self.both_TKK
        w_X = np.bincount(place_TKK.ravel(), weight_TKK.ravel(), self.sets * self.nodes**2)
        w_NEE: Float = w_X.astype(np.float64).reshape(self.sets, self.nodes, self.nodes)
        place_TK = self.node_TK + self.at_home_T[:, None] * self.nodes
        a_X = np.bincount(place_TK.ravel(), ((2 * m_TK + 1) * slope_TK * self.valid_TK).ravel(), self.sets * self.nodes)
        a_NE: Float = a_X.astype(np.float64).reshape(self.sets, self.nodes)
        return _Kept((w_NEE + w_NEE.swapaxes(1, 2)) / 2, a_NE)


class _Kept(NamedTuple):
    """A mixture of chords: ⟨W, X⟩ and a of the tokens at home in each set."""

    w_NEE: Float
    a_NE: Float

    def mixed(self, other: _Kept, part: float) -> _Kept:
        """Put in a part of others."""
        return _Kept(*((1 - part) * mine + part * its for mine, its in zip(self, other, strict=True)))

    def least_apart(self, size: int) -> float:
        """The least of ⟨A_N − C, xxᵀ⟩, summed over sets."""
        sets, nodes = self.a_NE.shape
        least = 0.0
        for w_EE, a_E in zip(self.w_NEE, self.a_NE, strict=True):
            q_EE = np.diag(self.a_NE.sum(axis=0) / sets - a_E) - (self.w_NEE.sum(axis=0) / sets - w_EE)
            row_E, value_E = q_EE.sum(axis=1), _beside_ones(q_EE)[0]
            least += 2 * size / nodes * float(np.sort(row_E)[:size].sum()) - (size / nodes) ** 2 * float(row_E.sum())
            least += (size - size**2 / nodes) * min(float(value_E[0]), 0.0)
        return least


def _beside_ones(m_EE: Float) -> tuple[Float, Float]:
    """Eigenvalues, rising, and eigenvectors of a matrix beside the vector of ones."""
    middle_E = m_EE.mean(axis=0)
    centred_EE = m_EE - middle_E[:, None] - middle_E[None, :] + middle_E.mean()
    # far below all others: so it comes first
    least = -2 * float(np.abs(centred_EE).sum(axis=1).max()) - 1
    value_E, vector_EE = np.linalg.eigh(centred_EE + least / len(m_EE))
    return value_E[1:], vector_EE[:, 1:]


def _with_eigenvalues(m_EE: Float, size: int, sets: int) -> Float:
    """The nearest matrix with the rows' sums, and eigenvalues between 0 and P that sum to P (D − 1) beside."""
    value_E, vector_EE = _beside_ones((m_EE + m_EE.T) / 2)
    wanted = size * (sets - 1)
    low, high = float(value_E.min(initial=0.0)) - size, float(value_E.max(initial=0.0))
    for _ in range(60):
        shift = (low + high) / 2
        if np.clip(value_E - shift, 0, size).sum() > wanted:
            low = shift
        else:
            high = shift
    kept_E = np.clip(value_E - high, 0, size)
    z_EE: Float = (vector_EE * kept_E) @ vector_EE.T + size / len(m_EE)
    return z_EE


def _most_together(w_EE: Float, m_EE: Float, size: int, sets: int, apart_EE: Bool) -> float:
    """At the most ⟨W, X⟩ over all placements, by some M."""
    m_EE = (m_EE + m_EE.T) / 2
    rest_EE = np.where(apart_EE, 0.0, m_EE - w_EE)
    diagonal = float(np.trace(rest_EE))
    np.fill_diagonal(rest_EE, 0.0)
    value_E, _ = _beside_ones(m_EE)
    largest = float(value_E[len(value_E) - (sets - 1) :].sum()) if sets > 1 else 0.0
    return size / len(m_EE) * float(m_EE.sum()) + size * largest - diagonal - float(np.minimum(rest_EE, 0.0).sum())
