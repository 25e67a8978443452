"""Which keys the tokens of context-parallel attention read, and on which rank these stand.

A token reads the tokens of its sequence up to itself, or the last so many of them, and of what was
there before this step as many as its window leaves; that stands in equal parts on the ranks that
its sequence is cut over.

Axes: T token, C share of the tokens (one of `cp` ranks of a data-parallel rank), N place among the
`cp` ranks, R ring (0: of sequences inside one domain, whole ones among them; 1: of those cut over
all ranks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.arrays import whole_numbers
from moecast.compiled import entry
from moecast.sim.context.split import ALL, NEAR, WHOLE, ContextSplit

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

RINGS = 2
UNBOUNDED = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockKeys:
    """What each share's tokens read of each rank's keys.

    Parameters
    ----------
    keys_RCN
        Keys, summed over the tokens.
    queries_RCN
        Tokens that read some.
    held_RC
        Keys that a share's ranks bring into a ring, new ones and those from before; those of whole
        sequences in none.
    """

    keys_RCN: Float
    queries_RCN: Float
    held_RC: Float

    def __add__(self, other: BlockKeys) -> BlockKeys:
        """Keys of two kinds that the same tokens read."""
        return BlockKeys(
            keys_RCN=self.keys_RCN + other.keys_RCN,
            queries_RCN=np.maximum(self.queries_RCN, other.queries_RCN),
            held_RC=self.held_RC + other.held_RC,
        )

    def over(self, share: float) -> BlockKeys:
        """The same where one key stands for so many tokens."""
        return BlockKeys(keys_RCN=self.keys_RCN / share, queries_RCN=self.queries_RCN, held_RC=self.held_RC / share)


def block_keys(
    split: ContextSplit, source_T: Int32, context_T: Int, *, domain_of: npt.ArrayLike, window: int | None = None
) -> BlockKeys:
    """Count the keys that tokens read, block by block.

    Parameters
    ----------
    source_T, context_T
        As of a `Step`: the data-parallel rank of each token, and its keys with itself.
    domain_of
        [data-parallel ranks, cp]: the domain of each place.
    window
        A token reads at most so many keys, its last ones; None: all.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit each other, or a token that reads fewer keys than its sequence has
        before it.
    """
    domains = whole_numbers("domain_of", domain_of, most=np.iinfo(np.int32).max, shape=(None, None), dtype=np.int32)
    ranks, cp = domains.shape
    shape = (len(split.place_T),)
    source_T = whole_numbers("source_T", source_T, most=ranks - 1, shape=shape, dtype=np.int32)
    context_T = whole_numbers("context_T", context_T, least=1, most=UNBOUNDED, shape=shape)
    place_T = whole_numbers("place_T", split.place_T, most=cp - 1, dtype=np.int32)
    level_T = whole_numbers("level_T", split.level_T, most=ALL, shape=shape, dtype=np.int32)
    first_S1 = whole_numbers("first_S1", split.first_S1, most=len(place_T))
    nth_T = np.arange(len(place_T)) - np.repeat(first_S1[:-1], np.diff(first_S1))
    if len(nth_T) and (context_T <= nth_T).any():
        token = int(np.argmax(context_T <= nth_T))
        raise ValueError(f"context_T[{token}] = {context_T[token]}: its sequence has {nth_T[token]} tokens before it")
    keys_RCN, queries_RCN = np.zeros((RINGS, ranks * cp, cp)), np.zeros((RINGS, ranks * cp, cp))
    held_RC = np.zeros((RINGS, ranks * cp))
    most = UNBOUNDED if window is None else window
    _count(first_S1, source_T, place_T, level_T, context_T, domains, most, keys_RCN, queries_RCN, held_RC)
    return BlockKeys(keys_RCN=keys_RCN, queries_RCN=queries_RCN, held_RC=held_RC)


@entry
def _count(  # type: ignore[no-untyped-def]
    first_S1, source_T, place_T, level_T, context_T, domains, window, keys_RCN, queries_RCN, held_RC
):
    cp = domains.shape[1]
    seen_N = np.zeros(cp, np.int64)
    in_ring_N = np.zeros(cp, np.bool_)
    for sequence in range(len(first_S1) - 1):
        first, end = first_S1[sequence], first_S1[sequence + 1]
        rank, level = source_T[first], level_T[first]
        ring = 1 if level == ALL else 0
        members = 0
        for n in range(cp):
            own = n == place_T[first]
            near = level == NEAR and domains[rank, n] == domains[rank, place_T[first]]
            in_ring_N[n] = level == ALL or near or (level == WHOLE and own)
            members += in_ring_N[n]
            seen_N[n] = 0
        before = context_T[first] - 1
        # What was there before is brought into the ring as far as the first token still reads it.
        for n in range(cp):
            if in_ring_N[n] and level != WHOLE:
                held_RC[ring, rank * cp + n] += min(before, window - 1) / members
        for t in range(first, end):
            share = rank * cp + place_T[t]
            if level != WHOLE:
                held_RC[ring, share] += 1
            seen_N[place_T[t]] += 1
            if t - first >= window:  # the token that the window leaves behind
                seen_N[place_T[t - window]] -= 1
            left = min(before, window - min(t - first + 1, window)) / members
            for n in range(cp):
                if in_ring_N[n] and seen_N[n] + left > 0:
                    keys_RCN[ring, share, n] += seen_N[n] + left
                    queries_RCN[ring, share, n] += 1
