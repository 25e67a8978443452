"""MoETuner's two integer programs (Go and Mahajan, arXiv 2502.06643, section 4), on PuLP.

1. *Clusters*, layer by layer: each expert in one cluster, as many clusters as ranks, none empty;
   the sum over clusters of |tokens − mean| is minimised. Here a cluster also fits into a rank's
   slots, which are as many in every layer; the paper asks in its second program for equally many
   experts on a GPU over all layers instead.
2. *Ranks*: each cluster of a layer on one rank; the sum over transitions of the slowest pair of
   ranks is minimised: tokens that go from clusters of one to clusters of the other at the next
   layer, over the bandwidth between them.

The second program's products y·y' are written with a variable each, whose sums over ranks of one
end are the other end's y: stronger than three inequalities a product, and exact, since every
cluster stands on one rank.

Where all bandwidths are alike, a transition's cost depends only on which clusters meet on a rank,
so that transitions are independent of each other: the program falls apart into one for each, the
layer before standing still, and their minima together are its minimum.

Axes: L MoE layer, E expert, C cluster, G and H rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.placement.cbc import solve_by_cbc

if TYPE_CHECKING:
    from moecast.placement.limit import Budget

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

TOLERANCE = 0.025
"""How far from the proved bound the paper's solver may stop, in parts of the objective."""
BALANCE_TOLERANCE = 0.005
"""The same for clusters, in parts of the layer's choices: a sum of deviations near 0 is never proved in parts of it."""


def cluster_experts(
    load_E: Int, clusters: int, most: int, budget: Budget, *, programs_left: int = 1
) -> tuple[Int, bool]:
    """Sort a layer's experts into clusters of even load.

    Parameters
    ----------
    load_E
        Choices of each expert.
    clusters, most
        How many, and how many experts one holds at most.

    Returns
    -------
    The cluster of each expert, and whether it is proved to be within the tolerance.
    """
    import pulp

    start_E = _dealt(load_E, clusters, most)
    if clusters == 1:
        return start_E, True
    program: Any = pulp.LpProblem("clusters", pulp.LpMinimize)
    x = [[_binary(program, f"x{e}_{c}", start_E[e] == c) for c in range(clusters)] for e in range(len(load_E))]
    off = [program.add_variable(f"off{c}", 0) for c in range(clusters)]
    program += pulp.lpSum(off)
    for row in x:
        program += pulp.lpSum(row) == 1
    mean = float(load_E.sum()) / clusters
    for c in range(clusters):
        held = pulp.lpSum(x[e][c] for e in range(len(load_E)))
        program += held >= 1
        program += held <= most
        load = pulp.lpSum(int(load) * x[e][c] for e, load in enumerate(load_E))
        program += load - mean <= off[c]
        program += mean - load <= off[c]
        off[c].setInitialValue(abs(float(load_E[start_E == c].sum()) - mean))
    absolute = BALANCE_TOLERANCE * float(load_E.sum())
    proved = solve_by_cbc(program, budget, programs_left=programs_left, gap=TOLERANCE, absolute=absolute)
    found_E = start_E if proved is None else _where(x)
    if unevenness(load_E, found_E, clusters) > unevenness(load_E, start_E, clusters):
        found_E = start_E
    return found_E, bool(proved)


def unevenness(load_E: Int, cluster_E: Int, clusters: int) -> float:
    """Sum over clusters of |choices − mean|: what the first program minimises."""
    load_C = np.bincount(cluster_E, load_E, clusters)
    return float(np.abs(load_C - load_C.mean()).sum())


def assign_next(flow_GC: Float, bandwidth_GG: Float, budget: Budget, *, programs_left: int = 1) -> tuple[Int, bool]:
    """Put the next layer's clusters on ranks, the layer before standing still.

    Parameters
    ----------
    flow_GC
        Tokens that go on from each rank to each cluster of the next layer.
    bandwidth_GG
        Between ranks; what stays on one counts nothing.

    Returns
    -------
    The rank of each cluster, and whether it is proved to be within the tolerance.
    """
    import pulp

    ranks = len(flow_GC)
    program: Any = pulp.LpProblem("ranks", pulp.LpMinimize)
    y = [[_binary(program, f"y{c}_{g}", c == g) for g in range(ranks)] for c in range(ranks)]
    slowest = program.add_variable("slowest", 0)
    program += slowest
    _one_to_one(program, y)
    scale = float(max(flow_GC.max(initial=0.0), 1.0) / bandwidth_GG[~np.eye(ranks, dtype=bool)].min())
    for g in range(ranks):
        for h in range(ranks):
            if g != h:
                price_C = flow_GC[g] / bandwidth_GG[g, h] / scale
                program += pulp.lpSum(float(price_C[c]) * y[c][h] for c in range(ranks)) <= slowest
    start_C = np.arange(ranks)
    slowest.setInitialValue(slowest_pair(flow_GC, start_C, bandwidth_GG) / scale)
    proved = solve_by_cbc(program, budget, programs_left=programs_left, gap=TOLERANCE)
    return (start_C if proved is None else _where(y)), bool(proved)


def slowest_pair(flow_GC: Float, rank_C: Int, bandwidth_GG: Float) -> float:
    """Give the most tokens ÷ bandwidth of two different ranks: what the second program sums over transitions."""
    flow_GH = np.zeros_like(flow_GC)
    np.add.at(flow_GH.T, rank_C, flow_GC.T)
    apart = ~np.eye(len(flow_GH), dtype=bool)
    return float((flow_GH / bandwidth_GG)[apart].max(initial=0.0))


def assign_all(flow_LCC: Float, start_LC: Int, bandwidth_GG: Float, budget: Budget) -> tuple[Int, bool]:
    """Put the clusters of all layers on ranks in one program, from an assignment on that is known.

    Parameters
    ----------
    flow_LCC
        Tokens that go on from each cluster of a layer to each of the next.
    start_LC
        A rank for each cluster.

    Returns
    -------
    The rank of each cluster, [L, C], and whether it is proved to be within the tolerance.
    """
    import pulp

    layers, ranks = start_LC.shape
    program: Any = pulp.LpProblem("all_ranks", pulp.LpMinimize)
    y = [
        [[_binary(program, f"y{i}_{c}_{g}", start_LC[i, c] == g) for g in range(ranks)] for c in range(ranks)]
        for i in range(layers)
    ]
    slowest = [program.add_variable(f"slowest{i}", 0) for i in range(layers - 1)]
    program += pulp.lpSum(slowest)
    for of_layer in y:
        _one_to_one(program, of_layer)
    scale = float(max(flow_LCC.max(initial=0.0), 1.0) / bandwidth_GG[~np.eye(ranks, dtype=bool)].min())
    for i in range(layers - 1):
        _transition(program, i, y[i], y[i + 1], flow_LCC[i] / scale, bandwidth_GG, slowest[i])
    proved = solve_by_cbc(program, budget, gap=TOLERANCE)
    found_LC = start_LC if proved is None else np.stack([_where(of_layer) for of_layer in y])
    if total_slowest(flow_LCC, found_LC, bandwidth_GG) > total_slowest(flow_LCC, start_LC, bandwidth_GG):
        found_LC = start_LC
    return found_LC, bool(proved)


def total_slowest(flow_LCC: Float, rank_LC: Int, bandwidth_GG: Float) -> float:
    """Sum `slowest_pair` over the transitions."""
    from_rank = (flow_CC[np.argsort(rank_C)] for flow_CC, rank_C in zip(flow_LCC, rank_LC, strict=False))
    return sum(
        slowest_pair(flow_GC, rank_C, bandwidth_GG) for flow_GC, rank_C in zip(from_rank, rank_LC[1:], strict=True)
    )


def _transition(
    program: Any, layer: int, y: Any, y_next: Any, flow_CC: Float, bandwidth_GG: Float, slowest: Any
) -> None:
    """One transition's products, and its slowest pair of ranks."""
    import pulp

    ranks = range(len(flow_CC))
    z = {
        (c, g, d, h): program.add_variable(f"z{layer}_{c}_{g}_{d}_{h}", 0, 1)
        for c in ranks
        for g in ranks
        for d in ranks
        for h in ranks
    }
    for c in ranks:
        for d in ranks:
            for g in ranks:
                program += pulp.lpSum(z[c, g, d, h] for h in ranks) == y[c][g]
                program += pulp.lpSum(z[c, h, d, g] for h in ranks) == y_next[d][g]
    for g in ranks:
        for h in ranks:
            if g != h:
                price = 1 / float(bandwidth_GG[g, h])
                program += (
                    pulp.lpSum(price * float(flow_CC[c, d]) * z[c, g, d, h] for c in ranks for d in ranks) <= slowest
                )


def _one_to_one(program: Any, y: Any) -> None:
    import pulp

    for row in y:
        program += pulp.lpSum(row) == 1
    for column in zip(*y, strict=True):
        program += pulp.lpSum(column) == 1


def _binary(program: Any, name: str, start: Any) -> Any:
    variable = program.add_variable(name, cat="Binary")
    variable.setInitialValue(int(bool(start)))
    return variable


def _where(rows: Any) -> Int:
    """The column in which each row of binaries is 1."""
    return np.array([int(np.argmax([variable.value() or 0.0 for variable in row])) for row in rows])


def _dealt(load_E: Int, clusters: int, most: int) -> Int:
    """A start: the heaviest first, each to the lightest cluster with room; the last ones fill clusters still empty."""
    cluster_E = np.zeros(len(load_E), np.int64)
    load_C, held_C = np.zeros(clusters), np.zeros(clusters, np.int64)
    for at, expert in enumerate(np.argsort(-load_E, kind="stable")):
        open_C = held_C < most
        if len(load_E) - at <= (held_C == 0).sum():
            open_C &= held_C == 0
        chosen = int(np.argmin(np.where(open_C, load_C, np.inf)))
        cluster_E[expert] = chosen
        load_C[chosen] += load_E[expert]
        held_C[chosen] += 1
    return cluster_E
