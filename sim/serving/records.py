"""What a run writes down: when each request came, was begun, began to answer and ended, gaps, and state over time.

Axes: Q request, in the order of ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim.serving.gaps import Gaps
from moecast.sim.serving.history import VALUES, History
from moecast.sim.serving.iteration_log import IterationLog
from moecast.sim.serving.step_times import StepsByBatch

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class PoolTimes:
    """What a pool's instances did, in seconds added up over them.

    Parameters
    ----------
    iterations
        How many.
    prompt_tokens, output_tokens, decode_tokens
        Computed and given in all.
    preemptions, swapped_blocks
        How often, and how much.
    refused_for_seats, refused_for_blocks
        How often a prompt that was computed elsewhere was told to wait, by what was in the way.
    kv_peak
        The most blocks that a rank held.
    history, steps
        State over time, and how long iterations took by their batch.
    log
        Iterations one by one, where a picture of them is wanted.
    """

    iterations: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    swapped_blocks: int = 0
    refused_for_seats: int = 0
    refused_for_blocks: int = 0
    kv_peak: int = 0
    history: History = field(default_factory=History)
    steps: StepsByBatch = field(default_factory=StepsByBatch)
    log: IterationLog | None = None

    def seconds(self) -> dict[str, float]:
        """Sums over the run of what `VALUES` names: seconds of instances by what they did and who waited for what."""
        return dict(zip(VALUES, self.history.total_V.tolist(), strict=True))


class Records:
    """Times of requests, and gaps between tokens.

    Parameters
    ----------
    requests
        Q; ids are 0 to Q - 1.
    ramp
        How many requests are sent before the run is steady; those of a closed loop's first round.
    """

    def __init__(self, requests: int, *, ramp: int = 0) -> None:
        self.arrival_Q = np.full(requests, np.nan)
        self.started_Q = np.full(requests, np.nan)
        self.first_Q = np.full(requests, np.nan)
        self.end_Q = np.full(requests, np.nan)
        self.last_Q = np.full(requests, np.nan)
        self.preempted_Q = np.zeros(requests, np.int64)
        self.gaps = Gaps()
        self.in_system = 0
        self.in_system_s = 0.0
        self.now_s = 0.0
        self.come = 0
        self.ended = 0
        self.steady_tokens = [0, 0]
        self.steady_s = [0.0, 0.0]
        self._ramp, self._requests = ramp, requests

    @property
    def steady(self) -> bool:
        """Whether neither ramp nor drain: the first round has begun to end, and there are requests to be sent."""
        return self.ended > 0 and self.come < self._requests if self._ramp else True

    def move(self, now_s: float) -> None:
        """Let time go on, and count who is in the system meanwhile."""
        self.in_system_s += self.in_system * (now_s - self.now_s)
        if self.steady:
            self.steady_s[1] += now_s - self.now_s
        self.now_s = now_s

    def arrived(self, request_id: int, arrival_s: float) -> None:
        """A request came."""
        self.arrival_Q[request_id] = arrival_s
        self.in_system += 1
        self.in_system_s += self.now_s - arrival_s  # what came while the loop looked elsewhere
        self.come += 1

    def started(self, ids: Int, now_s: float) -> None:
        """Requests are in an iteration that begins: of those that were in none before, when that was."""
        fresh_R = np.isnan(self.started_Q[ids])
        if fresh_R.any():
            self.started_Q[ids[fresh_R]] = now_s

    def finished(self, request_id: int, end_s: float) -> None:
        """A request has all its tokens."""
        self.end_Q[request_id] = end_s
        self.in_system -= 1
        self.ended += 1

    def given(self, ids: Int, end_s: float) -> None:
        """Requests were given a token each."""
        last_R = self.last_Q[ids]
        fresh_R = np.isnan(last_R)
        if fresh_R.any():
            first = ids[fresh_R & np.isnan(self.first_Q[ids])]
            self.first_Q[first] = end_s
        if self.steady:
            self.gaps.add((end_s - last_R)[~fresh_R])
            self.steady_tokens[1] += len(ids)
        self.last_Q[ids] = end_s

    def given_alike(self, durations_W: Float, each: int) -> None:
        """In each of several iterations, so many running requests were given a token one iteration after their last."""
        if self.steady and each:
            self.gaps.add(durations_W, each)
            self.steady_tokens[1] += each * len(durations_W)
