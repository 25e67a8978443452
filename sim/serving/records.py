"""What a run writes down: when each request came, began to answer and ended, gaps between tokens, and state over time.

Axes: Q request, in the order of ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim.serving.gaps import Gaps

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MOST_SAMPLES = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The state of a pool at one time: requests that run and wait, and the part of the KV cache that is used."""

    time_s: float
    running: int
    waiting: int
    kv_used: float


@dataclass(slots=True, kw_only=True)
class PoolTimes:
    """What a pool's instances did, in seconds added up over them.

    Parameters
    ----------
    prompt_s, decode_s
        Iterations with tokens of prompts, and those without.
    iterations
        How many.
    kv_wait_s, seat_wait_s, prompt_wait_s
        Seconds during which someone waited to be admitted, by what was in the way: blocks, sequences, earlier prompts.
    prompt_tokens, output_tokens, decode_tokens
        Computed and given in all.
    preemptions, swapped_blocks
        How often, and how much.
    refused_for_seats, refused_for_blocks
        How often a prompt that was computed elsewhere was told to wait, by what was in the way.
    kv_peak
        The most blocks that a rank held.
    samples, every_s
        State over time, about this far apart.
    """

    prompt_s: float = 0.0
    decode_s: float = 0.0
    iterations: int = 0
    kv_wait_s: float = 0.0
    seat_wait_s: float = 0.0
    prompt_wait_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    swapped_blocks: int = 0
    refused_for_seats: int = 0
    refused_for_blocks: int = 0
    kv_peak: int = 0
    samples: list[Sample] = field(default_factory=list)
    every_s: float = 0.0

    def wants_sample(self, now_s: float) -> bool:
        """Whether it is time to look again."""
        return not self.samples or now_s >= self.samples[-1].time_s + self.every_s

    def add_sample(self, sample: Sample) -> None:
        """Keep a sample; of too many, every other one."""
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:
            self.samples = self.samples[::2]
            self.every_s = (self.samples[-1].time_s - self.samples[0].time_s) / len(self.samples)


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
