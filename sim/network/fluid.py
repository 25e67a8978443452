"""The fluid rung: bytes flow like water, and the flows on a link share it max-min fairly.

Axes: F flow, J link, X (flow, link) pair, K group of flows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moecast.arrays import index, numbers, whole_numbers
from moecast.errors import MoecastError
from moecast.sim.engine import run_program
from moecast.sim.network.capped import SETTLED, join
from moecast.sim.network.events import advance, next_event, submit_all
from moecast.sim.network.flows import check_axis, check_flows, check_program, children
from moecast.sim.network.links import kept_pairs, parallel_links
from moecast.sim.network.maxmin import enlist
from moecast.sim.network.state import ENDED, empty_net, with_room
from moecast.sim.program import Float, Flows, Int, StepProgram, StepTimes

MOST_GROUPS = 1 << 24
MOST_TOLERANCE = 0.1
MOST_FLOWS = 32_000_000
"""Of a step: each takes some 250 bytes while it is followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fluid:
    """Flows that share links max-min fairly, event by event, while SimPy moves the ranks from stage to stage.

    The ranks drift apart, so that exchanges of different stages overlap; all of a step's flows are in one network.

    Parameters
    ----------
    tolerance
        About by what part of the age of the oldest flow in transit ends may be wrong, at most 0.1: an aim, no proof.
        Rates are means over windows of time, as wide as part of the flows that leave in them allows, each filled once;
        flows that start wait for the window's end, but no longer than the tolerance's part of the age. Bytes are right
        at the end of each window and no link carries more than it can over one. On all-to-alls of uneven sizes that
        start together the last end was wrong by a fifth of the tolerance at most, single ranks by up to .7 of it; of
        drawn steps whose ranks start apart the last end by less than half of it in 99 of 100, the worst rank by up to
        1.5 times it in 99 of 100 and by 2.7 times in the worst (docs/benchmarks.md). 0: exact.

    Raises
    ------
    ValueError
        The tolerance is not from 0 to 0.1.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= MOST_TOLERANCE:
            raise ValueError(f"tolerance = {self.tolerance}: must be from 0 to {MOST_TOLERANCE}")

    @property
    def name(self) -> str:
        """``fluid``, with the tolerance where there is one."""
        return f"fluid:{100 * self.tolerance:g}%" if self.tolerance else "fluid"

    @property
    def times_every_step(self) -> bool:
        """No: a step takes seconds."""
        return False

    @property
    def is_lower_bound(self) -> bool:
        """No: times are those of fair sharing."""
        return False

    def supports(self, program: StepProgram, /) -> str | None:
        """Not more flows than memory holds."""
        flows = sum(exchange.flows.most for exchange in program.exchanges)
        if flows <= MOST_FLOWS:
            return None
        return f"follows up to {flows:,} flows one by one, more than {MOST_FLOWS:,}: use bound"

    def run(self, program: StepProgram) -> StepTimes:
        """When each rank enters and leaves each stage.

        Raises
        ------
        ValueError
            The program's arrays do not fit together.
        MoecastError
            It has too many flows (`supports`).
        """
        check_program(program)
        why = self.supports(program)
        if why is not None:
            raise MoecastError(why, field="network", value=self.name)
        bottleneck_J = parallel_links(program)
        network = OpenFluid(program.capacity_J, bottleneck_J=bottleneck_J, tolerance=self.tolerance)
        return run_program(program, network)


class OpenFluid:
    """A network that flows join at any time, and that tells when the last flow of a group will have ended.

    Parameters
    ----------
    capacity_J
        What each link carries in a second.
    bottleneck_J
        For each link one that carries the same flows with the same shares and is no faster (`parallel_links`);
        only those are followed. None: follow all.
    tolerance
        As of `Fluid`.

    Raises
    ------
    ValueError, TypeError
        A capacity that is not finite and above 0, or a bottleneck that is no link.
    """

    def __init__(self, capacity_J: Float, *, bottleneck_J: Int | None = None, tolerance: float = 0.0) -> None:
        capacity_J = numbers("capacity_J", capacity_J, positive=True)
        links = len(capacity_J)
        self._net = empty_net(capacity_J, tolerance)
        self._within = tolerance or None
        self._sizes = dict.fromkeys("FXCKQ", 0)
        self._next_event_s = np.inf  # no later than the true one
        if bottleneck_J is not None:
            bottleneck_J = whole_numbers("bottleneck_J", bottleneck_J, most=links - 1, shape=(links,))
        self._bottleneck_J = bottleneck_J

    @property
    def clock_s(self) -> float:
        """The time up to which everything has been worked out."""
        return float(self._net.clock[0])

    @property
    def next_event_s(self) -> float:
        """When the next flow starts, or the next last byte leaves; infinite when nothing is on its way."""
        return float(next_event(self._net, self._within))

    def add(self, flows: Flows, group_F: Int, n_groups: int) -> tuple[int, int]:
        """Make flows known; none starts yet. Returns the index of the first flow and of the first of the groups.

        Parameters
        ----------
        flows
            The flows of one exchange.
        group_F, n_groups
            The group of each flow, counted from 0; -1 for a flow that nobody waits for.

        Raises
        ------
        ValueError, TypeError
            The flows' arrays do not fit together, or a group is none of `n_groups`.
        """
        check_flows(flows, n_links=len(self._net.capacity_J))
        n_groups = index("n_groups", n_groups, most=MOST_GROUPS)
        group_F = whole_numbers("group_F", group_F, least=-1, most=n_groups - 1, shape=(flows.n,))
        child_offsets_F1, child_C = children(flows.parent_offsets_F1, flows.parent_R)
        offsets_F1, link_X, share_X = kept_pairs(flows.paths, self._bottleneck_J)
        parents_F = np.diff(flows.parent_offsets_F1)
        f, x, c, k, q = (self._sizes[axis] for axis in "FXCKQ")
        rows = min(len(link_X), len(self._net.capacity_J))
        self._sizes = {"F": f + flows.n, "X": x + len(link_X), "C": c + len(child_C), "K": k + n_groups, "Q": q + rows}
        self._net = net = with_room(self._net, self._sizes)
        flow_F, pair_X, group_K = net.flow_F[f : f + flows.n], net.on.pair_X[x:], net.group_K[k : k + n_groups]
        flow_F["bytes"], flow_F["latency"] = flows.bytes_F, flows.latency_F
        flow_F["feed_delay"], flow_F["feed_tail"] = flows.feed_delay_F, flows.feed_tail_F
        flow_F["group"] = np.where(group_F < 0, -1, group_F + k)
        flow_F["start"] = flow_F["end"] = -np.inf
        flow_F["unstarted"], flow_F["unended"] = parents_F, parents_F + 1
        pair_X["link"][: len(link_X)], pair_X["share"][: len(link_X)] = link_X, share_X
        net.on.offsets_F1[f : f + flows.n + 1] = offsets_F1 + x
        net.child_offsets_F1[f : f + flows.n + 1] = child_offsets_F1 + c
        net.child_C[c : c + len(child_C)] = child_C + f
        net.on.state_F[f : f + flows.n] = SETTLED
        net.rate_F[f : f + flows.n] = net.fair_F[f : f + flows.n] = 0.0
        self._sizes["Q"] = enlist(f, flows.n, q, net.on)
        join(f, flows.n, net.on, net.held_J, net.root_J, net.place_F)
        group_K["end"], group_K["open"] = -np.inf, np.bincount(group_F[group_F >= 0], minlength=n_groups)
        return f, k

    def start(self, first: int, flow_A: Int, at_A: Float) -> None:
        """Start parentless flows, counted from `first`, at their times; flows that they feed follow by themselves.

        Raises
        ------
        ValueError, TypeError
            Flows that are not there, that were started before or that others start, or a time that is not finite.
        """
        first = index("first", first, most=self._sizes["F"])
        check_axis("flow_A", flow_A, "i")
        check_axis("at_A", at_A, "fi")
        if len(flow_A) != len(at_A):
            raise ValueError(f"at_A: {len(at_A)} times for {len(flow_A)} flows")
        wrong = submit_all(self._net, first, self._sizes["F"], flow_A, at_A)
        if wrong >= 0:
            rule = "a flow that is there, that nothing has started and no other starts, and a finite time"
            raise ValueError(f"flow_A[{wrong}] = {flow_A[wrong]} at {at_A[wrong]:g} s: must be {rule}")
        self._next_event_s = min(self._next_event_s, at_A.min(initial=np.inf))

    def advance(self, until_s: float) -> list[tuple[int, float]]:
        """Move the clock to `until_s`, or less far: no further than the end of the first group that ends on the way.

        Returns the groups that became known to end, with their ends, none before the clock.

        Raises
        ------
        ValueError
            `until_s` is not a number.
        """
        if math.isnan(until_s):
            raise ValueError(f"until_s = {until_s}: must be a time")
        net = self._net
        if until_s <= self._next_event_s and until_s < np.inf:
            net.clock[0] = max(net.clock[0], until_s)
            return []
        self._next_event_s = advance(net, until_s, self._within)
        return [(int(k), float(net.group_K[k]["end"])) for k in net.ended_K[: net.counts[ENDED]]]

    def times(self, first: int, n: int) -> tuple[Float, Float]:
        """Start and end of `n` flows, counted from `first`; infinite where it is not known yet.

        Raises
        ------
        ValueError, TypeError
            There are not so many.
        """
        self._check_run(first, n)
        flow_F = self._net.flow_F[first : first + n]
        unknown_F = (flow_F["unstarted"] > 0) | (flow_F["start"] == -np.inf)
        start_F = np.where(unknown_F, np.inf, flow_F["start"])
        return start_F, np.where(flow_F["unended"] > 0, np.inf, flow_F["end"])

    def rates(self, first: int, n: int) -> Float:
        """Rates of `n` flows, counted from `first`, from now to the next event; 0 for one that is not in transit.

        Raises
        ------
        ValueError, TypeError
            There are not so many.
        """
        self._check_run(first, n)
        next_event(self._net, self._within)
        return self._net.rate_F[first : first + n].copy()

    def _check_run(self, first: int, n: int) -> None:
        first = index("first", first, most=self._sizes["F"])
        index("n", n, most=self._sizes["F"] - first)


def deliver(flows: Flows, start_F: Float, capacity_J: Float, *, tolerance: float = 0.0) -> Float:
    """When each of a closed set of flows ends [F], if the parentless ones start at `start_F`.

    The entries of `start_F` for fed flows are not read: their parents start them.

    Raises
    ------
    ValueError, TypeError
        The flows' arrays do not fit together, or a start is not finite.
    """
    network = OpenFluid(capacity_J, tolerance=tolerance)
    first, _ = network.add(flows, np.full(flows.n, -1), 0)
    roots = np.flatnonzero(np.diff(flows.parent_offsets_F1) == 0)
    start_F = np.asarray(start_F)
    if start_F.shape != (flows.n,):
        raise ValueError(f"start_F: shape {list(start_F.shape)}, must be [{flows.n}]")
    network.start(first, roots, start_F[roots])
    network.advance(np.inf)
    return network.times(first, flows.n)[1]
