"""Where a layer's items stand, and which ranks are slowest with them: kept up to date as items move.

Every swap touches two ranks, in one domain or two. To tell the slowest of all ranks after it
without looking at them all, each domain knows its three slowest ranks, and each window its three
slowest domains: whoever the swap changes, one of the three is not changed.

Axes: V item, G rank, P slot of a rank, N domain, W window, C scenario, E expert, R place in an
order (the first three), X rank in the order of domains.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moecast.compiled import inner

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]


class State(NamedTuple):
    """Where the items stand, and what is kept up to date with them.

    Parameters
    ----------
    rank_V, domain_V, expert_V
        Rank and domain of each item, and its expert (-1 for a hole).
    best_rank_V, best_expert_V
        The same in the best state seen.
    pinned
        [whether experts with several replicas keep them where they are near and far from the same
        sources].
    item_GP, slot_V, slots_G
        The items of each rank, which of them an item is, and how many there are.
    holds_EG
        Replicas of an expert on a rank, 0 or 1.
    domain_G, first_N1, member_X
        Domain of each rank, and the ranks of each domain.
    scenario_W
        The scenario of each window.
    own_WG, entry_WN
        What each rank pays for its own items and copies, and for the copies that enter its domain.
    top_WNR, order_WR
        The slowest ranks of each domain by what they pay for their own, and the domains by their
        slowest; -1: no more.
    slowest_W, scenario_s, change_C
        What the slowest rank pays, the sum of it over each scenario, and room for changes of it.
    spare
        [slots that may be given to other experts, replicas at least, replicas at most, replicas
        now]; a hole is none.
    total
        [current cost, best cost].
    random
        [state of the random numbers].
    """

    rank_V: Int32
    domain_V: Int32
    expert_V: Int32
    best_rank_V: Int32
    best_expert_V: Int32
    pinned: npt.NDArray[np.bool_]
    item_GP: Int32
    slot_V: Int32
    slots_G: Int32
    holds_EG: npt.NDArray[np.int8]
    domain_G: Int32
    first_N1: Int32
    member_X: Int32
    scenario_W: Int32
    own_WG: Float
    entry_WN: Float
    top_WNR: Int32
    order_WR: Int32
    slowest_W: Float
    scenario_s: Float
    change_C: Float
    spare: npt.NDArray[np.int64]
    total: Float
    random: npt.NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        rank_V: Int32,
        expert_V: Int32,
        *,
        domain_G: Int32,
        experts: int,
        scenario_W: Int32,
        pinned: bool = False,
        replicas: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> State:
        """Stand the items on their ranks; what they cost is not settled yet.

        `replicas`: least and most of all experts together, between which slots may go to other
        experts; None: every item keeps its expert.
        """
        ranks, windows, domains = len(domain_G), len(scenario_W), int(domain_G.max()) + 1
        slots_G = np.bincount(rank_V, minlength=ranks).astype(np.int32)
        order_V = np.argsort(rank_V, kind="stable")
        begin_G = np.cumsum(slots_G) - slots_G
        slot_V = np.empty(len(rank_V), np.int32)
        slot_V[order_V] = np.arange(len(rank_V)) - begin_G[rank_V[order_V]]
        item_GP = np.zeros((ranks, int(slots_G.max(initial=1))), np.int32)
        item_GP[rank_V, slot_V] = np.arange(len(rank_V))
        holds_EG, held_V = np.zeros((experts, ranks), np.int8), expert_V >= 0
        holds_EG[expert_V[held_V], rank_V[held_V]] = 1
        scenarios = int(scenario_W.max()) + 1
        return cls(
            rank_V=rank_V.astype(np.int32),
            domain_V=domain_G[rank_V].astype(np.int32),
            expert_V=expert_V.astype(np.int32),
            best_rank_V=rank_V.astype(np.int32),
            best_expert_V=expert_V.astype(np.int32),
            pinned=np.array([pinned]),
            item_GP=item_GP,
            slot_V=slot_V,
            slots_G=slots_G,
            holds_EG=holds_EG,
            domain_G=domain_G.astype(np.int32),
            first_N1=np.concatenate([[0], np.cumsum(np.bincount(domain_G, minlength=domains))]).astype(np.int32),
            member_X=np.argsort(domain_G, kind="stable").astype(np.int32),
            scenario_W=scenario_W.astype(np.int32),
            own_WG=np.zeros((windows, ranks)),
            entry_WN=np.zeros((windows, domains)),
            top_WNR=np.full((windows, domains, 3), -1, np.int32),
            order_WR=np.full((windows, 3), -1, np.int32),
            slowest_W=np.zeros(windows),
            scenario_s=np.zeros(scenarios),
            change_C=np.zeros(scenarios),
            spare=_spare(expert_V, experts, replicas),
            total=np.array([np.inf, np.inf]),
            random=np.array([seed], np.uint64),
        )


def _spare(expert_V: Int32, experts: int, replicas: tuple[int, int] | None) -> npt.NDArray[np.int64]:
    now = int((expert_V >= 0).sum())
    least, most = (now, now) if replicas is None else replicas
    free = 0 if replicas is None else max(0, len(expert_V) - experts)
    return np.array([free, least, most, now], np.int64)


@inner
def follow_swap(state: Any, a: int, b: int) -> None:
    """Enter in the tables of ranks that items `a` and `b` change places; the items' own ranks are not touched."""
    rank_a, rank_b = state.rank_V[a], state.rank_V[b]
    if state.expert_V[a] >= 0:  # holes move as items do, but hold nothing
        state.holds_EG[state.expert_V[a], rank_a] -= 1
        state.holds_EG[state.expert_V[a], rank_b] += 1
    if state.expert_V[b] >= 0:
        state.holds_EG[state.expert_V[b], rank_b] -= 1
        state.holds_EG[state.expert_V[b], rank_a] += 1
    slot_a, slot_b = state.slot_V[a], state.slot_V[b]
    state.item_GP[rank_a, slot_a], state.item_GP[rank_b, slot_b] = b, a
    state.slot_V[a], state.slot_V[b] = slot_b, slot_a


@inner
def rank_slowest(state: Any, w: int) -> None:
    """Find the three slowest domains of a window, and what the slowest rank pays."""
    for r in range(3):
        state.order_WR[w, r] = -1
    for domain in range(state.entry_WN.shape[1]):
        n = domain  # who is pushed off a place goes on to ask for the next one
        for r in range(3):
            other = state.order_WR[w, r]
            if other < 0:
                state.order_WR[w, r] = n
                break
            if _slowest_of(state, w, n) > _slowest_of(state, w, other):
                state.order_WR[w, r], n = n, other
    state.slowest_W[w] = _slowest_of(state, w, state.order_WR[w, 0])


@inner
def settle_scenarios(state: Any) -> float:
    """Add the windows up by scenario; returns the worst scenario's sum."""
    state.scenario_s[:] = 0.0
    for w in range(len(state.slowest_W)):
        state.scenario_s[state.scenario_W[w]] += state.slowest_W[w]
    worst = state.scenario_s[0]
    for c in range(1, len(state.scenario_s)):
        worst = max(worst, state.scenario_s[c])
    return float(worst)


@inner
def slowest_but(
    own_G: Any,
    entry_N: Any,
    top_NR: Any,
    order_R: Any,
    at: tuple[int, int, int, int],
    seconds: tuple[float, float],
    entry: tuple[float, float],
) -> float:
    """What a window's slowest rank pays when two ranks pay so much for their own, and their domains so much more.

    It takes the window's rows and not the state: a tuple of two dozen arrays is copied at every
    call.

    Parameters
    ----------
    at
        The two ranks, and their domains.
    seconds, entry
        What they pay for their own then, and how much more enters their domains.
    """
    a, b, domain_a, domain_b = at
    slowest = max(seconds[0], _unchanged(own_G, top_NR[domain_a], a, b)) + entry_N[domain_a] + entry[0]
    if domain_a == domain_b:  # within a domain nothing more enters; `_unchanged` has left both ranks out
        slowest = max(slowest, seconds[1] + entry_N[domain_b])
    else:
        own = max(seconds[1], _unchanged(own_G, top_NR[domain_b], a, b))
        slowest = max(slowest, own + entry_N[domain_b] + entry[1])
    # The first domain in the order that holds neither rank pays what it paid: no later one pays
    # more.
    for r in range(3):
        n = order_R[r]
        if n >= 0 and n != domain_a and n != domain_b:
            return float(max(slowest, own_G[top_NR[n, 0]] + entry_N[n]))
    return float(slowest)


@inner
def _unchanged(own_G, top_R, a, b):  # type: ignore[no-untyped-def]
    """What the slowest rank of a domain, other than `a` and `b`, pays for its own; -inf where there is none."""
    for r in range(3):
        g = top_R[r]
        if g >= 0 and g != a and g != b:
            return own_G[g]
    return -np.inf


@inner
def _slowest_of(state, w, n):  # type: ignore[no-untyped-def]
    return state.own_WG[w, state.top_WNR[w, n, 0]] + state.entry_WN[w, n]
