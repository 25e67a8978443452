"""How many tokens make a stable plan.

Axes: T token, L MoE layer, E expert, Q sequence, N planning size.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from moecast.traces.statistics._parts import count_tokens_at
from moecast.traces.statistics.drift import total_variation_L
from moecast.traces.statistics.packing import load_balance, packed_ranks_LE
from moecast.traces.statistics.sample import TokenSample
from moecast.traces.statistics.summary import Fractions, mean_known

_LEAST_SEQUENCES = 8
_LEAST_TOKENS = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stability:
    """What a plan made on n tokens of whole sequences gets on sequences that it never saw.

    Sequences are dealt at random into a half for planning and a half for measuring; plans are
    packed on the first n = 64, 128, 256, … planning tokens (whole sequences). Averaged over several
    deals. Sequences of all topics and times are mixed, so this is the cost of a short sample,
    without the drift that `drift` shows.

    Parameters
    ----------
    tokens_N
        Planning sizes, the last being all planning tokens; means over deals, since sequences are
        whole.
    balance_N
        Balance on the measuring half of a plan made on so many tokens.
    distance_N
        Total variation between the load of so many tokens and that of the measuring half.
    within
        The tolerance below, 1 %.
    stable_tokens
        Smallest planning size from which on the balance stays within `within` of that of all
        planning tokens; None when this is more than half of the planning tokens, since one cannot
        tell then whether more would not still help.
    """

    tokens_N: Fractions
    balance_N: Fractions
    distance_N: Fractions
    within: float
    stable_tokens: int | None

    @property
    def verdict(self) -> str:
        """The answer in words."""
        if self.stable_tokens is not None:
            return f"about {self.stable_tokens:,} tokens"
        return f"more than half of the {self.tokens_N[-1]:,.0f} planning tokens: the sample is too short to tell"


def stability(
    sample: TokenSample, *, n_ranks: int, deals: int = 4, within: float = 0.01, seed: int = 0
) -> Stability | None:
    """Measure how a plan improves with the tokens it is made on; None with fewer than 8 sequences.

    Raises
    ------
    ValueError
        More ranks than experts, or none.
    """
    starts_Q = np.flatnonzero(np.diff(sample.sequence_T.astype(np.int64), prepend=-1))
    if len(starts_Q) < _LEAST_SEQUENCES:
        return None
    rng = np.random.default_rng(seed)
    curves = [_deal(sample, starts_Q, n_ranks, rng) for _ in range(deals)]
    steps = min(len(curve) for curve in curves)
    # Deals differ by a sequence in length: sizes are aligned from the small end, and each ends with
    # all its tokens.
    joined = np.stack([np.vstack([curve[: steps - 1], curve[-1:]]) for curve in curves]).mean(axis=0)
    tokens_N, balance_N, distance_N = joined.T
    return Stability(
        tokens_N=tokens_N,
        balance_N=balance_N,
        distance_N=distance_N,
        within=within,
        stable_tokens=_stable(tokens_N, balance_N, within),
    )


def _stable(tokens_N: Fractions, balance_N: Fractions, within: float) -> int | None:
    if math.isnan(balance_N[-1]):
        return None
    good_N = balance_N >= (1 - within) * balance_N[-1]
    bad = np.flatnonzero(~good_N)
    first = int(bad[-1]) + 1 if len(bad) else 0
    tokens = tokens_N[first]
    return round(float(tokens)) if 2 * tokens <= tokens_N[-1] else None


def _deal(
    sample: TokenSample, starts_Q: npt.NDArray[np.intp], n_ranks: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """One deal's curve: rows of (tokens, balance, distance)."""
    ends_Q = np.append(starts_Q[1:], sample.tokens)
    order_Q = rng.permutation(len(starts_Q))
    reached_Q = np.cumsum((ends_Q - starts_Q)[order_Q])
    half = int(np.searchsorted(reached_Q, sample.tokens / 2)) + 1
    half = min(half, len(order_Q) - 1)
    order_T = np.concatenate([np.arange(starts_Q[q], ends_Q[q]) for q in order_Q])
    split = int(reached_Q[half - 1])
    layers, experts, _ = sample.meta.shape_LEK
    measured_LE = np.zeros((layers, experts + 1), np.int64)
    count_tokens_at(sample.experts_TLK, order_T[split:], measured_LE)
    planned_LE = np.zeros((layers, experts + 1), np.int64)
    rows, done, wanted = [], 0, _LEAST_TOKENS
    while done < split:
        end = int(reached_Q[min(int(np.searchsorted(reached_Q, wanted)), half - 1)])
        wanted *= 2
        if end == done:
            continue
        count_tokens_at(sample.experts_TLK, order_T[done:end], planned_LE)
        done = end
        rows.append((done, *_worth(planned_LE[:, :experts], measured_LE[:, :experts], n_ranks)))
    return np.array(rows)


def _worth(planned_LE: npt.NDArray[np.int64], on_LE: npt.NDArray[np.int64], n_ranks: int) -> tuple[float, float]:
    balance = load_balance(on_LE, packed_ranks_LE(planned_LE, n_ranks), n_ranks)
    both_L = planned_LE.any(axis=1) & on_LE.any(axis=1)
    shares = [load_LE[both_L] / load_LE[both_L].sum(axis=1, keepdims=True) for load_LE in (planned_LE, on_LE)]
    return balance, mean_known(total_variation_L(shares[0], shares[1]))
