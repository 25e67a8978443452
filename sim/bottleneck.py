"""What a step's time goes to, by name.

The last rank to leave a stage carries the step: the time by which it leaves later than the last rank left the stage
before is what the stage adds, and these additions sum to the step time. They are collected under

- "expert compute on rank 7", "attention on rank 0", ...: by kind, named after the rank that is last most of the time;
- "link node0/nic0->leaf0 (nic-out)": all dispatches, combines and other exchanges, when their fullest links alone need
  at least half of what they add; named after the link that is fullest for most of that time;
- "fixed costs of communication": the same when launches, count exchanges, messages and latencies outweigh the links.

The largest collection is the bottleneck.

Axes: S stage, G rank, J link.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.program import Compute, Exchange, Flows, StepProgram, StepTimes

Float = npt.NDArray[np.float64]

_COMPUTE_NAMES = {"expert": "expert compute", "attention": "attention", "router": "router", "other": "other compute"}
BANDWIDTH_BOUND = 0.5


class Bottleneck:
    """Adds up where the time of several steps goes."""

    def __init__(self, link_kind_J: tuple[str, ...]) -> None:
        self._link_kind_J = link_kind_J
        self._compute: dict[str, Float] = {}
        self._communication_s = 0.0
        self._full_J = np.zeros(0)
        self._total_s = 0.0
        self._link_names_J: tuple[str, ...] = ()

    def add(self, program: StepProgram, times: StepTimes) -> None:
        """Take in a step."""
        if not self._link_names_J:
            self._link_names_J, self._full_J = program.link_names_J, np.zeros(len(program.capacity_J))
        last_S = times.leave_SG.max(axis=1)
        added_S = np.diff(last_S, prepend=0.0)
        self._total_s += times.step_time_s
        for index, stage in enumerate(program.stages):
            if isinstance(stage, Compute):
                by_rank_G = self._compute.setdefault(stage.kind, np.zeros(program.n_ranks))
                by_rank_G[int(np.argmax(times.leave_SG[index]))] += added_S[index]
            else:
                self._communication_s += float(added_S[index])
                self._add_fullest(stage, program.capacity_J)

    def name(self) -> tuple[str, float]:
        """Name the largest collection, and its part of the time."""
        parts = {
            f"{_COMPUTE_NAMES[kind]} on rank {int(np.argmax(by_rank_G))}": float(by_rank_G.sum())
            for kind, by_rank_G in self._compute.items()
        }
        parts[self._communication()] = self._communication_s
        largest = max(parts, key=lambda part: parts[part])
        return largest, float(parts[largest] / self._total_s) if self._total_s else 0.0

    def _add_fullest(self, exchange: Exchange, capacity_J: Float) -> None:
        busy_J = link_load(exchange.flows, len(capacity_J)) / capacity_J
        fullest = int(np.argmax(busy_J))
        self._full_J[fullest] += busy_J[fullest]

    def _communication(self) -> str:
        if self._full_J.sum() < BANDWIDTH_BOUND * self._communication_s or not self._full_J.any():
            return "fixed costs of communication"
        fullest = int(np.argmax(self._full_J))
        return f"link {self._link_names_J[fullest]} ({self._link_kind_J[fullest]})"


def link_load(flows: Flows, n_links: int) -> Float:
    """Units that the flows put on each link."""
    units_X = np.repeat(flows.bytes_F, np.diff(flows.offsets_F1)) * flows.share_X
    return np.bincount(flows.link_X, units_X, n_links).astype(np.float64)
