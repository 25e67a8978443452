"""Which of the ranks that share a data-parallel rank's sequences has which of its tokens.

`contiguous`: each takes one run of every sequence. Under a causal mask the last one attends to
most.

`zig-zag`: a sequence is cut into 2 cp runs, of which rank i takes run i and run 2 cp - 1 - i, so
that each attends to as many keys (Llama 3, arXiv 2407.21783, 3.3.2; Megatron-LM and
TransformerEngine). Runs differ by a token where the length is no multiple of 2 cp; engines pad
there.

`zeppelin`: short sequences stay whole on one rank, longer ones are cut zig-zag over the ranks of
one domain, and only those too long for that over all of them (Zeppelin, arXiv 2509.21841). Lengths
from which sequences are cut fall until no domain, and then no rank, holds more than its share of
the tokens and a tenth of it. What differs from the paper: a sequence that one domain cannot hold is
cut over all ranks, not over some domains, and tokens stay for the linear layers where they attend
(the paper moves them so that these are even, too).

Axes: T token, S sequence, N place among the ranks that share sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

EXCHANGES = ("ring", "all-gather", "token-ring")
"""How all ranks that share a sequence see all of its keys; see `moecast.sim.context.order`."""

SPLITS = ("zig-zag", "contiguous", "zeppelin")
WHOLE, NEAR, ALL = 0, 1, 2
"""How far a sequence is cut: not at all, over the ranks of a domain, over all ranks that share sequences."""

SLACK = 1.1
"""What a rank or a domain may hold, by its even share: whole sequences never fill ranks evenly."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContextSplit:
    """Where the tokens of a step stand among the ranks that share their sequences.

    Parameters
    ----------
    place_T
        int32; 0 to cp - 1.
    level_T
        int32; `WHOLE`, `NEAR` or `ALL`, the same for all tokens of a sequence.
    first_S1
        int64; where each sequence begins, and T.
    """

    place_T: Int32
    level_T: Int32
    first_S1: Int


def split_sequences(
    kind: str, first_S1: npt.ArrayLike, owner_S: npt.ArrayLike, *, cp: int, domain_of: npt.ArrayLike
) -> ContextSplit:
    """Deal out the tokens of sequences, which stand one behind the other.

    Parameters
    ----------
    kind
        One of `SPLITS`.
    first_S1
        Where each sequence begins, from 0 on, and behind the last one how many tokens there are.
    owner_S
        The data-parallel rank of each.
    domain_of
        [ranks that hold sequences, cp]: the domain of each place.

    Raises
    ------
    ValueError, TypeError
        There is no such split, or arrays that do not fit each other.
    """
    if kind not in SPLITS:
        raise ValueError(f"context_split = {kind!r}: one of {', '.join(SPLITS)}")
    first = whole_numbers("first_S1", first_S1, most=np.iinfo(np.int64).max)
    if not len(first) or first[0] or (np.diff(first) < 1).any():
        raise ValueError("first_S1: must begin with 0 and rise")
    domains = whole_numbers("domain_of", domain_of, most=np.iinfo(np.int32).max, shape=(None, cp))
    owner = whole_numbers("owner_S", owner_S, most=len(domains) - 1, shape=(len(first) - 1,))
    length_S = np.diff(first)
    ring = [np.arange(cp)] * len(length_S)
    level_S = np.full(len(length_S), ALL, np.int32)
    if kind == "zeppelin":
        for rank in np.unique(owner):
            of_rank = np.flatnonzero(owner == rank)
            for sequence, (level, places) in zip(of_rank, _zeppelin(length_S[of_rank], domains[rank]), strict=True):
                level_S[sequence], ring[sequence] = level, places
    cut = _run if kind == "contiguous" else _zig_zag
    placed = [places[cut(n, len(places))] for n, places in zip(length_S, ring, strict=True)]
    place_T = np.concatenate([np.empty(0, np.int64), *placed])
    return ContextSplit(
        place_T=place_T.astype(np.int32), level_T=np.repeat(level_S, length_S), first_S1=np.ascontiguousarray(first)
    )


def _run(tokens: int, parts: int) -> Int:
    found: Int = np.arange(tokens) * parts // tokens
    return found


def _zig_zag(tokens: int, parts: int) -> Int:
    run_T = _run(tokens, 2 * parts)
    return np.minimum(run_T, 2 * parts - 1 - run_T)


def _zeppelin(length_S: Int, domain_N: Int) -> list[tuple[int, Int]]:
    """Say for each sequence of one data-parallel rank how far it is cut, and over which places."""
    share = length_S.sum() / len(domain_N)
    domains = [np.flatnonzero(domain_N == domain) for domain in dict.fromkeys(domain_N.tolist())]
    everywhere, in_bin = _packed(length_S, np.array([len(places) for places in domains]), share)
    cuts: list[tuple[int, Int]] = [(ALL, np.arange(len(domain_N)))] * len(length_S)
    taken_N = np.full(len(domain_N), length_S[everywhere].sum() / len(domain_N))
    for index, places in enumerate(domains):
        inside = np.flatnonzero(~everywhere & (in_bin == index))
        room = share * SLACK - taken_N[places[0]]
        over_all, at = _packed(length_S[inside], np.ones(len(places), np.int64), room / SLACK)
        for sequence, cut, place in zip(inside, over_all, at, strict=True):
            cuts[sequence] = (NEAR, places) if cut else (WHOLE, places[place : place + 1])
    return cuts


def _packed(length_S: Int, size_B: Int, share: float) -> tuple[npt.NDArray[np.bool_], Int]:
    """Put sequences into bins of so many ranks each, the longest first into the emptiest, as many as may stay whole.

    Where one does not fit, the longest that is still whole is cut over all bins, and all begins
    again: so the cut ones are the longest ones. With one bin nothing is cut.
    """
    order_S = np.argsort(-length_S, kind="stable")
    bin_S = np.zeros(len(length_S), np.int64)
    if len(size_B) == 1:
        return np.zeros(len(length_S), bool), bin_S
    for n_cut in range(len(length_S) + 1):
        filled_B = np.full(len(size_B), length_S[order_S[:n_cut]].sum() / size_B.sum())
        for sequence in order_S[n_cut:]:
            emptiest = int(np.argmin(filled_B))
            filled_B[emptiest] += length_S[sequence] / size_B[emptiest]
            bin_S[sequence] = emptiest
            if filled_B[emptiest] > share * SLACK:
                break
        else:
            break
    cut_S = np.zeros(len(length_S), bool)
    cut_S[order_S[:n_cut]] = True
    return cut_S, bin_S
