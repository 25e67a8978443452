"""All-reduce, reduce-scatter, all-gather and send/receive: closed forms, bytes, and who holds what after the flows."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moecast.errors import MoecastError
from moecast.sim import KINDS, Flows, Plan, Sites, find_rung, time_collective
from moecast.sim.collectives import all_gather, all_reduce, collective_template, reduce_scatter, send_receive
from moecast.sim.collectives.choice import Choice, candidates, pick
from moecast.sim.collectives.groups import groups_of, numbers_of_groups
from moecast.sim.collectives.operations import bus_factor, find_kind
from moecast.sim.collectives.protocols import LOW_LATENCY, LOW_LATENCY_128, PLAIN, SIMPLE
from moecast.sim.collectives.timing import exchange_of, program_of
from moecast.sim.collectives.tree import double_tree
from moecast.sim.collectives.two_dimensional import two_dimensional_all_to_all
from moecast.topology import Cluster
from tests.sim.clusters import by_roofline
from tests.topology.clusters import clusters

MIB, GIB = 2**20, 2**30
NVLINK_BPS, NIC_BPS, HOP_S = 370e9, 48.5e9, 1e-6  # of dgx-h100, usable; GPU to GPU over NVSwitch
IN_SWITCH = 0.836
MOVED_IN_SHARES = ("ring", "direct", "two-shot", "hierarchical")
PAIRS = [(operation, kind.name) for operation, kinds in KINDS.items() for kind in kinds]


def sites_of(cluster: Cluster, ranks: int) -> Sites:
    return Sites.of(cluster, Plan.contiguous(layers=1, experts=ranks, choices=1, ep=ranks))


def taken_s(cluster: Cluster, operation: str, kind: str, size: int, *, ranks: int, rung: str = "fluid") -> float:
    [row] = time_collective(cluster, operation, [size], kind=kind, ranks=ranks, rung=find_rung(rung))
    return row.time_s


def start_s(cluster: Cluster) -> float:
    return cluster.hardware.collective_launch_s + cluster.hardware.barrier_s


CLOSED_FORMS = {
    ("all-reduce", "ring"): lambda n, b: 2 * (n - 1) * (b / n / NVLINK_BPS + HOP_S),
    ("all-reduce", "in-switch"): lambda n, b: (1 + 1 / n) * b / NVLINK_BPS / IN_SWITCH + HOP_S,
    ("all-reduce", "one-shot"): lambda n, b: (n - 1) * b / NVLINK_BPS + HOP_S,
    ("all-reduce", "two-shot"): lambda n, b: 2 * (n - 1) / n * b / NVLINK_BPS + 2 * HOP_S,
    ("all-reduce", "hierarchical"): lambda n, b: 2 * (n - 1) / n * b / NVLINK_BPS + 2 * HOP_S,
    ("reduce-scatter", "ring"): lambda n, b: (n - 1) * (b / n / NVLINK_BPS + HOP_S),
    ("reduce-scatter", "direct"): lambda n, b: (n - 1) / n * b / NVLINK_BPS + HOP_S,
    ("reduce-scatter", "in-switch"): lambda _, b: b / NVLINK_BPS / IN_SWITCH + HOP_S,
    ("reduce-scatter", "hierarchical"): lambda n, b: (n - 1) / n * b / NVLINK_BPS + HOP_S,
    ("all-gather", "ring"): lambda n, b: (n - 1) * (b / n / NVLINK_BPS + HOP_S),
    ("all-gather", "direct"): lambda n, b: (n - 1) / n * b / NVLINK_BPS + HOP_S,
    ("all-gather", "in-switch"): lambda _, b: b / NVLINK_BPS / IN_SWITCH + HOP_S,
    ("all-gather", "hierarchical"): lambda n, b: (n - 1) / n * b / NVLINK_BPS + HOP_S,
    ("all-to-all", "direct"): lambda n, b: (n - 1) / n * b / NVLINK_BPS + HOP_S,
    ("send-recv", "cyclic"): lambda _, b: b / NVLINK_BPS + HOP_S,
    ("send-recv", "open"): lambda _, b: b / NVLINK_BPS + HOP_S,
}


@pytest.mark.parametrize("rung", ["bound", "fluid"])
@pytest.mark.parametrize(("operation", "kind"), CLOSED_FORMS)
def test_closed_form_in_one_domain(operation: str, kind: str, rung: str) -> None:
    cluster = by_roofline("dgx-h100")
    for ranks, size in ((4, 64 * 2**10), (8, 8 * MIB), (7, 7 * MIB)):
        expected = start_s(cluster) + CLOSED_FORMS[operation, kind](ranks, size)
        assert taken_s(cluster, operation, kind, size, ranks=ranks, rung=rung) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ranks", [4, 8])
def test_closed_form_of_the_tree(ranks: int) -> None:
    """An inner rank sends to two children and its parent, and as a leaf of the other tree to its parent."""
    cluster = by_roofline("dgx-h100")
    expected = start_s(cluster) + 2 * MIB / NVLINK_BPS + 2 * math.log2(ranks) * HOP_S
    assert taken_s(cluster, "all-reduce", "tree", MIB, ranks=ranks, rung="bound") <= expected * (1 + 1e-9)
    large = taken_s(cluster, "all-reduce", "tree", 8 * GIB, ranks=ranks)
    assert large == pytest.approx(2 * 8 * GIB / NVLINK_BPS, rel=1e-3)


def test_closed_form_between_domains() -> None:
    """Two NICs' worth of hops and bytes, and NVLink is hidden behind them."""
    cluster = by_roofline("dgx-h100", nodes=4, fabric="single-switch")
    far_s = cluster.routes([0], [8]).latency_F[0]
    expected = start_s(cluster) + 2 * (3 / 4) * GIB / 8 / NIC_BPS + 2 * 3 * far_s + 2 * HOP_S
    slow = replace_capacity(cluster, {"nvlink-out": 1e13, "nvlink-in": 1e13})
    assert taken_s(slow, "all-reduce", "hierarchical", GIB, ranks=32) == pytest.approx(expected, rel=1e-5)
    ring = start_s(cluster) + 2 * 31 / 32 * GIB / 8 / NIC_BPS
    assert taken_s(slow, "all-reduce", "ring", GIB, ranks=32) == pytest.approx(ring, rel=0.03)


def replace_capacity(cluster: Cluster, by_kind: dict[str, float], only: str = "") -> Cluster:
    links = tuple(
        replace(link, capacity_Bps=by_kind[link.kind]) if link.kind in by_kind and only in link.name else link
        for link in cluster.links
    )
    return replace(cluster, links=links)


@pytest.mark.parametrize(("operation", "kind"), [p for p in CLOSED_FORMS if p[1] in ("ring", "in-switch", "cyclic")])
def test_a_slow_link_slows_everything(operation: str, kind: str) -> None:
    cluster = by_roofline("dgx-h100")
    name = next(link.name for link in cluster.links if link.kind == "nvlink-out")
    slow = replace_capacity(cluster, {"nvlink-out": NVLINK_BPS / 4}, only=name)
    ratio = taken_s(slow, operation, kind, GIB, ranks=8) / taken_s(cluster, operation, kind, GIB, ranks=8)
    assert ratio == pytest.approx(4, rel=0.02)


def test_the_order_of_kinds_for_few_bytes() -> None:
    cluster = by_roofline("dgx-h100")
    times = [taken_s(cluster, "all-reduce", kind, MIB, ranks=8) for kind in ("in-switch", "two-shot", "ring")]
    assert times == sorted(times)
    small = [taken_s(cluster, "all-reduce", kind, 2**10, ranks=8) for kind in ("one-shot", "two-shot", "ring")]
    assert small == sorted(small)


@st.composite
def cases(draw: st.DrawFn, most: int = 6) -> tuple[Sites, np.ndarray]:
    """A small cluster, and disjoint groups of as many of its ranks."""
    cluster = draw(clusters(max_domains=3).filter(lambda built: built.n_gpus > 1))
    ranks = cluster.n_gpus
    members = draw(st.integers(2, min(most, ranks)))
    groups = draw(st.integers(1, min(3, ranks // members)))
    order = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(ranks)
    if draw(st.booleans()):
        order.sort()
    return sites_of(cluster, ranks), order[: groups * members].reshape(groups, members)


def carried(sites: Sites, groups_DM: np.ndarray, operation: str, kind: str) -> bool:
    return all(find_kind(operation, kind).supports(operation, group) for group in groups_of(sites, groups_DM))


def parts_by_edge(flows: Flows, ranks_M: np.ndarray, size: int) -> dict[tuple[int, int], float]:
    """What goes from rank to rank of a group, as parts of the size; nothing leaves the group."""
    mine_F = np.isin(flows.source_rank_F, ranks_M)
    np.testing.assert_array_equal(mine_F, np.isin(flows.destination_rank_F, ranks_M))
    edges: dict[tuple[int, int], float] = defaultdict(float)
    for flow in np.flatnonzero(mine_F):
        edges[int(flows.source_rank_F[flow]), int(flows.destination_rank_F[flow])] += flows.bytes_F[flow] / size
    return dict(edges)


def turned(edges: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """The edges the other way round: a reduce-scatter is an all-gather backwards."""
    return {(destination, source): part for (source, destination), part in edges.items()}


def gathers(edges: dict[tuple[int, int], float], ranks: list[int]) -> bool:
    """Whether some order of chunks along the edges brings every rank's share to every other (a linear program).

    x[o, e] is what edge e carries of owner o's share. One owner's chunks reach all others if to each single one as much
    can flow (Edmonds: as many disjoint trees as the least cut); each edge carries what it carries of all owners.
    """
    n, pairs = len(ranks), list(edges)
    streams = [(owner, end) for owner in ranks for end in ranks if end != owner]
    n_x, n_e = n * len(pairs), len(pairs)
    column = {stream: n_x + n_e * index for index, stream in enumerate(streams)}
    at_most, limits, equal, values = [], [], [], []
    for e, pair in enumerate(pairs):
        row = np.zeros(n_x + n_e * len(streams))
        row[[n_e * o + e for o in range(n)]] = 1
        at_most.append(row)
        limits.append(edges[pair] * n + 1e-6)  # shares
    for (owner, end), first in column.items():
        for e in range(n_e):
            row = np.zeros(n_x + n_e * len(streams))
            row[first + e], row[n_e * ranks.index(owner) + e] = 1, -1
            at_most.append(row)
            limits.append(0)
        for rank in ranks:
            row = np.zeros(n_x + n_e * len(streams))
            for e, (source, destination) in enumerate(pairs):
                row[first + e] += (destination == rank) - (source == rank)
            equal.append(row)
            values.append((rank == end) - (rank == owner))
    found = linprog(np.zeros(n_x + n_e * len(streams)), np.array(at_most), limits, np.array(equal), values)
    return bool(found.status == 0)


def test_the_check_of_movement_can_fail() -> None:
    """A line is no ring, and a ring with too few bytes neither."""
    ring = {(0, 1): 2 / 3, (1, 2): 2 / 3, (2, 0): 2 / 3}
    assert gathers(ring, [0, 1, 2])
    assert not gathers({pair: part * 0.99 for pair, part in ring.items()}, [0, 1, 2])
    assert not gathers({(0, 1): 1.0, (1, 2): 1.0}, [0, 1, 2])


@pytest.mark.parametrize(
    ("operation", "kind"), [p for p in PAIRS if p[1] in ("ring", "direct", "two-shot", "hierarchical")]
)
@settings(max_examples=8, deadline=None)
@given(case=cases(), size=st.integers(2**10, 2**30))
def test_every_rank_ends_with_everything(operation: str, kind: str, case: tuple[Sites, np.ndarray], size: int) -> None:
    """The flows carry as many bytes as must move and no more, and along them every rank can get all that it wants."""
    sites, groups_DM = case
    if not carried(sites, groups_DM, operation, kind):
        return
    template = collective_template(sites, groups_DM, operation=operation, kind=kind)
    flows, n = template.fill(np.full(len(groups_DM), size)), groups_DM.shape[1]
    for ranks_M in groups_DM:
        edges = parts_by_edge(flows, ranks_M, size)
        times = 2 if operation == "all-reduce" else 1
        if operation == "all-to-all":
            assert edges == pytest.approx({(s, d): 1 / n for s in ranks_M for d in ranks_M if s != d})
            continue
        assert sum(edges.values()) == pytest.approx(times * (n - 1))
        half = {pair: part / times for pair, part in edges.items()}
        if operation != "all-gather":
            assert gathers(turned(half), ranks_M.tolist())
        if operation != "reduce-scatter":
            assert gathers(half, ranks_M.tolist())


@settings(max_examples=40, deadline=None)
@given(case=cases(most=12), size=st.integers(2**10, 2**30))
def test_bytes_of_the_other_kinds(case: tuple[Sites, np.ndarray], size: int) -> None:
    sites, groups_DM = case
    n, counts_D = groups_DM.shape[1], np.full(len(groups_DM), size)
    for ranks_M in groups_DM:
        edges = parts_by_edge(all_reduce(sites, groups_DM, kind="tree").fill(counts_D), ranks_M, size)
        assert edges == pytest.approx(turned(edges))  # what goes up comes down
        assert sum(edges.values()) == pytest.approx(2 * (n - 1))
        if carried(sites, groups_DM, "all-reduce", "one-shot"):
            edges = parts_by_edge(all_reduce(sites, groups_DM, kind="one-shot").fill(counts_D), ranks_M, size)
            assert edges == pytest.approx({(s, d): 1.0 for s in ranks_M for d in ranks_M if s != d})
        sends = parts_by_edge(send_receive(sites, groups_DM).fill(counts_D), ranks_M, size)
        assert sends == pytest.approx(dict.fromkeys(zip(ranks_M[:-1].tolist(), ranks_M[1:].tolist(), strict=True), 1.0))
    if carried(sites, groups_DM, "reduce-scatter", "in-switch"):
        for template, factor in (
            (all_reduce(sites, groups_DM, kind="in-switch"), 1 + 1 / n),
            (reduce_scatter(sites, groups_DM, kind="in-switch"), 1.0),
            (all_gather(sites, groups_DM, kind="in-switch"), 1.0),
        ):
            flows = template.fill(counts_D)
            assert flows.bytes_F == pytest.approx(np.full(groups_DM.size, factor * size))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 11, 16, 31])
def test_both_trees_span_and_a_leaf_of_one_is_inside_the_other(n: int) -> None:
    trees = double_tree(n)
    for parent_U in trees:
        assert (parent_U < 0).sum() == 1
        for unit in range(n):
            steps = 0
            while parent_U[unit] >= 0:
                unit, steps = parent_U[unit], steps + 1  # noqa: PLW2901
            assert steps <= math.ceil(math.log2(n))
    inside = [set(parent_U[parent_U >= 0].tolist()) for parent_U in trees]
    assert len(inside[0] & inside[1]) <= 2


@settings(max_examples=25, deadline=None)
@given(case=cases(most=8), pair=st.sampled_from(PAIRS), size=st.integers(1, 2**30))
def test_bound_is_below_fluid_and_more_bytes_take_longer(
    case: tuple[Sites, np.ndarray], pair: tuple[str, str], size: int
) -> None:
    sites, groups_DM = case
    operation, kind = pair
    if not carried(sites, groups_DM, operation, kind):
        return
    template = collective_template(sites, groups_DM, operation=operation, kind=kind)
    choice = Choice(kind=find_kind(operation, kind), protocol=PLAIN, template=template)
    times = {}
    for rung in ("bound", "fluid"):
        for units in (size, 2 * size):
            exchange = replace(
                exchange_of(choice, sites, np.full(len(groups_DM), units)),
                group_R=numbers_of_groups(sites, groups_DM),
            )
            found = find_rung(rung).run(program_of(sites, [exchange]))
            times[rung, units] = found.leave_S[0]
        assert (times[rung, 2 * size] >= times[rung, size]).all()
    for units in (size, 2 * size):
        assert (times["bound", units] <= times["fluid", units] * (1 + 1e-9)).all()
        reckoned_s = choice.estimate_s(sites, np.full(len(groups_DM), units))
        assert reckoned_s <= times["fluid", units].max() * (1 + 1e-9) or kind == "tree"


@pytest.mark.parametrize(
    ("size", "name"),
    [(2**16, "ring/LL"), (8 * MIB, "ring/LL128"), (256 * MIB, "in-switch/NVLS"), (GIB, "in-switch/NVLS")],
)
def test_what_nccl_takes_for_a_size(size: int, name: str) -> None:
    sites = sites_of(by_roofline("dgx-h200"), 8)
    choices = candidates(sites, np.arange(8)[None], operation="all-reduce")
    assert pick(choices, sites, [size]).name == name


def test_nccl_takes_no_switch_between_nodes_or_for_two_gpus() -> None:
    for sites in (sites_of(by_roofline("dgx-h200", nodes=2), 16), sites_of(by_roofline("dgx-h200"), 2)):
        everyone_DM = np.arange(sites.n_ranks)[None]
        names = {c.kind.name for c in candidates(sites, everyone_DM, operation="all-reduce")}
        assert names <= {"ring", "tree"}
    with pytest.raises(MoecastError, match="in-switch does not carry all-reduce over 16 ranks of 2 domains"):
        all_reduce(sites_of(by_roofline("dgx-h200", nodes=2), 16), np.arange(16)[None], kind="in-switch")


def test_low_latency_protocols_are_the_best_fit_of_their_rows() -> None:
    """Launch and wire bytes of LL by least squares over NCCL's rows marked fit; Simple's on one."""
    hops_s, per_byte_s = LOW_LATENCY.near_hop_s or 0, 7 / 8 / NVLINK_BPS
    rows = [(14, 2 * 2**16, 19.89e-6), (14, 2 * MIB, 34.65e-6), (14, 2 * MIB, 35.6e-6), (7, MIB, 29.3e-6)]
    wanted = np.array([[1 / t, size * per_byte_s / t] for _, size, t in rows])
    start, wire = np.linalg.lstsq(wanted, np.array([1 - hops * hops_s / t for hops, _, t in rows]), rcond=None)[0]
    assert LOW_LATENCY.start_s == pytest.approx(start, rel=0.01)
    assert LOW_LATENCY.near_wire == pytest.approx(wire, rel=0.01)
    simple_s = (SIMPLE.start_s or 0) + 7 * (SIMPLE.near_hop_s or 0) + SIMPLE.near_wire * 512 * MIB * per_byte_s
    assert simple_s == pytest.approx(1420e-6, rel=1e-3)
    assert LOW_LATENCY_128.near_wire < SIMPLE.near_wire


def test_two_dimensional_all_to_all() -> None:
    """Tutel: inside, then between, with three copies; each pair's bytes make both legs."""
    sites = sites_of(by_roofline("dgx-h100", nodes=4), 32)
    first, second, last = two_dimensional_all_to_all(sites, np.arange(32)[None])
    assert last.template is None
    assert [step.copied for step in (first, second, last)] == [1, 1, 1]
    assert first.template is not None
    assert second.template is not None
    inside, between = (step.fill(np.array([2**20])) for step in (first.template, second.template))
    domain_G = sites.domain_G
    assert (domain_G[inside.source_rank_F] == domain_G[inside.destination_rank_F]).all()
    assert (between.source_rank_F % 8 == between.destination_rank_F % 8).all()
    assert inside.bytes_F.sum() == pytest.approx(32 * 7 / 8 * 2**20)
    assert between.bytes_F.sum() == pytest.approx(32 * 3 / 4 * 2**20)
    with pytest.raises(MoecastError, match="several domains"):
        two_dimensional_all_to_all(sites, np.arange(8)[None])


def test_ranks_of_part_of_a_program() -> None:
    sites = sites_of(by_roofline("dgx-h100"), 8)
    template = all_gather(sites, [[6, 2], [3, 5]], kind="direct").among(np.array([2, 3, 5, 6], np.int32))
    flows = template.fill(np.array([100, 200]))
    moved = zip(flows.source_rank_F.tolist(), flows.destination_rank_F.tolist(), flows.bytes_F.tolist(), strict=True)
    assert set(moved) == {(0, 3, 50.0), (3, 0, 50.0), (1, 2, 100.0), (2, 1, 100.0)}
    with pytest.raises(ValueError, match="of another rank"):
        all_gather(sites, [[6, 2]], kind="direct").among(np.array([2, 3], np.int32))


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([[0, 8]], r"groups_DM\[0, 1\] = 8|groups_DM\[0\]\[1\] = 8"),
        ([[0]], "at least two ranks"),
        (np.zeros((0, 2), int), "at least two ranks"),
        ([[0, 1], [1, 2]], "named twice"),
    ],
)
def test_groups_that_are_none(groups: list[list[int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        all_reduce(sites_of(by_roofline("dgx-h100"), 8), groups, kind="ring")


def test_unknown_names() -> None:
    cluster = by_roofline("dgx-h100")
    with pytest.raises(MoecastError, match="of all-gather, one of ring, direct"):
        time_collective(cluster, "all-gather", [MIB], kind="tree", rung=find_rung("bound"))
    with pytest.raises(MoecastError, match="one of all-reduce"):
        time_collective(cluster, "gossip", [MIB], kind="ring", rung=find_rung("bound"))
    assert bus_factor("send-recv", 8) == 1
