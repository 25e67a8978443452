"""Which copies of tokens a swap of two experts saves or adds: exact, from sets of tokens kept as bits.

A layer's slots are *items*: replicas of experts, or holes. Items stand in buckets (ranks, or
domains), and a token costs one copy per bucket that holds at least one of its items. Each item has
the set of the tokens that it serves, each bucket the set of those with anything there, and of those
with one item only; what a swap does to the copies of a window is then some hundred words' bits
counted. A token's bit is found by its window, so that a window is a run of words.

Axes: T token, K choice, V item, B bucket, W window, X (item, token) pair, I word of 64 tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import entry, inner

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint64]

WORD = 64  # tokens


class Tokens(NamedTuple):
    """The tokens of a layer, as the items they choose.

    Parameters
    ----------
    item_TK
        int16; the item that serves each choice, -1 for none. A token has an item at most once.
    window_T
        int32; the window each token is in.
    place_T
        int32; where it comes from, as replica rules see it
        (`moecast.placement.holders.Holders.place_G`).
    first_E1, token_X, k_X, turn_X
        CSR: the choices of each expert; each choice's token, its number among the token's, and
        whose turn it is among the expert's replicas.
    """

    item_TK: npt.NDArray[np.int16]
    window_T: Int32
    place_T: Int32
    first_E1: Int
    token_X: Int32
    k_X: Int32
    turn_X: Int32

    @classmethod
    def of(
        cls,
        expert_TK: npt.NDArray[np.int16],
        window_T: Int32,
        experts: int,
        *,
        place_T: Int32 | None = None,
        turn_TK: Int32 | None = None,
    ) -> Tokens:
        """Index the choices by expert (-1: none), each served by the item of the expert's number until told otherwise.

        `place_T`, `turn_TK`: None where no expert has two replicas.
        """
        flat, choices = expert_TK.ravel(), max(expert_TK.shape[1], 1)
        at = np.flatnonzero(flat >= 0)
        at_X = at[np.argsort(flat[at], kind="stable")]
        first_E1 = np.concatenate([[0], np.cumsum(np.bincount(flat[at], minlength=experts))]).astype(np.int64)
        place_T = np.zeros(len(expert_TK), np.int32) if place_T is None else place_T
        turn_X = np.zeros(len(at), np.int32) if turn_TK is None else turn_TK.ravel()[at_X]
        return cls(
            np.array(expert_TK, np.int16, order="C"),
            np.ascontiguousarray(window_T, np.int32),
            np.ascontiguousarray(place_T, np.int32),
            first_E1,
            (at_X // choices).astype(np.int32),
            (at_X % choices).astype(np.int32),
            np.ascontiguousarray(turn_X, np.int32),
        )


class Served(NamedTuple):
    """The tokens that each item serves, as bits.

    Parameters
    ----------
    bit_T, first_W1
        The bit of each token, and the words of each window.
    served_VI
        The set of each item.
    """

    bit_T: Int32
    first_W1: Int
    served_VI: Bits

    @classmethod
    def of(cls, tokens: Tokens, items: int, windows: int) -> Served:
        """Enter the tokens as their choices are served."""
        size_W = np.bincount(tokens.window_T, minlength=windows)
        first_W1 = np.concatenate([[0], np.cumsum(-(-size_W // WORD))]).astype(np.int64)
        order_T = np.argsort(tokens.window_T, kind="stable")
        window_T, begin_W = tokens.window_T[order_T], np.cumsum(size_W) - size_W
        bit_T = np.empty(len(order_T), np.int32)
        bit_T[order_T] = WORD * first_W1[window_T] + np.arange(len(order_T)) - begin_W[window_T]
        served = cls(bit_T, first_W1, np.zeros((items, int(first_W1[-1])), np.uint64))
        _enter_served(tokens, served)
        return served


@entry
def _enter_served(tokens, served):  # type: ignore[no-untyped-def]
    for t in range(tokens.item_TK.shape[0]):
        for k in range(tokens.item_TK.shape[1]):
            if tokens.item_TK[t, k] >= 0:
                flip(served.served_VI, tokens.item_TK[t, k], served.bit_T[t])


@inner
def flip(set_VI: Bits, v: int, bit: int) -> None:
    """Put a token into an item's set that has it not, or take it out of one that has."""
    set_VI[v, bit // WORD] ^= np.uint64(1) << np.uint64(bit % WORD)


class Sets(NamedTuple):
    """What stands in each bucket.

    No words at all where copies to buckets of this kind cost nothing.

    Parameters
    ----------
    any_BI, one_BI
        The tokens with anything in the bucket, and those with one item there.
    first_W1
        The words of each window.
    copies_WB
        How many of a window's tokens have anything in the bucket.
    """

    any_BI: Bits
    one_BI: Bits
    first_W1: Int
    copies_WB: Int

    @classmethod
    def of(cls, served: Served, bucket_V: Int32, buckets: int, *, counted: bool = True) -> Sets:
        """Gather from nothing, for items that stand in buckets `bucket_V`."""
        first_W1 = served.first_W1 if counted else np.zeros_like(served.first_W1)
        words = int(first_W1[-1])
        any_BI, one_BI = np.zeros((buckets, words), np.uint64), np.zeros((buckets, words), np.uint64)
        sets = cls(any_BI, one_BI, first_W1, np.zeros((len(first_W1) - 1, buckets), np.int64))
        for bucket in range(buckets):
            gather(served.served_VI, sets, bucket_V, bucket)
        return sets


@entry
def gather(served_VI: Bits, sets: Any, bucket_V: Any, bucket: int) -> None:
    """Work out what stands in a bucket afresh from its items."""
    any_I, one_I = sets.any_BI[bucket], sets.one_BI[bucket]
    any_I[:] = np.uint64(0)
    one_I[:] = np.uint64(0)  # until the end: those with two or more
    for v in range(len(bucket_V)):
        if bucket_V[v] == bucket:
            for i in range(len(any_I)):
                one_I[i] |= any_I[i] & served_VI[v, i]
                any_I[i] |= served_VI[v, i]
    for i in range(len(any_I)):
        one_I[i] = any_I[i] & ~one_I[i]
    for w in range(sets.copies_WB.shape[0]):
        sets.copies_WB[w, bucket] = members(any_I, sets.first_W1[w], sets.first_W1[w + 1])


@inner
def members(set_I: Bits, first: int, end: int) -> int:
    """Tokens of a set in the words from `first` to before `end`."""
    number = 0
    for i in range(first, end):
        number += ones(set_I[i])
    return number


@inner
def ones(word: Any) -> int:
    """Bits that are set: the compiler knows this way to count them as one instruction, and takes four words at once."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))  # type: ignore[return-value]


@entry
def added_copies(
    served_VI: Bits, any_BI: Bits, one_BI: Bits, a: int, b: int, bucket_a: int, words: tuple[int, int]
) -> int:
    """Copies that bucket `bucket_a` gains in some words when `a` leaves it for the place of `b`.

    Below 0: saves.

    It takes arrays and not the values that hold them: these are copied at every call.
    """
    added = 0
    for i in range(words[0], words[1]):
        # A token with both items keeps its copy: b comes where a, alone, goes. It saves nothing and
        # adds nothing.
        added += ones(served_VI[b, i] & ~any_BI[bucket_a, i])
        added -= ones(served_VI[a, i] & one_BI[bucket_a, i] & ~served_VI[b, i])
    return added


@entry
def swap(served_VI: Bits, sets: Any, bucket_V: Any, a: int, b: int) -> None:
    """Let items `a` and `b`, which stand in different buckets, change places."""
    bucket_a, bucket_b = bucket_V[a], bucket_V[b]
    bucket_V[a], bucket_V[b] = bucket_b, bucket_a
    gather(served_VI, sets, bucket_V, bucket_a)
    gather(served_VI, sets, bucket_V, bucket_b)
