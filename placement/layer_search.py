"""The search of one layer: items, their tokens and prices brought together, and annealed.

Axes: T token, K choice, E expert, V item (a replica, or a hole), G rank, N domain, W window, P slot of a rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement import anneal, swaps
from moecast.placement.anneal import Layer
from moecast.placement.cost import LayerCost
from moecast.placement.replicas import HOLE, Items, longest_first, replica_counts
from moecast.placement.standing import State
from moecast.placement.windows import serve
from moecast.sim.replicas import Candidates, candidates

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.placement.windows import Windows

Int32 = npt.NDArray[np.int32]

HOT, COLD = 0.05, 0.02
"""First and last temperature, in typical changes of the cost by a random swap."""
SAMPLES = 256  # random swaps that say what is typical


class LayerSearch:
    """Where one layer's experts stand, and the search for better places.

    Parameters
    ----------
    layer
        The MoE layer.
    cost
        The prices.
    replicas
        Of all experts together; spare slots beyond them stay empty.
    seed
        Of the random swaps.
    windows
        The tokens to fit; None: the problem's.
    hot
        First temperature, in typical changes of the cost.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        layer: int,
        *,
        cost: LayerCost,
        replicas: int,
        seed: int,
        windows: Windows | None = None,
        hot: float = HOT,
    ) -> None:
        self._problem, self._hot = problem, hot
        self._windows = problem.windows if windows is None else windows
        load_WE = self._windows.load_LWE[layer]
        replicas_E = replica_counts(load_WE, slots=replicas, ranks=problem.wanted.ep)
        self.items = longest_first(load_WE.sum(0), replicas_E, problem.slots_G, problem.domain_G)
        self._layer, self._cost, self._seed = layer, cost, seed
        self._found: Layer | None = None
        self._typical = 0.0

    @property
    def cost_s(self) -> float:
        """The layer's cost in the best state seen."""
        return float(self.prepared().state.total[1])

    def anneal(self, proposals: int, *, begin: float, end: float) -> int:
        """Judge random swaps as the temperature falls, from part `begin` of its way to part `end`; returns how many."""
        layer = self.prepared()
        hot, cold = (self._typical * self._hot * (COLD / self._hot) ** part for part in (begin, end))
        anneal.anneal(layer, proposals, hot, cold)
        return proposals

    def descend(self, proposals: int) -> int:
        """Take swaps that gain until none does, or `proposals` are judged; returns how many were."""
        return int(anneal.descend(self.prepared(), proposals, anneal.LEAST_GAIN * self.cost_s))

    def slots_GP(self) -> Int32:
        """Lay the best state out as a table of slots."""
        wanted = self._problem.wanted
        rank_V = self.items.rank_V if self._found is None else self._found.state.best_rank_V
        return self.items.slots_GP(rank_V, ranks=wanted.ep, slots=wanted.max_slots)

    def prepared(self) -> Layer:
        """What the compiled search works on; counted when it is asked for first."""
        if self._found is None:
            self._found = _prepare(self._problem, self._windows, self._layer, self.items, self._cost, self._seed)
            self._typical = float(anneal.typical_change(self._found, SAMPLES))
        return self._found


def _prepare(
    problem: PlacementProblem, windows: Windows, layer: int, items: Items, cost: LayerCost, seed: int
) -> Layer:
    item_TK = serve(
        problem.trace.experts_TLK[windows.row_T, layer],
        windows.rank_T,
        windows.step_T,
        item_candidates(problem, items),
        problem.wanted.experts,
        len(items.rank_V),
    )
    prices = _prices(problem, windows, item_TK, items.expert_V, cost)
    tokens = _counted(windows, item_TK, len(items.rank_V), cost.copy_s > 0)
    domain_tokens = _counted(windows, item_TK, len(items.rank_V), cost.domain_copy_s > 0)
    return Layer.of(tokens, domain_tokens, prices, _state(problem, items, windows, seed))


def item_candidates(problem: PlacementProblem, items: Items) -> Candidates:
    """Which items may serve each source's choices, as the replica rule says, with items in place of slots.

    Which of two replicas on near ranks comes first is open while they move: so the own rank is not given precedence,
    and ``fixed`` is taken as the nearest on the own host.
    """
    rule, items_n = problem.wanted.replica_rule, len(items.rank_V)
    every = Candidates(
        np.zeros(problem.wanted.ep, np.int64),
        items.first_E1[:-1].astype(np.int32),
        np.diff(items.first_E1).astype(np.int32),
        (items.rank_V.astype(np.int64) * items_n + np.arange(items_n)).astype(np.int32),
    )
    return candidates(
        every,
        "nearest" if rule == "fixed" else rule,
        group_S=every.row_of_S,
        place_G=problem.node_G if rule == "fixed" else problem.domain_G,
        rows=problem.wanted.experts,
        slots=items_n,
        own=False,
    )


def _prices(
    problem: PlacementProblem, windows: Windows, item_TK: npt.NDArray[np.int16], expert_V: Int32, cost: LayerCost
) -> anneal.Prices:
    """Prices by window, for sums over its steps that are divided by the number of steps, and for the counted part."""
    served, items = item_TK >= 0, len(expert_V)
    window_TK = np.broadcast_to(windows.window_T[:, None], item_TK.shape)
    load_VW = np.bincount(
        item_TK[served].astype(np.int64) * windows.n + window_TK[served], minlength=items * windows.n
    ).reshape(items, windows.n)
    # every scenario's slowest ranks in full; of what all ranks share, the mean over scenarios
    counted_W = windows.weight_W / np.maximum(windows.counted_share_W, 1e-9)
    scenarios = int(windows.scenario_W.max()) + 1
    held_V = expert_V != HOLE
    steps_W = windows.step_share_W * windows.n_steps
    return anneal.Prices(
        load_VW=(load_VW * cost.choice_s + held_V[:, None] * (cost.replica_s * steps_W)) * windows.weight_W,
        copy_W=counted_W * (cost.copy_s * (1 - cost.mean_share)),
        domain_copy_W=counted_W * (cost.domain_copy_s * (1 - cost.mean_share)),
        mean_W=counted_W * (cost.copy_s * cost.mean_share / problem.wanted.ep / scenarios),
        domain_mean_W=counted_W * (cost.domain_copy_s * cost.mean_share / problem.n_domains / scenarios),
    )


def _counted(windows: Windows, item_TK: npt.NDArray[np.int16], items: int, wanted: bool) -> swaps.Tokens:
    """The tokens whose copies count; none where copies cost nothing."""
    mask_T = windows.counted_T if wanted else np.zeros(len(item_TK), bool)
    return swaps.Tokens.of(item_TK[mask_T], windows.window_T[mask_T], items)


def _state(problem: PlacementProblem, items: Items, windows: Windows, seed: int) -> State:
    held = items.expert_V != HOLE
    replicas_E = np.diff(items.first_E1)
    pinned_V = np.zeros(len(items.rank_V), bool)
    # which replica serves a choice depends on the domains they stand in, or on their hosts, which domains are made of
    if problem.wanted.replica_rule in ("nearest", "fixed"):
        pinned_V[held] = replicas_E[items.expert_V[held]] > 1
    return State.of(
        items.rank_V,
        items.expert_V,
        domain_G=problem.domain_G,
        experts=problem.wanted.experts,
        scenario_W=windows.scenario_W,
        pinned_V=pinned_V,
        seed=seed,
    )
