"""Which copies of tokens a swap of two experts saves or adds: exact counts, kept up to date as experts move.

A layer's slots are *items*: replicas of experts, or holes. Items stand in buckets (ranks, or domains), and a token
costs one copy per bucket that holds at least one of its items. Only three kinds of counts are needed to tell what any
swap does to the copies of any window, without looking at a token again.

Axes: T token, K choice, V item, B bucket, W window, X (item, token) pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import njit

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


class Tokens(NamedTuple):
    """The tokens of a layer, as the items they choose.

    Parameters
    ----------
    item_TK
        int16; the item that serves each choice, -1 for none. A token has an item at most once.
    window_T
        int32; the window each token is in.
    place_T
        int32; where it comes from, as replica rules see it (`moecast.placement.holders.Holders.place_G`).
    first_E1, token_X, k_X, turn_X
        CSR: the choices of each expert; each choice's token, its number among the token's, and whose turn it is among
        the expert's replicas.
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


class Counts(NamedTuple):
    """What decides the copies before and after any swap.

    Parameters
    ----------
    held_TB
        uint8; how many of a token's items stand in each bucket.
    enter_VBW
        Tokens with the item, and nothing in the bucket: copies added when the item comes in.
    leave_VW
        Tokens for which the item is alone in its bucket: copies saved when it goes.
    both_VVW
        [v, u]: those among them that have item u too, so that nothing is saved when v and u change places.
    copies_WB
        Tokens with anything in the bucket.
    """

    held_TB: npt.NDArray[np.uint8]
    enter_VBW: Int32
    leave_VW: Int32
    both_VVW: Int32
    copies_WB: Int


@njit(cache=True, nogil=True)
def count(tokens: Any, bucket_V: Any, buckets: int, windows: int) -> Counts:
    """Count from nothing, for items that stand in buckets `bucket_V`."""
    n_tokens, choices = tokens.item_TK.shape
    items = len(bucket_V)
    held_TB = np.zeros((n_tokens, buckets), np.uint8)
    enter_VBW = np.zeros((items, buckets, windows), np.int32)
    leave_VW = np.zeros((items, windows), np.int32)
    both_VVW = np.zeros((items, items, windows), np.int32)
    copies_WB = np.zeros((windows, buckets), np.int64)
    counts = Counts(held_TB, enter_VBW, leave_VW, both_VVW, copies_WB)
    for t in range(n_tokens):
        w = tokens.window_T[t]
        for k in range(choices):
            v = tokens.item_TK[t, k]
            if v >= 0:
                copies_WB[w, bucket_V[v]] += held_TB[t, bucket_V[v]] == 0
                held_TB[t, bucket_V[v]] += 1
        # All of the token's items must stand before it can be said which is alone.
        for k in range(choices):
            v = tokens.item_TK[t, k]
            if v < 0:
                continue
            for b in range(buckets):
                enter_VBW[v, b, w] += held_TB[t, b] == 0
            if held_TB[t, bucket_V[v]] == 1:
                _alone(tokens, counts, t, v, 1)
    return counts


@njit(cache=True, nogil=True)
def added_copies(counts: Any, a: int, b: int, bucket_a: int, w: int) -> int:
    """Copies that bucket `bucket_a` gains in window `w` when `a` leaves it for the place of `b`; below 0: saves."""
    # A token with both items keeps its copy: b comes where a, alone, goes. It saves nothing and adds nothing.
    return int(counts.enter_VBW[b, bucket_a, w]) - counts.leave_VW[a, w] + counts.both_VVW[a, b, w]


@njit(cache=True, nogil=True)
def swap(tokens: Any, counts: Any, bucket_V: Any, expert_V: Any, a: int, b: int) -> None:
    """Let items `a` and `b`, which stand in different buckets, change places."""
    bucket_a, bucket_b = bucket_V[a], bucket_V[b]
    # One move after the other: the counts hold in every state, also in the one between.
    _move(tokens, counts, bucket_V, expert_V[a], a, bucket_b)
    _move(tokens, counts, bucket_V, expert_V[b], b, bucket_a)


@njit(cache=True, nogil=True)
def _move(tokens, counts, bucket_V, expert, v, to):  # type: ignore[no-untyped-def]
    origin = bucket_V[v]
    bucket_V[v] = to
    if expert < 0:  # nobody chooses a hole
        return
    # Only tokens that have the item: the others' copies do not know of it.
    for x in range(tokens.first_E1[expert], tokens.first_E1[expert + 1]):
        t = tokens.token_X[x]
        if tokens.item_TK[t, tokens.k_X[x]] != v:  # another replica serves it
            continue
        left_behind(tokens, counts, bucket_V, t, v, origin)
        found_there(tokens, counts, bucket_V, t, v, to)


@njit(cache=True, nogil=True)
def left_behind(tokens: Any, counts: Any, bucket_V: Any, t: int, v: int, origin: int) -> None:
    """Count that item `v` of token `t` stands in bucket `origin` no more."""
    w = tokens.window_T[t]
    counts.held_TB[t, origin] -= 1
    left = counts.held_TB[t, origin]
    if left == 0:
        counts.copies_WB[w, origin] -= 1
        _alone(tokens, counts, t, v, -1)
        _enterable(tokens, counts, t, origin, 1)
    # Whoever stays behind is alone now, and saves a copy when it goes.
    elif left == 1:
        _alone(tokens, counts, t, _other(tokens, bucket_V, t, v, origin), 1)


@njit(cache=True, nogil=True)
def found_there(tokens: Any, counts: Any, bucket_V: Any, t: int, v: int, to: int) -> None:
    """Count that item `v` of token `t` stands in bucket `to` now."""
    w = tokens.window_T[t]
    found = counts.held_TB[t, to]
    counts.held_TB[t, to] += 1
    if found == 0:
        counts.copies_WB[w, to] += 1
        _alone(tokens, counts, t, v, 1)
        _enterable(tokens, counts, t, to, -1)
    # Whoever stood there alone has company: its going saves nothing any more.
    elif found == 1:
        _alone(tokens, counts, t, _other(tokens, bucket_V, t, v, to), -1)


@njit(cache=True, nogil=True)
def serve_by(tokens: Any, counts: Any, bucket_V: Any, x: int, v: int) -> None:
    """Let item `v` serve choice `x` of its expert's, in place of the item that does."""
    t, k = tokens.token_X[x], tokens.k_X[x]
    old = np.int64(tokens.item_TK[t, k])
    left_behind(tokens, counts, bucket_V, t, old, bucket_V[old])
    _known(tokens, counts, bucket_V, t, old, -1)
    tokens.item_TK[t, k] = v
    _known(tokens, counts, bucket_V, t, v, 1)
    found_there(tokens, counts, bucket_V, t, v, bucket_V[v])


@njit(cache=True, nogil=True)
def _known(tokens, counts, bucket_V, t, v, sign):  # type: ignore[no-untyped-def]
    """Item v, which stands nowhere as token t sees it, becomes (sign -1: ceases to be) one of the token's items."""
    w = tokens.window_T[t]
    for b in range(counts.held_TB.shape[1]):
        if counts.held_TB[t, b] == 0:
            counts.enter_VBW[v, b, w] += sign
    for k in range(tokens.item_TK.shape[1]):
        u = tokens.item_TK[t, k]
        if u >= 0 and u != v and counts.held_TB[t, bucket_V[u]] == 1:
            counts.both_VVW[u, v, w] += sign


@njit(cache=True, nogil=True)
def _alone(tokens, counts, t, v, sign):  # type: ignore[no-untyped-def]
    """Item v of token t becomes (or, with sign -1, ceases to be) alone in its bucket."""
    w = tokens.window_T[t]
    counts.leave_VW[v, w] += sign
    for k in range(tokens.item_TK.shape[1]):
        u = tokens.item_TK[t, k]
        if u >= 0 and u != v:
            counts.both_VVW[v, u, w] += sign


@njit(cache=True, nogil=True)
def _enterable(tokens, counts, t, bucket, sign):  # type: ignore[no-untyped-def]
    w = tokens.window_T[t]
    for k in range(tokens.item_TK.shape[1]):
        u = tokens.item_TK[t, k]
        if u >= 0:
            counts.enter_VBW[u, bucket, w] += sign


@njit(cache=True, nogil=True)
def _other(tokens, bucket_V, t, v, bucket):  # type: ignore[no-untyped-def]
    """Find the item of token t, other than v, that stands in the bucket."""
    for k in range(tokens.item_TK.shape[1]):
        u = tokens.item_TK[t, k]
        if u >= 0 and u != v and bucket_V[u] == bucket:
            return u
    return v
