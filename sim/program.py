"""A step as a program: a graph of tasks on streams, what each rank computes and which bytes it waits for.

Every network rung runs the same program, so a time from one can be laid beside a time from another:
``bound`` as a recursion over the tasks in their order, ``fluid`` as SimPy processes that share
links.

Axes: S task, G rank of the program, R rank of a task, F flow, X (flow, link) pair, P (flow, parent)
pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

Kind = Literal["attention", "router", "dispatch", "expert", "combine", "other"]
BREAKDOWN_PARTS: tuple[str, ...] = (*get_args(Kind), "idle")

COMPUTE, COMMUNICATION = "compute", "communication"
"""The streams of most schedules."""

CONTEXT = "context"
"""The stream of what ranks that share sequences send each other beside attention."""

HOST = "host"
"""The stream of what hosts do: no GPU computes or sends meanwhile, so it has no part in a breakdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfRanks:
    """Where a task stands: whose it is, on which stream, and what it waits for.

    Parameters
    ----------
    kind
        Its part of the breakdown.
    layer
        Index among the MoE layers; −1 for work outside them.
    ranks_R
        The ranks that take part; None: all of the program, in order.
    stream
        Tasks of one stream run one after another on each rank, in the program's order. None: on no
        stream; it waits for nothing but `after` and `after_all`.
    after
        Earlier tasks, by their place in the program. A rank waits until it has done its own part of
        each; one that takes no part in such a task does not wait for it.
    after_all
        Earlier tasks that all their ranks must have done.
    microbatch
        −1 where there are none.
    behind
        Of a task that no schedule has laid yet: how far before it, in the list in which it comes,
        those stand that it waits for. None: it waits for what a schedule says, which is the one
        before.
    """

    kind: Kind
    layer: int
    ranks_R: Int32 | None = None
    stream: str | None = COMPUTE
    after: tuple[int, ...] = ()
    after_all: tuple[int, ...] = ()
    microbatch: int = -1
    behind: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute(OfRanks):
    """Work that each rank does by itself: `seconds_R` of it."""

    seconds_R: Float

    @property
    def n_ranks(self) -> int:
        """R."""
        return len(self.seconds_R)


class Sizes(NamedTuple):
    """What one exchange adds to flows that it shares with others [F].

    Parameters
    ----------
    bytes_F
        −1 where it has no such flow.
    waiter_F, feed_delay_F, feed_tail_F
        As of `Flows`.
    """

    bytes_F: Float
    waiter_F: Int32
    feed_delay_F: Float
    feed_tail_F: Float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """The flows of one exchange, with the links they use; ranks are counted among the exchange's.

    A flow of `bytes_F` bytes takes ``rate · share_X`` of each of its links. A *fed* flow (the
    second leg of a relay) has parents: it starts ``feed_delay_F`` after the last of them has
    started, and ends no sooner than ``feed_tail_F`` after the last of them has ended. A flow
    without parents starts when its `source_rank_F` enters the exchange.
    """

    bytes_F: Float
    source_rank_F: Int32  # the rank that starts it; for fed flows, the relay
    destination_rank_F: Int32
    waiter_F: Int32  # the rank that waits for its end; −1: nobody but the flows it feeds
    offsets_F1: Int  # CSR of its links
    link_X: Int32
    share_X: Float  # link units per byte: 1, 1/n when sprayed, seconds per byte on an issue link
    latency_F: Float  # seconds from the last byte's departure to its arrival
    parent_offsets_F1: Int  # CSR of the flows that feed it
    parent_R: Int32
    feed_delay_F: Float
    feed_tail_F: Float

    @property
    def n(self) -> int:
        """How many flows."""
        return len(self.bytes_F)

    @property
    def paths(self) -> tuple[Int, Int32, Float]:
        """The links of each flow as a CSR."""
        return self.offsets_F1, self.link_X, self.share_X

    @property
    def most(self) -> int:
        """How many flows there are at the most."""
        return self.n

    def fill(self) -> Flows:
        """Give the flows themselves."""
        return self

    def sized(self) -> tuple[Flows, Sizes]:
        """Give the flows themselves, and their own sizes."""
        return self, Sizes(self.bytes_F, self.waiter_F, self.feed_delay_F, self.feed_tail_F)


class FlowSource(Protocol):
    """What gives an exchange its flows when it is run: `Flows`, or a template with this exchange's counts."""

    @property
    def most(self) -> int:
        """How many flows there are at the most."""

    def fill(self) -> Flows:
        """Give the flows."""

    def sized(self) -> tuple[Flows, Sizes]:
        """Give flows, the same object for all exchanges that may share what follows from them, and what it has of them.

        A flow that is fed has a parent in every exchange that has it.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange(OfRanks):
    """Bytes that ranks send each other.

    A rank enters when its stream and the tasks it waits for let it, waits `setup_s`, starts its
    flows, and leaves when every flow it waits for has ended. With `barrier`, no flow starts before
    the last rank of its group has entered, and nobody leaves before the group's last flow has
    ended.

    Parameters
    ----------
    flows
        Its flows, or what they are made of; see `fill`.
    group_R
        The EP group of each rank (or whatever group waits for its own), counted from 0.
    """

    flows: FlowSource
    setup_s: float
    barrier: bool
    group_R: Int32

    @property
    def n_ranks(self) -> int:
        """R."""
        return len(self.group_R)

    def fill(self) -> Flows:
        """Give its flows; where they come from a template they are made now, and not kept."""
        return self.flows.fill()


Task = Compute | Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgram:
    """One step: its tasks, in an order in which each stands behind all that it waits for.

    `capacity_J` has the cluster's links first, then two issue links for each GPU, for its copies
    over NVLink and over its NIC: what the sender's time is taken by (one second per second).

    `narrowest_J` tells for each link on which one its flows stand: links in a row, such as a GPU's
    PCIe and its NIC or the uplinks that a leaf sprays over, carry the same flows, and only the
    narrowest is in the flows' paths. None: each link stands for itself.
    """

    tasks: tuple[Task, ...]
    n_ranks: int
    capacity_J: Float
    link_names_J: tuple[str, ...]
    narrowest_J: Int | None = None

    @property
    def is_sequence(self) -> bool:
        """Whether every rank goes through every task, one after another on one stream."""
        first = self.tasks[0].stream
        return first is not None and all(
            task.stream == first and task.ranks_R is None and not task.after_all for task in self.tasks
        )

    @property
    def streams(self) -> tuple[str | None, ...]:
        """The streams that tasks stand on, in the order of their first tasks."""
        return tuple(dict.fromkeys(task.stream for task in self.tasks))

    @property
    def exchanges(self) -> Iterator[Exchange]:
        """The tasks that are exchanges."""
        return (task for task in self.tasks if isinstance(task, Exchange))

    def ranks_of(self, task: Task) -> Int32:
        """The ranks that take part in a task [R]."""
        return np.arange(self.n_ranks, dtype=np.int32) if task.ranks_R is None else task.ranks_R

    def on_every_link(self, units_J: Float) -> Float:
        """What each link carries [J], from what stands on those in the flows' paths."""
        return units_J if self.narrowest_J is None else units_J[self.narrowest_J]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """When each rank entered and left each task, in seconds from the step's start.

    Parameters
    ----------
    enter_S, leave_S, busy_S
        For each task an array [R] over its ranks. Busy is the part of an exchange during which one
        of the rank's own flows (in or out) was moving, or its setup ran; what the rest is,
        `moecast.sim.breakdown` says. Of a Compute it is all the time it took.
    link_bytes_J
        Units carried by each link over the step.
    floor_S
        No task's last leave is earlier, where that is known of no single rank (``bound``).
    """

    enter_S: Sequence[Float]
    leave_S: Sequence[Float]
    busy_S: Sequence[Float]
    link_bytes_J: Float
    floor_S: Float | None = None
    _last_S: list[Float] = field(default_factory=list, init=False, repr=False)

    @property
    def enter_SG(self) -> Float:
        """Where every rank takes part in every task: when each entered each."""
        return np.stack(self.enter_S)

    @property
    def leave_SG(self) -> Float:
        """Where every rank takes part in every task: when each left each."""
        return np.stack(self.leave_S)

    @property
    def busy_SG(self) -> Float:
        """Where every rank takes part in every task: how long each was busy in each."""
        return np.stack(self.busy_S)

    @property
    def last_S(self) -> Float:
        """When the last rank leaves each task; found once, as programs have hundreds of thousands."""
        if not self._last_S:
            latest_S = np.array([leave_R.max(initial=0.0) for leave_R in self.leave_S])
            self._last_S.append(latest_S if self.floor_S is None else np.maximum(latest_S, self.floor_S))
        return self._last_S[0]

    @property
    def step_time_s(self) -> float:
        """When the last rank is done with everything."""
        return float(self.last_S.max())
