"""The search of one layer: items, their tokens and prices brought together, and annealed.

Axes: T token, K choice, E expert, V item (a replica, or a hole), G rank, Q place, W window, P slot
of a rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement import anneal, swaps
from moecast.placement.holders import Holders
from moecast.placement.priced_layer import Layer, Prices
from moecast.placement.replicas import HOLE, longest_first, replica_counts, slots_of
from moecast.placement.standing import State
from moecast.sim.replica_rule import turns

if TYPE_CHECKING:
    from moecast.placement.cost import LayerCost
    from moecast.placement.problem import PlacementProblem
    from moecast.placement.windows import Windows
    from moecast.sim.plan import Plan

Int32 = npt.NDArray[np.int32]

HOT, COLD = 0.1, 0.02
"""First and last temperature, in median changes of the cost by random swaps, of a search that is long enough."""
LONG_ENOUGH = 16
"""Proposals for each pair of items; a shorter search is colder, by the root: it has no time to come back from heat."""
HOTTEST = 4
"""A longer one begins hotter, in proportion, at most so many times."""
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
        Of all experts together, at first and at most; spare slots beyond them stay empty.
    full
        They are as many in the end; otherwise the search may leave more slots empty.
    seed
        Of the random proposals.
    windows
        The tokens to fit; None: the problem's.
    proposals
        How many it will be given to judge; None: enough.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        layer: int,
        *,
        cost: LayerCost,
        replicas: int,
        seed: int,
        full: bool = True,
        windows: Windows | None = None,
        proposals: int | None = None,
    ) -> None:
        self._problem = problem
        self._windows = problem.windows if windows is None else windows
        load_WE = self._windows.load_LWE[layer]
        replicas_E = replica_counts(load_WE, slots=replicas, ranks=problem.wanted.ep)
        self._items = longest_first(load_WE.sum(0), replicas_E, problem.slots_G, problem.domain_G)
        held = int((self._items.expert_V != HOLE).sum())
        self._replicas = (held if full else problem.wanted.experts, held)
        self._layer, self._cost, self._seed = layer, cost, seed
        self._found: Layer | None = None
        items = len(self._items.rank_V)
        per_pair = LONG_ENOUGH if proposals is None else 2 * proposals / max(1, items * (items - 1))
        heat, longer = min(1.0, per_pair / LONG_ENOUGH) ** 0.5, max(1.0, per_pair / LONG_ENOUGH)
        self._hot, self._cold = HOT * heat * min(longer, HOTTEST), COLD * heat
        self._typical = 0.0

    @property
    def cost_s(self) -> float:
        """The layer's cost in the best state seen."""
        return float(self.prepared().state.total[1])

    def anneal(self, proposals: int, *, begin: float, end: float) -> int:
        """Judge random moves as the temperature falls, from part `begin` of its way to part `end`; returns how many."""
        layer = self.prepared()
        hot, cold = (self._typical * self._hot * (self._cold / self._hot) ** part for part in (begin, end))
        anneal.anneal(layer, proposals, hot, cold)
        return proposals

    def descend(self, proposals: int) -> int:
        """Take swaps that gain until none does, or `proposals` are judged; returns how many were."""
        return int(anneal.descend(self.prepared(), proposals, anneal.LEAST_GAIN * self.cost_s))

    def slots_GP(self) -> Int32:
        """Lay the best state out as a table of slots."""
        wanted, items = self._problem.wanted, self._items
        rank_V, expert_V = items.rank_V, items.expert_V
        if self._found is not None:
            rank_V, expert_V = self._found.state.best_rank_V, self._found.state.best_expert_V
        return slots_of(rank_V, expert_V, ranks=wanted.ep, slots=wanted.max_slots)

    def prepared(self) -> Layer:
        """What the compiled search works on; counted when it is asked for first."""
        if self._found is None:
            self._found = self._prepare()
            # The scale of temperatures is the median and not the mean: with many ranks most swaps move a little of
            # what all share, and the few that move the slowest rank would make it so hot that they are taken at random.
            changes = anneal.changes(self._found, SAMPLES)
            self._typical = float(np.median(np.abs(changes))) if len(changes) else 0.0
        return self._found

    def _prepare(self) -> Layer:
        problem, windows, cost = self._problem, self._windows, self._cost
        experts_TK = problem.trace.experts_TLK[windows.row_T, self._layer]
        turn_TK = turns_of(experts_TK, windows, problem.wanted)
        place_G = places(problem)
        holders = Holders.of(self._items.expert_V, place_G, *_loads(experts_TK, windows, cost, place_G, problem))
        prices = _prices(problem, windows, cost, items=len(self._items.rank_V))
        wanted = cost.copy_s > 0 or cost.domain_copy_s > 0
        tokens = _counted(windows, experts_TK, turn_TK, place_G, problem.wanted.experts, wanted)
        state = State.of(
            self._items.rank_V,
            self._items.expert_V,
            domain_G=problem.domain_G,
            experts=problem.wanted.experts,
            scenario_W=windows.scenario_W,
            pinned=places_matter(problem.wanted),
            replicas=self._replicas if problem.spare_slots else None,
            seed=self._seed,
        )
        return Layer.of(tokens, prices, state, holders)


def places_matter(wanted: Plan) -> bool:
    """Whether it depends on where replicas stand which of them serves a choice."""
    return wanted.replica_rule in ("nearest", "fixed")


def places(problem: PlacementProblem) -> Int32:
    """Give what a source takes its replica from first: the domain or host of each rank, or all the same.

    Which of two replicas on near ranks comes first is open while they move: so the own rank is not
    given precedence, and ``fixed`` is taken as the nearest on the own host.
    """
    if not places_matter(problem.wanted):
        return np.zeros(problem.wanted.ep, np.int32)
    return problem.node_G if problem.wanted.replica_rule == "fixed" else problem.domain_G


def turns_of(experts_TK: npt.NDArray[np.uint16], windows: Windows, wanted: Plan) -> Int32:
    """Say whose turn each choice is among an expert's replicas: int32 [T, K]."""
    if wanted.replica_rule == "by_rank":  # for good
        return np.broadcast_to(windows.rank_T[:, None], experts_TK.shape).astype(np.int32)
    return turns(experts_TK, windows.rank_T, windows.step_T, wanted.experts)


def _loads(
    experts_TK: npt.NDArray[np.uint16], windows: Windows, cost: LayerCost, place_G: Int32, problem: PlacementProblem
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Seconds of each expert's choices by place and window, and of a replica held, by window.

    For sums over a window's steps that are divided by the number of steps.
    """
    experts, n, n_places = problem.wanted.experts, windows.n, int(place_G.max()) + 1
    chosen_TK = experts_TK < experts
    group_T = place_G[windows.rank_T].astype(np.int64) * n + windows.window_T
    key_TK = experts_TK.astype(np.int64) * (n_places * n) + group_T[:, None]
    load_EQW = np.bincount(key_TK[chosen_TK], minlength=experts * n_places * n).reshape(experts, n_places, n)
    held_s_W = cost.replica_s * windows.step_share_W * windows.n_steps * windows.weight_W
    return load_EQW * (cost.choice_s * windows.weight_W), held_s_W


def _prices(problem: PlacementProblem, windows: Windows, cost: LayerCost, *, items: int) -> Prices:
    """Prices by window, for sums over its steps that are divided by the number of steps, and for the counted part."""
    # every scenario's slowest ranks in full; of what all ranks share, the mean over scenarios
    counted_W = windows.weight_W / np.maximum(windows.counted_share_W, 1e-9)
    scenarios = int(windows.scenario_W.max()) + 1
    return Prices(
        load_VW=np.zeros((items, windows.n)),
        copy_W=counted_W * (cost.copy_s * (1 - cost.mean_share)),
        domain_copy_W=counted_W * (cost.domain_copy_s * (1 - cost.mean_share)),
        mean_W=counted_W * (cost.copy_s * cost.mean_share / problem.wanted.ep / scenarios),
        domain_mean_W=counted_W * (cost.domain_copy_s * cost.mean_share / problem.n_domains / scenarios),
    )


def _counted(
    windows: Windows,
    experts_TK: npt.NDArray[np.uint16],
    turn_TK: Int32,
    place_G: Int32,
    experts: int,
    wanted: bool,
) -> swaps.Tokens:
    """The tokens whose copies count; none where copies cost nothing."""
    mask_T = windows.counted_T if wanted else np.zeros(len(experts_TK), bool)
    counted_TK = experts_TK[mask_T]
    return swaps.Tokens.of(
        np.where(counted_TK < experts, counted_TK, -1).astype(np.int16),
        windows.window_T[mask_T],
        experts,
        place_T=place_G[windows.rank_T[mask_T]],
        turn_TK=turn_TK[mask_T],
    )
