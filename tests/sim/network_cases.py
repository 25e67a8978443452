"""Small networks and flows made by hand, and a slow, independent account of what the fluid rung should say."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from moecast.sim.program import Compute, Exchange, Flows, StepProgram
from moecast.topology import Cluster


def make_flows(
    bytes_F: Sequence[float],
    routes: Sequence[Sequence[int]],
    *,
    source: Sequence[int] | None = None,
    destination: Sequence[int] | None = None,
    waiter: Sequence[int] | None = None,
    share: float | np.ndarray = 1.0,
    latency: float | Sequence[float] = 0.0,
    parents: Sequence[Sequence[int]] | None = None,
    delay: float = 0.0,
    tail: float = 0.0,
) -> Flows:
    """Flows over routes given as lists of links; all ranks are 0 unless told."""
    n = len(bytes_F)
    zeros = [0] * n
    families = [[] for _ in range(n)] if parents is None else [list(family) for family in parents]
    link_X = np.array([j for route in routes for j in route], np.int32)
    destination = zeros if destination is None else destination
    return Flows(
        bytes_F=np.asarray(bytes_F, np.float64),
        source_rank_F=np.asarray(zeros if source is None else source, np.int32),
        destination_rank_F=np.asarray(destination, np.int32),
        waiter_F=np.asarray(destination if waiter is None else waiter, np.int32),
        offsets_F1=np.concatenate(([0], np.cumsum([len(route) for route in routes], dtype=np.int64))),
        link_X=link_X,
        share_X=np.full(len(link_X), share),
        latency_F=np.broadcast_to(np.asarray(latency, np.float64), n).copy(),
        parent_offsets_F1=np.concatenate(([0], np.cumsum([len(family) for family in families], dtype=np.int64))),
        parent_R=np.array([p for family in families for p in family], np.int32),
        feed_delay_F=np.array([delay if family else 0.0 for family in families]),
        feed_tail_F=np.array([tail if family else 0.0 for family in families]),
    )


def switch_flows(sends_SD: np.ndarray, *, latency: float = 0.0) -> Flows:
    """Flows between all ranks on one switch: link s is the way out of rank s, link n + d the way into rank d."""
    n = len(sends_SD)
    pairs = [(s, d) for s in range(n) for d in range(n)]
    return make_flows(
        sends_SD.ravel(),
        [[s, n + d] if s != d else [] for s, d in pairs],
        source=[s for s, _ in pairs],
        destination=[d for _, d in pairs],
        latency=[latency if s != d else 0.0 for s, d in pairs],
    )


def cluster_flows(cluster: Cluster, sends_SD: np.ndarray, *, seed: int = 0) -> Flows:
    """One flow for each pair of a cluster's GPUs."""
    source_F, destination_F = (a.ravel().astype(np.int32) for a in np.indices(sends_SD.shape))
    routes = cluster.routes(source_F, destination_F, seed=seed)
    n = len(source_F)
    return Flows(
        bytes_F=sends_SD.ravel().astype(np.float64),
        source_rank_F=source_F,
        destination_rank_F=destination_F,
        waiter_F=destination_F,
        offsets_F1=routes.offsets_F1,
        link_X=routes.link_X,
        share_X=routes.share_X,
        latency_F=routes.latency_F,
        parent_offsets_F1=np.zeros(n + 1, np.int64),
        parent_R=np.zeros(0, np.int32),
        feed_delay_F=np.zeros(n),
        feed_tail_F=np.zeros(n),
    )


def reordered(flows: Flows, order: np.ndarray, *, link_of: np.ndarray, rank_of: np.ndarray) -> Flows:
    """The same flows in another order, over links and between ranks of other numbers."""
    place = np.argsort(order)
    families = _rows(flows.parent_offsets_F1, place[flows.parent_R], order)
    routes = _rows(flows.offsets_F1, link_of[flows.link_X], order)
    shares = _rows(flows.offsets_F1, flows.share_X, order)
    waiter_F = np.where(flows.waiter_F < 0, -1, rank_of[flows.waiter_F])
    return Flows(
        bytes_F=flows.bytes_F[order],
        source_rank_F=rank_of[flows.source_rank_F][order].astype(np.int32),
        destination_rank_F=rank_of[flows.destination_rank_F][order].astype(np.int32),
        waiter_F=waiter_F[order].astype(np.int32),
        offsets_F1=np.concatenate(([0], np.cumsum([len(r) for r in routes], dtype=np.int64))),
        link_X=np.concatenate([np.zeros(0), *routes]).astype(np.int32),
        share_X=np.concatenate([np.zeros(0), *shares]),
        latency_F=flows.latency_F[order],
        parent_offsets_F1=np.concatenate(([0], np.cumsum([len(r) for r in families], dtype=np.int64))),
        parent_R=np.concatenate([np.zeros(0), *families]).astype(np.int32),
        feed_delay_F=flows.feed_delay_F[order],
        feed_tail_F=flows.feed_tail_F[order],
    )


def _rows(offsets: np.ndarray, values: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    return [values[offsets[i] : offsets[i + 1]] for i in order]


def make_program(*stages: Compute | Exchange, capacity: Sequence[float], ranks: int) -> StepProgram:
    """A program over links without names worth reading."""
    capacity_J = np.asarray(capacity, np.float64)
    names = tuple(f"link {j}" for j in range(len(capacity_J)))
    return StepProgram(tasks=stages, n_ranks=ranks, capacity_J=capacity_J, link_names_J=names)


def compute(*seconds: float) -> Compute:
    return Compute(kind="expert", layer=0, seconds_R=np.asarray(seconds, np.float64))


def exchange(
    flows: Flows, ranks: int, *, setup: float = 0.0, barrier: bool = False, groups: Sequence[int] | None = None
) -> Exchange:
    group_G = np.asarray([0] * ranks if groups is None else groups, np.int32)
    return Exchange(kind="dispatch", layer=0, flows=flows, setup_s=setup, barrier=barrier, group_R=group_G)


def slow_max_min(routes: Sequence[dict[int, Fraction]], capacity: Sequence[Fraction]) -> list[Fraction]:
    """Exact max-min fair rates by the definition: raise all rates until a link is full, freeze its flows, go on.

    `routes` gives each flow's share of each of its links; every flow has at least one.
    """
    rates: dict[int, Fraction] = {}
    while len(rates) < len(routes):
        levels = {}
        for link, room in enumerate(capacity):
            weight = sum(
                (route.get(link, Fraction(0)) for f, route in enumerate(routes) if f not in rates), Fraction(0)
            )
            if weight:
                taken = sum((rates[f] * routes[f].get(link, 0) for f in rates), Fraction(0))
                levels[link] = (room - taken) / weight
        level = min(levels.values())
        full = {link for link, value in levels.items() if value == level}
        rates |= {f: level for f, route in enumerate(routes) if f not in rates and full & route.keys()}
    return [rates[f] for f in range(len(routes))]


class SlowStep:
    """The rules of a step, followed by looking at everything again at every event; plain Python and floats."""

    def __init__(self, program: StepProgram) -> None:
        self.program, self.now = program, 0.0
        shape = (len(program.tasks), program.n_ranks)
        self.enter, self.leave = np.full(shape, np.nan), np.full(shape, np.nan)
        self.ranks = [program.ranks_of(task).tolist() for task in program.tasks]
        self.flows = [
            _SlowFlow(s, f, stage)
            for s, stage in enumerate(program.tasks)
            if isinstance(stage, Exchange)
            for f in range(stage.fill().n)
        ]
        self.by_key = {(flow.stage, flow.index): flow for flow in self.flows}
        for s, ranks in enumerate(self.ranks):  # who takes no part holds nobody up
            absent = np.setdiff1d(np.arange(program.n_ranks), ranks)
            self.enter[s, absent] = self.leave[s, absent] = 0.0

    def run(self) -> np.ndarray:
        """The times at which each rank leaves each stage."""
        while np.isnan(self.leave).any():
            while self._settle():
                pass
            if not np.isnan(self.leave).any():
                break
            moving = [
                flow for flow in self.flows if flow.start is not None and flow.start <= self.now and flow.left > 0
            ]
            rates = self._rates(moving)
            times = [self.now + flow.left / rate for flow, rate in zip(moving, rates, strict=True)]
            times += [flow.start for flow in self.flows if flow.start is not None and flow.start > self.now]
            times += [flow.end for flow in self.flows if flow.end is not None and flow.end > self.now]
            times += [t for t in self._next_acts() if t > self.now]
            step = min(times) - self.now
            for flow, rate in zip(moving, rates, strict=True):
                flow.left -= rate * step
                if flow.left <= 1e-9 * rate * max(self.now, 1.0):
                    flow.left, flow.drained = 0.0, self.now + step
            self.now += step
        return self.leave

    def _rates(self, moving: list[_SlowFlow]) -> list[float]:
        left = dict(enumerate(self.program.capacity_J))
        rates = [np.inf] * len(moving)
        while any(np.isinf(rate) for rate in rates):
            rising = [(i, flow) for i, flow in enumerate(moving) if np.isinf(rates[i])]
            weights = {j: sum(flow.shares.get(j, 0.0) for _, flow in rising) for j in left}
            level, narrow = min((left[j] / weights[j], j) for j in left if weights[j] > 0)
            for i, flow in rising:
                if narrow in flow.shares:
                    rates[i] = level
                    for j, share in flow.shares.items():
                        left[j] -= level * share
            del left[narrow]
        return rates

    def _settle(self) -> bool:
        """Let whatever follows at once follow; False when nothing does."""
        before = (self.enter.copy(), self.leave.copy(), [(f.start, f.drained, f.end) for f in self.flows])
        for s, stage in enumerate(self.program.tasks):
            for g in self.ranks[s]:
                if np.isnan(self.enter[s, g]) and self._may_enter(s, g, stage):
                    self.enter[s, g] = self.now
                leave = self._leave(s, g, stage)
                if leave is not None and leave <= self.now and np.isnan(self.leave[s, g]):
                    self.leave[s, g] = leave
        for flow in self.flows:
            self._settle_flow(flow)
        after = (self.enter, self.leave, [(f.start, f.drained, f.end) for f in self.flows])
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before[:2], after[:2], strict=True))
        return not (same and before[2] == after[2])

    def _may_enter(self, s: int, rank: int, task: Compute | Exchange) -> bool:
        before = [self.leave[p, rank] for p in task.after]
        before += [self.leave[p, g] for p in task.after_all for g in self.ranks[p]]
        same = [p for p in range(s) if task.stream is not None and self.program.tasks[p].stream == task.stream]
        return not np.isnan([*before, *(self.leave[p, rank] for p in same)]).any()

    def _settle_flow(self, flow: _SlowFlow) -> None:
        parents = [self.by_key[flow.stage, p] for p in flow.parents]
        if flow.start is None:
            if not parents:
                flow.start = self._begin(flow.stage, flow.source)
            elif all(p.start is not None for p in parents):
                flow.start = max(p.start for p in parents) + flow.delay
        if flow.start is not None and flow.drained is None and flow.left == 0:
            flow.drained = flow.start
        if flow.end is None and flow.drained is not None and all(p.end is not None for p in parents):
            flow.end = max([flow.drained + flow.latency, *(p.end + flow.tail for p in parents)])

    def _begin(self, s: int, rank: int) -> float | None:
        """When a rank's flows start."""
        stage, ranks = self.program.tasks[s], np.array(self.ranks[s])
        group = stage.group_R[self.ranks[s].index(rank)]
        together = ranks[stage.group_R == group] if stage.barrier else [rank]
        enter = max(self.enter[s, g] for g in together) if not np.isnan(self.enter[s, together]).any() else np.nan
        return None if np.isnan(enter) else float(enter) + stage.setup_s

    def _leave(self, s: int, rank: int, stage: Compute | Exchange) -> float | None:
        if np.isnan(self.enter[s, rank]):
            return None
        if isinstance(stage, Compute):
            return float(self.enter[s, rank] + stage.seconds_R[self.ranks[s].index(rank)])
        begin = self._begin(s, rank)
        mine = [f for f in self.flows if f.stage == s and self._awaits(stage, rank, f)]
        if begin is None or any(f.end is None for f in mine):
            return None
        return max([begin, *(f.end for f in mine)])

    def _awaits(self, stage: Exchange, rank: int, flow: _SlowFlow) -> bool:
        if stage.barrier:
            ranks = self.ranks[flow.stage]
            return bool(stage.group_R[ranks.index(flow.source)] == stage.group_R[ranks.index(rank)])
        return flow.waiter == rank

    def _next_acts(self) -> list[float]:
        pairs = [(s, stage, g) for s, stage in enumerate(self.program.tasks) for g in self.ranks[s]]
        leaves = [self._leave(s, g, stage) for s, stage, g in pairs]
        return [leave for leave in leaves if leave is not None]


class _SlowFlow:
    def __init__(self, stage: int, index: int, exchange: Exchange) -> None:
        flows = exchange.fill()
        self.stage, self.index = stage, index
        ranks = np.arange(exchange.n_ranks) if exchange.ranks_R is None else exchange.ranks_R
        waiter = int(flows.waiter_F[index])
        self.source, self.waiter = int(ranks[flows.source_rank_F[index]]), waiter if waiter < 0 else int(ranks[waiter])
        self.latency = float(flows.latency_F[index])
        self.delay, self.tail = float(flows.feed_delay_F[index]), float(flows.feed_tail_F[index])
        pairs = range(flows.offsets_F1[index], flows.offsets_F1[index + 1])
        self.shares = {int(flows.link_X[x]): float(flows.share_X[x]) for x in pairs}
        self.parents = flows.parent_R[flows.parent_offsets_F1[index] : flows.parent_offsets_F1[index + 1]].tolist()
        self.left = float(flows.bytes_F[index]) if self.shares else 0.0
        self.start: float | None = None
        self.drained: float | None = None
        self.end: float | None = None
