"""The critical path of a step: what its last rank was doing, and before that whoever it waited for, back to the start.

Found from the times of any rung. A rank that leaves an exchange waited there, last of all, for the
peer that entered last: from that moment on the exchange is on the path, and before it what that
peer did. (Which flow ended last is not kept: where an earlier peer's bytes took longer, the path
goes through the exchange all the same, but then through the later peer.) So parts follow each other
without a gap, their seconds add up to the step, and none of them is waiting: time in which a rank
waits is what the one that it waits for spends.

Under ``bound`` some time is of no rank that is known; it is the exchange's from which it was left
over.

Source of the idea: the critical path method (Kelley and Walker, 1959); for parallel programs Böhme
et al., "Scalable critical-path based performance analysis", IPDPS 2012. Axes: S task, G rank, R
rank of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moecast.sim.program import BREAKDOWN_PARTS, Compute, Int, StepProgram, StepTimes

NO_RANK = -1
"""The rank of time that is of none that is known."""
_SLACK = 1e-12  # of a step: two times that near are one


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPart:
    """One task's time on the path, as one rank spends it (`NO_RANK` where none is known)."""

    task: int
    rank: int
    begin_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end_s - self.begin_s


def critical_path(program: StepProgram, times: StepTimes, peer_S: Sequence[Int | None]) -> tuple[PathPart, ...]:
    """Follow the step back from its end; parts in the order of time.

    Parameters
    ----------
    peer_S
        Of each exchange, who of those that each of its ranks [R] waits for enters last
        (`IdleTimes.peer_S`).
    """
    walk = _Walk(program, times, peer_S)
    return tuple(reversed([part for part in walk.back() if part.end_s > part.begin_s]))


def path_seconds(program: StepProgram, path: Sequence[PathPart]) -> dict[str, float]:
    """Seconds of the path by part of the breakdown; none of it is idle."""
    seconds = dict.fromkeys(BREAKDOWN_PARTS, 0.0)
    for part in path:
        seconds[program.tasks[part.task].kind] += part.seconds
    return seconds


class _Walk:
    """A way back through a program."""

    def __init__(self, program: StepProgram, times: StepTimes, peer_S: Sequence[Int | None]) -> None:
        self._program, self._times, self._peer_S = program, times, peer_S
        self._slack_s = _SLACK * times.step_time_s
        self._places: dict[int, Int] = {}

    def back(self) -> Iterator[PathPart]:
        """Yield the parts, the last first."""
        task, leave_S = int(self._times.last_S.argmax()), self._times.leave_S
        at = int(leave_S[task].argmax())
        left_s = float(leave_S[task][at])
        yield PathPart(task=task, rank=NO_RANK, begin_s=left_s, end_s=self._times.step_time_s)
        while True:
            at, begin_s = self._entry(task, at)
            yield PathPart(task=task, rank=self._rank(task, at), begin_s=begin_s, end_s=left_s)
            before = self._before(task, at)
            left_s = 0.0 if before is None else float(leave_S[before[0]][before[1]])
            if left_s < begin_s - self._slack_s:
                blamed = task if before is None else before[0]
                yield PathPart(task=blamed, rank=NO_RANK, begin_s=left_s, end_s=begin_s)
            left_s = min(left_s, begin_s)
            if before is None:
                return
            task, at = before

    def _entry(self, task: int, at: int) -> tuple[int, float]:
        """Whose entry a rank's leave goes back to, and when that was."""
        enter_R, peer_R = self._times.enter_S[task], self._peer_S[task]
        if peer_R is None or isinstance(self._program.tasks[task], Compute):
            return at, float(enter_R[at])
        peer = int(peer_R[at])
        if enter_R[at] < enter_R[peer] <= self._times.leave_S[task][at]:
            return peer, float(enter_R[peer])
        return at, float(enter_R[at])

    def _before(self, task: int, at: int) -> tuple[int, int] | None:
        """The task, and the place of a rank in it, that was over last of those that a rank waited for to enter one."""
        before = list(self._waited_for(task, self._rank(task, at)))
        return max(before, key=lambda stay: (self._times.leave_S[stay[0]][stay[1]], stay[0]), default=None)

    def _waited_for(self, task: int, rank: int) -> Iterator[tuple[int, int]]:
        asked = self._program.tasks[task]
        for before in asked.after:
            if (place := self._place(before, rank)) >= 0:
                yield before, place
        for before in asked.after_all:
            if len(self._times.leave_S[before]):
                yield before, int(self._times.leave_S[before].argmax())
        if asked.stream is None:
            return
        for before in range(task - 1, -1, -1):
            same = self._program.tasks[before].stream == asked.stream
            if same and (place := self._place(before, rank)) >= 0:
                yield before, place
                return

    def _rank(self, task: int, at: int) -> int:
        ranks_R = self._program.tasks[task].ranks_R
        return at if ranks_R is None else int(ranks_R[at])

    def _place(self, task: int, rank: int) -> int:
        """Where a rank stands among a task's; -1 where it takes no part."""
        ranks_R = self._program.tasks[task].ranks_R
        if ranks_R is None:
            return rank
        if id(ranks_R) not in self._places:
            place_G = np.full(self._program.n_ranks, -1, np.int64)
            place_G[ranks_R] = np.arange(len(ranks_R))
            self._places[id(ranks_R)] = place_G
        return int(self._places[id(ranks_R)][rank])
