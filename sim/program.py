"""A forward pass as a program: what each rank computes and which bytes it waits for, stage by stage.

Every network rung runs the same program, so a time from one can be laid beside a time from another: ``bound`` as a
vectorised recursion over the stages, ``fluid`` as SimPy processes that share links.

Axes: G rank, F flow, X (flow, link) pair, R (flow, parent) pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

Kind = Literal["attention", "router", "dispatch", "expert", "combine", "other"]
BREAKDOWN_PARTS: tuple[str, ...] = (*get_args(Kind), "idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Work that each rank does by itself: `seconds_G` of it, `kind` names its part of the breakdown."""

    kind: Kind
    layer: int  # index among the MoE layers; −1 for work outside them
    seconds_G: Float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """The flows of one exchange, with the links they use.

    A flow of `bytes_F` bytes takes ``rate · share_X`` of each of its links. A *fed* flow (the second leg of a relay)
    has parents: it starts ``feed_delay_F`` after the last of them has started, and ends no sooner than ``feed_tail_F``
    after the last of them has ended. A flow without parents starts when its `source_rank_F` enters the exchange.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Bytes that ranks send each other.

    A rank enters, waits `setup_s`, starts its flows, and leaves when every flow it waits for has ended. With `barrier`,
    no flow starts before the last rank of its EP group has entered, and nobody leaves before the group's last flow has
    ended.
    """

    kind: Kind
    layer: int
    flows: Flows
    setup_s: float
    barrier: bool
    group_G: Int32  # EP group of each rank


Stage = Compute | Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgram:
    """One forward pass: the stages in the order in which every rank goes through them.

    `capacity_J` has the cluster's links first, then two issue links for each GPU, for its copies over NVLink and over
    its NIC: what the sender's time is taken by (one second per second).

    `narrowest_J` tells for each link on which one its flows stand: links in a row, such as a GPU's PCIe and its NIC or
    the uplinks that a leaf sprays over, carry the same flows, and only the narrowest is in the flows' paths. None: each
    link stands for itself.
    """

    stages: tuple[Stage, ...]
    n_ranks: int
    capacity_J: Float
    link_names_J: tuple[str, ...]
    narrowest_J: Int | None = None

    def on_every_link(self, units_J: Float) -> Float:
        """What each link carries [J], from what stands on those in the flows' paths."""
        return units_J if self.narrowest_J is None else units_J[self.narrowest_J]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """When each rank entered and left each stage, in seconds from the step's start.

    `busy_SG` is the part of an exchange during which one of the rank's own flows (in or out) was moving, or its setup
    ran; what the rest is, `moecast.sim.breakdown` says. For a Compute stage it is the stage's seconds. S here: stage.
    """

    enter_SG: Float
    leave_SG: Float
    busy_SG: Float
    link_bytes_J: Float  # units carried by each link over the step
    floor_S: Float | None = None  # no stage's last leave is earlier, where that is known of no single rank (`bound`)

    @property
    def last_S(self) -> Float:
        """When the last rank leaves each stage."""
        latest_S = self.leave_SG.max(axis=1)
        return np.asarray(latest_S if self.floor_S is None else np.maximum(latest_S, self.floor_S))

    @property
    def step_time_s(self) -> float:
        """When the last rank is done."""
        return float(self.last_S[-1])
