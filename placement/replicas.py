"""How many replicas each expert gets, and where they stand before a search moves them.

Axes: E expert, V item (a replica of an expert, or a hole), G rank, N domain, W window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

HOLE = -1


def replica_counts(load_WE: npt.ArrayLike, *, slots: int, ranks: int) -> Int:
    """Give each expert one replica, and the spare slots one by one to the expert with the most load per replica.

    The load of an expert is the root of the mean square over windows: one that is hot in some
    windows counts more than one with the same total that is lukewarm in all. No expert gets more
    replicas than there are ranks, and one without load gets no second: slots may stay empty.
    """
    load_E = np.sqrt(np.mean(np.square(np.atleast_2d(np.asarray(load_WE, np.float64))), axis=0))
    replicas_E = np.ones(len(load_E), np.int64)
    for _ in range(slots - len(load_E)):
        share_E = np.where(replicas_E < ranks, load_E / replicas_E, 0.0)
        hottest = int(np.argmax(share_E))
        if share_E[hottest] <= 0:
            break
        replicas_E[hottest] += 1
    return replicas_E


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Items:
    """Replicas and holes, exactly one for each slot.

    Parameters
    ----------
    expert_V
        The expert of each item, rising; holes (-1) at the end.
    rank_V
        Where they stand.
    """

    expert_V: Int32
    rank_V: Int32


def slots_of(rank_V: Int32, expert_V: Int32, *, ranks: int, slots: int) -> Int32:
    """Lay items out as a table of slots, the experts of a rank rising."""
    table_GP = np.full((ranks, slots), HOLE, np.int32)
    for rank, row in enumerate(table_GP):
        held = np.sort(expert_V[(rank_V == rank) & (expert_V != HOLE)])
        row[: len(held)] = held
    return table_GP


def longest_first(load_E: npt.ArrayLike, replicas_E: Int, slots_G: Int32, domain_G: Int32) -> Items:
    """Place replicas, the heaviest first, each on the lightest rank with room that does not hold its expert.

    Replicas of one expert go to different domains as far as there are any. A replica that fits
    nowhere is dropped and leaves a hole.
    """
    replicas_E = replicas_E.copy()
    share_E = np.asarray(load_E, np.float64) / replicas_E
    load_G, room_G = np.zeros(len(slots_G)), slots_G.astype(np.int64).copy()
    ranks_E: list[list[int]] = [[] for _ in replicas_E]
    single_last = np.argsort(-share_E, kind="stable")
    for expert in single_last[np.argsort(replicas_E[single_last] == 1, kind="stable")]:
        for _ in range(replicas_E[expert]):
            rank = _lightest(ranks_E[expert], load_G, room_G, domain_G)
            if rank < 0:
                continue
            ranks_E[expert].append(rank)
            load_G[rank] += share_E[expert]
            room_G[rank] -= 1
    held_E = np.array([len(ranks) for ranks in ranks_E])
    holes = np.repeat(np.arange(len(room_G)), room_G)
    return Items(
        expert_V=np.concatenate([np.repeat(np.arange(len(held_E)), held_E), np.full(len(holes), HOLE)]).astype(
            np.int32
        ),
        rank_V=np.concatenate([np.array(sorted(ranks), np.int64) for ranks in ranks_E] + [holes]).astype(np.int32),
    )


def _lightest(taken: list[int], load_G: npt.NDArray[np.float64], room_G: Int, domain_G: Int32) -> int:
    """The lightest rank with room outside `taken`, in a domain that has fewest of `taken`; -1 where there is none."""
    free_G = room_G > 0
    free_G[taken] = False
    if not free_G.any():
        return -1
    taken_N = np.bincount(domain_G[taken], minlength=int(domain_G.max()) + 1)[domain_G]
    free_G &= taken_N == taken_N[free_G].min()
    return int(np.argmin(np.where(free_G, load_G, np.inf)))
