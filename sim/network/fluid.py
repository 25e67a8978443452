"""The fluid rung: bytes flow like water, and the flows on a link share it max-min fairly.

Axes: F flow, J link, X (flow, link) pair, K group of flows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moecast.sim.engine import run_program
from moecast.sim.network.events import ENDED, UNEVEN, Net, advance, next_event, submit_all
from moecast.sim.network.flows import check_flows, check_program, feeding
from moecast.sim.network.links import kept_pairs, parallel_links
from moecast.sim.network.maxmin import new_chains, new_filling
from moecast.sim.program import Float, Flows, Int, StepProgram, StepTimes

_FLOW = ("bytes_F", "latency_F", "delay_F", "tail_F", "group_F", "start_F", "end_F", "unstarted_F", "unended_F",
         "left_F", "since_F", "rate_F", "fair_F", "last_F", "transit_A", "time_H", "pending_H")  # fmt: skip
_PAIR = ("link_X", "share_X")
_OFFSETS = ("offsets_F1", "child_offsets_F1")
_CHILD = ("child_C", "stack_F")
_GROUP = ("open_K", "end_K", "ended_K")


class Fluid:
    """Flows that share links max-min fairly, event by event, while SimPy moves the ranks from stage to stage.

    The ranks drift apart, so that exchanges of different stages overlap; all of a step's flows are in one network.
    """

    name = "fluid"

    def run(self, program: StepProgram) -> StepTimes:
        """When each rank enters and leaves each stage.

        Raises
        ------
        ValueError
            The program's arrays do not fit together.
        """
        check_program(program)
        return run_program(program, OpenFluid(program.capacity_J, bottleneck_J=parallel_links(program)))


class OpenFluid:
    """A network that flows join at any time, and that tells when the last flow of a group will have ended.

    Parameters
    ----------
    capacity_J
        What each link carries in a second.
    bottleneck_J
        For each link one that carries the same flows with the same shares and is no faster (`parallel_links`);
        only those are followed. None: follow all.
    """

    def __init__(self, capacity_J: Float, *, bottleneck_J: Int | None = None) -> None:
        self._net = _empty(np.asarray(capacity_J, np.float64))
        self._flows = self._pairs = self._children = self._groups = 0
        self._keep_J = np.ones(len(capacity_J), np.bool_)
        if bottleneck_J is not None:
            self._keep_J = bottleneck_J == np.arange(len(capacity_J))

    @property
    def clock_s(self) -> float:
        """The time up to which everything has been worked out."""
        return float(self._net.clock[0])

    @property
    def next_event_s(self) -> float:
        """When the next flow starts, or the next last byte leaves; infinite when nothing is on its way."""
        return float(next_event(self._net))

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
        ValueError
            The flows' arrays do not fit together.
        """
        check_flows(flows, n_links=len(self._net.capacity_J))
        fed = feeding(flows)
        offsets_F1, link_X, share_X = kept_pairs(flows.offsets_F1, flows.link_X, flows.share_X, self._keep_J)
        first, pair, child, group = self._flows, self._pairs, self._children, self._groups
        self._flows, self._pairs = first + flows.n, pair + len(link_X)
        self._children, self._groups = child + len(fed.child_C), group + n_groups
        self._make_room()
        net, parents_F = self._net, np.diff(flows.parent_offsets_F1)
        mine = slice(first, self._flows)
        net.bytes_F[mine], net.latency_F[mine] = flows.bytes_F, flows.latency_F
        net.delay_F[mine], net.tail_F[mine] = flows.feed_delay_F, flows.feed_tail_F
        net.group_F[mine] = np.where(group_F < 0, -1, group_F + group)
        net.start_F[mine], net.end_F[mine] = -np.inf, -np.inf
        net.unstarted_F[mine], net.unended_F[mine] = parents_F, parents_F + 1
        net.left_F[mine], net.rate_F[mine], net.last_F[mine] = flows.bytes_F, 0.0, np.inf
        net.offsets_F1[first : self._flows + 1] = offsets_F1 + pair
        net.link_X[pair : self._pairs], net.share_X[pair : self._pairs] = link_X, share_X
        net.child_offsets_F1[first : self._flows + 1] = fed.child_offsets_F1 + child
        net.child_C[child : self._children] = fed.child_C + first
        net.open_K[group : self._groups] = np.bincount(group_F[group_F >= 0], minlength=n_groups)
        net.end_K[group : self._groups] = -np.inf
        return first, group

    def start(self, first: int, flow_A: Int, at_A: Float) -> None:
        """Start parentless flows, counted from `first`, at their times; flows that they feed follow by themselves."""
        submit_all(self._net, first, flow_A, at_A)

    def advance(self, until_s: float) -> list[tuple[int, float]]:
        """Move the clock to `until_s`, or less far: no further than the end of the first group that ends on the way.

        Returns the groups that became known to end, with their ends, none before the clock.
        """
        advance(self._net, until_s)
        return [(int(k), float(self._net.end_K[k])) for k in self._net.ended_K[: self._net.counts[ENDED]]]

    def times(self, first: int, n: int) -> tuple[Float, Float]:
        """Start and end of `n` flows, counted from `first`; infinite where it is not known yet."""
        net = self._net
        start_F, end_F = net.start_F[first : first + n].copy(), net.end_F[first : first + n].copy()
        start_F[net.unstarted_F[first : first + n] > 0] = np.inf
        end_F[net.unended_F[first : first + n] > 0] = np.inf
        return start_F, end_F

    def rates(self, first: int, n: int) -> Float:
        """Rates of `n` flows, counted from `first`, from now to the next event; 0 for one that is not in transit."""
        next_event(self._net)
        return self._net.rate_F[first : first + n].copy()

    def _make_room(self) -> None:
        room = dict.fromkeys(_FLOW, self._flows) | dict.fromkeys(_OFFSETS, self._flows + 1)
        room |= dict.fromkeys(_PAIR, self._pairs) | dict.fromkeys(_CHILD, self._children + 1)
        room |= dict.fromkeys(_GROUP, self._groups)
        grown: dict[str, Any] = {name: _grown(getattr(self._net, name), size) for name, size in room.items()}
        old = self._net.chains
        chains = old._replace(**{
            name: _grown(getattr(old, name), self._pairs) for name in ("next_X", "previous_X", "flow_X")
        })  # fmt: skip
        self._net = self._net._replace(chains=chains, **grown)


def deliver(flows: Flows, start_F: Float, capacity_J: Float) -> Float:
    """When each of a closed set of flows ends [F], if the parentless ones start at `start_F`.

    The entries of `start_F` for fed flows are not read: their parents start them.

    Raises
    ------
    ValueError
        The flows' arrays do not fit together.
    """
    network = OpenFluid(capacity_J)
    first, _ = network.add(flows, np.full(flows.n, -1), 0)
    roots = np.flatnonzero(np.diff(flows.parent_offsets_F1) == 0)
    network.start(first, roots, np.asarray(start_F, np.float64)[roots])
    network.advance(np.inf)
    return network.times(first, flows.n)[1]


def _empty(capacity_J: Float) -> Net:
    whole = {
        "group_F",
        "unstarted_F",
        "unended_F",
        "transit_A",
        "pending_H",
        *_OFFSETS,
        *_CHILD,
        "open_K",
        "ended_K",
    }
    names = (*_FLOW, *_PAIR, *_OFFSETS, *_CHILD, *_GROUP)
    fields: dict[str, Any] = {name: np.zeros(1, np.int64 if name in whole else np.float64) for name in names}
    fields["link_X"] = np.zeros(1, np.int32)
    return Net(
        capacity_J=capacity_J, chains=new_chains(len(capacity_J), 1), filling=new_filling(len(capacity_J)),
        counts=np.zeros(UNEVEN + 1, np.int64), clock=np.zeros(1), **fields,
    )  # fmt: skip


def _grown(array: Any, size: int) -> Any:
    if size <= len(array):
        return array
    bigger = np.empty(max(size, 2 * len(array)), array.dtype)
    bigger[: len(array)] = array
    return bigger
