"""What ranks wait for where their tasks run on several streams: for a peer that computes, or for the network.

A rank that neither computes nor sends waits for a peer to enter an exchange, or at the step's end
for the last rank. While that peer computes it is idle; while the peer is itself held up by an
exchange, the network is what both wait for, and the time is that exchange's; while the peer waits,
too, whoever it waits for is asked. The same rule as in `moecast.sim.breakdown` for one stream.

Each rank's step is cut into pieces in which it computes, or else is in an exchange, or else waits.

Axes: S task, G rank, X stay of a rank in a task, P piece, sorted by rank and time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecast.compiled import entry, inner
from moecast.sim.exposed import StaysByKind
from moecast.sim.program import Float, Int, StepProgram, StepTimes

COMPUTES, SENDS, WAITS = 0, 1, 2
NOBODY = -1  # that is known to be waited for: then it is no exchange that holds the rank up
MOST_DEEP = 64  # who waits for whom waits for whom: pipelines have as many as ranks


def network_seconds(
    program: StepProgram, times: StepTimes, peer_S: Sequence[Int | None], by_kind: StaysByKind
) -> Float:
    """Seconds of each exchange [S], over all ranks, in which ranks that do nothing wait for a peer that it holds up.

    Parameters
    ----------
    peer_S
        As of `moecast.sim.breakdown.IdleTimes`.
    by_kind
        Of the same step.
    """
    rank_W, start_W, end_W, _, _ = by_kind.work
    rank_X, start_X, end_X, task_X, order_X = by_kind.moving
    exchanges = np.flatnonzero(np.bincount(task_X, minlength=1)).tolist()
    peers = [program.ranks_of(program.tasks[index])[peer_S[index]] for index in exchanges]
    peer_X = np.concatenate([np.zeros(0, np.int32), *peers]).astype(np.int32)[order_X]
    del peers
    done_G = np.zeros(program.n_ranks)
    for task, leave_R in zip(program.tasks, times.leave_S, strict=True):
        ranks_R = program.ranks_of(task)
        done_G[ranks_R] = np.maximum(done_G[ranks_R], leave_R)
    ranks = np.arange(program.n_ranks + 1)
    pieces = _pieces(
        np.searchsorted(rank_W, ranks),
        start_W,
        end_W,
        np.searchsorted(rank_X, ranks),
        start_X,
        end_X,
        task_X,
        peer_X,
        float(done_G.max(initial=0.0)),
        int(done_G.argmax()),
    )
    spent_S = np.zeros(len(program.tasks))
    _resolve(*pieces, spent_S)
    # After the last rank that is known to be done, an exchange is under way of which nobody knows
    # whose time it is.
    spent_S[int(times.last_S.argmax())] += program.n_ranks * max(0.0, times.step_time_s - done_G.max(initial=0.0))
    return spent_S


@entry
def _pieces(  # type: ignore[no-untyped-def]
    offsets_W, start_W, end_W, offsets_X, start_X, end_X, task_X, peer_X, end_s, last
):
    """Cut the ranks' steps: offsets by rank, end, what is done, and the exchange, or whom a rank waits for.

    Each piece begins where the one before it ends, a rank's first at 0.
    """
    n_ranks = len(offsets_W) - 1
    # Pieces end where a stay begins or ends, or with the step: no more than this.
    room = 2 * (len(start_W) + len(start_X)) + 2 * n_ranks
    # As few bytes as hold them: pieces are the most that a step's account keeps.
    end_P, state_P, about_P = np.empty(room), np.empty(room, np.int8), np.empty(room, np.int32)
    offsets = np.zeros(n_ranks + 1, np.int64)
    n = 0
    for rank in range(n_ranks):
        w, x, at = offsets_W[rank], offsets_X[rank], 0.0
        works_until, sends_until, sends = 0.0, 0.0, -1
        while at < end_s:
            while w < offsets_W[rank + 1] and start_W[w] <= at:
                works_until = max(works_until, end_W[w])
                w += 1
            # of exchanges at once the last to end stands for all
            while x < offsets_X[rank + 1] and start_X[x] <= at:
                if end_X[x] > sends_until:
                    sends_until, sends = end_X[x], task_X[x]
                x += 1
            next_work = start_W[w] if w < offsets_W[rank + 1] else np.inf
            next_send = start_X[x] if x < offsets_X[rank + 1] else np.inf
            if works_until > at:
                until, state, about = works_until, COMPUTES, -1
            elif sends_until > at:
                # compute that begins wins
                until, state, about = min(sends_until, next_work), SENDS, sends
            else:
                until, state, about = min(next_work, next_send), WAITS, NOBODY
                if until >= end_s:
                    about = last
                elif next_send <= next_work:
                    about = peer_X[x]
                if about == rank:  # it is the last one itself: what it waits for is not known
                    about = NOBODY
            until = min(until, end_s)
            end_P[n], state_P[n], about_P[n] = until, state, about
            n += 1
            at = until
        offsets[rank + 1] = n
    return offsets, end_P[:n], state_P[:n], about_P[:n]


@inner
def _begins(p, first, end_P):  # type: ignore[no-untyped-def]
    """When a piece begins; `first`: the first of its rank."""
    return end_P[p - 1] if p > first else 0.0


@entry
def _resolve(offsets_G1, end_P, state_P, about_P, spent_S) -> None:  # type: ignore[no-untyped-def]
    """Give exchanges the seconds in which they hold up those whom ranks wait for."""
    # A stack, since a peer may wait for a peer. What does not fit on it stays idle time: never is
    # more than the waiting given out.
    room = 4096
    who, since, until = np.empty(room, np.int64), np.empty(room), np.empty(room)
    deep = np.empty(room, np.int64)
    rank = 0
    for p in range(len(end_P)):
        while p >= offsets_G1[rank + 1]:
            rank += 1
        if state_P[p] != WAITS or about_P[p] < 0:
            continue
        who[0], since[0], until[0], deep[0] = about_P[p], _begins(p, offsets_G1[rank], end_P), end_P[p], 0
        n = 1
        while n > 0:
            n -= 1
            peer, begin, end, depth = who[n], since[n], until[n], deep[n]
            low, high = offsets_G1[peer], offsets_G1[peer + 1]
            while low < high:  # the first of its pieces that is not over by then
                middle = (low + high) // 2
                if end_P[middle] <= begin:
                    low = middle + 1
                else:
                    high = middle
            while low < offsets_G1[peer + 1] and _begins(low, offsets_G1[peer], end_P) < end:
                # What of the wait falls into this piece: pieces of a rank do not overlap, so no
                # second counts twice.
                from_s, to_s = max(begin, _begins(low, offsets_G1[peer], end_P)), min(end, end_P[low])
                if state_P[low] == SENDS:
                    spent_S[about_P[low]] += to_s - from_s
                elif state_P[low] == WAITS and about_P[low] >= 0 and depth < MOST_DEEP and n < room:
                    who[n], since[n], until[n], deep[n] = about_P[low], from_s, to_s, depth + 1
                    n += 1
                low += 1
