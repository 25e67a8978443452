"""MoETuner's placement: clusters of even load, then ranks for them by where tokens go on (arXiv 2502.06643).

Its programs are in `moecast.placement.moetuner_programs`. It looks at tokens only through two
counts: how often each expert is chosen, and from which expert to which tokens go on, all K × K
pairs of a token's choices.

Axes: L MoE layer, E expert, C cluster, G rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.moetuner_programs import assign_all, assign_next, cluster_experts
from moecast.placement.notes import with_note
from moecast.placement.solver import Solved
from moecast.placement.transitions import count_transitions, slots_of_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moecast.placement.limit import Budget
    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem
    from moecast.topology import Cluster

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

MOST_PLACES = 20_000  # experts × ranks of a layer's first program
MOST_PRODUCTS = 40_000  # of the second one, (L − 1) · ranks⁴; beyond, one layer after another


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeTuner:
    """Two integer programs: clusters of experts with even load, then ranks for clusters with even traffic.

    As published, each expert stands once, and traffic is what goes on from layer to layer as if
    tokens stayed where their expert is; spare slots stay empty.
    """

    name: str = "moetuner"

    def supports(self, problem: PlacementProblem) -> str | None:
        """Take ranks with equally many slots, and sizes that CBC can hold."""
        experts, ranks = problem.wanted.experts, problem.wanted.ep
        if problem.slots_G.min() != problem.slots_G.max():
            return "needs equally many slots on every rank"
        if experts < ranks:
            return f"puts at least one of {experts} experts on each of {ranks} ranks"
        if experts * ranks > MOST_PLACES:
            return f"{experts} experts × {ranks} ranks, it takes up to {MOST_PLACES} together"
        return None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:  # noqa: ARG002
        """Cluster each layer, then put clusters on ranks."""
        rank_LE, note = tune(
            problem.load_LE,
            count_transitions(problem),
            slots=int(problem.slots_G[0]),
            bandwidth_GG=bandwidths(
                problem.cluster, problem.wanted.gpu_of_rank[: problem.wanted.ep], seed=problem.seed
            ),
            budget=budget,
        )
        return Solved(slots_LGP=slots_of_ranks(rank_LE.astype(np.int32), problem.empty_slots_LGP()), note=note)


def tune(load_LE: Int, pairs_LEE: Int, *, slots: int, bandwidth_GG: Float, budget: Budget) -> tuple[Int, str]:
    """Place experts by load and by where tokens go on.

    Parameters
    ----------
    load_LE, pairs_LEE
        Choices of each expert, and pairs of choices at consecutive layers, [L − 1, E, E].
    slots
        Most experts of a layer on a rank.
    bandwidth_GG
        Between ranks, in any unit.

    Returns
    -------
    The rank of each expert, [L, E], and what is proved, in words.
    """
    layers, ranks = len(load_LE), len(bandwidth_GG)
    cluster_LE = np.zeros(load_LE.shape, np.int64)
    even = 0
    for layer, load_E in enumerate(load_LE):
        cluster_LE[layer], proved = cluster_experts(
            load_E, ranks, slots, budget, programs_left=layers - layer + (layers - 1)
        )
        even += proved
        budget.tell("clustering", (layer + 1) / (2 * layers))
    rank_LC, chained = _ranks_of_clusters(_flows(pairs_LEE, cluster_LE, ranks), bandwidth_GG, budget)
    note = f"MoETuner: clusters proved even in {even} of {layers} layers"
    return np.take_along_axis(rank_LC, cluster_LE, axis=1), with_note(note, chained)


def bandwidths(cluster: Cluster, gpus: Sequence[int], *, seed: int = 0) -> Float:
    """Bytes per second between each two of some GPUs, alone on their path; endless to oneself.

    Parameters
    ----------
    gpus
        One for each rank.
    seed
        Of the hash that picks paths.
    """
    gpu_G, count = np.array(gpus), len(gpus)
    routes = cluster.routes(gpu_G.repeat(count), np.tile(gpu_G, count), seed=seed)
    slowness_F = np.zeros(count * count)
    np.maximum.at(slowness_F, routes.flow_X, routes.share_X / cluster.capacity_J[routes.link_X])
    with np.errstate(divide="ignore"):
        return np.asarray((1 / slowness_F).reshape(count, count))


def _flows(pairs_LEE: Int, cluster_LE: Int, clusters: int) -> Float:
    """[L − 1, C, C]: pairs between clusters of consecutive layers."""
    member_LEC = np.eye(clusters)[cluster_LE]
    return np.asarray(np.einsum("lec,lef,lfd->lcd", member_LEC[:-1], pairs_LEE.astype(float), member_LEC[1:]))


def _ranks_of_clusters(flow_LCC: Float, bandwidth_GG: Float, budget: Budget) -> tuple[Int, str]:
    """The second program: layer by layer where that is the whole of it or the whole is too large."""
    transitions, ranks = len(flow_LCC), len(bandwidth_GG)
    rank_LC = np.tile(np.arange(ranks), (transitions + 1, 1))
    if transitions == 0 or ranks == 1:
        return rank_LC, ""
    alike = bool(np.ptp(bandwidth_GG[~np.eye(ranks, dtype=bool)]) == 0)
    whole = not alike and transitions * ranks**4 <= MOST_PRODUCTS
    proved = 0
    for layer, flow_CC in enumerate(flow_LCC):
        from_rank_GC = flow_CC[np.argsort(rank_LC[layer])]
        left = transitions * (1 + whole) - layer
        rank_LC[layer + 1], optimal = assign_next(from_rank_GC, bandwidth_GG, budget, programs_left=left)
        proved += optimal
        budget.tell("assigning", 0.5 + (layer + 1) / (2 * transitions))
    if alike:
        return rank_LC, f"ranks proved for {proved} of {transitions} transitions"
    if not whole:
        return rank_LC, "ranks for one layer after another: the whole program is too large"
    rank_LC, optimal = assign_all(flow_LCC, rank_LC, bandwidth_GG, budget)
    return rank_LC, f"ranks {'proved' if optimal else 'not proved'} for all layers together"
