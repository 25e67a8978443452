"""What is seen of an instance while it runs: who is in flight, who waits and for what, blocks in use.

Axes: G DP rank, W iteration, N number of a rank (`cost.step_load`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moecast.sim.serving.batchers import Batcher, Limits
from moecast.sim.serving.iteration_log import Logged
from moecast.sim.serving.records import PoolTimes

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Watch:
    """Notes on the iterations of one instance.

    Parameters
    ----------
    number
        The instance's place in its pool.
    ranks
        G.
    limits
        Of each rank, to say what stands in the way of who waits.
    times
        Of the pool: where notes are added up.
    """

    def __init__(self, number: int, ranks: int, limits: Limits, times: PoolTimes) -> None:
        self._number, self._limits, self._times = number, limits, times
        self._here_G, self._waiting_G = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
        self._used_G = np.zeros(ranks)

    def came(self, rank: int, batcher: Batcher, come_s: float, now_s: float) -> None:
        """Someone who came some time ago is handed to a rank's scheduler now."""
        self._here_G[rank] += 1
        self._waiting_G[rank] = batcher.waiting
        if now_s > come_s:
            self._times.history.add(come_s, now_s, (0.0, now_s - come_s, *(0.0,) * 9))

    def left(self, rank: int, batcher: Batcher, ended: int) -> None:
        """A rank's iteration is over, and so many of its requests are at an end."""
        self._here_G[rank] -= ended
        self._waiting_G[rank], self._used_G[rank] = batcher.waiting, batcher.kv_blocks_used

    def looked(self, rank: int, batcher: Batcher) -> None:
        """A rank's scheduler has decided an iteration."""
        used = batcher.kv_blocks_used
        self._waiting_G[rank], self._used_G[rank] = batcher.waiting, used
        self._times.kv_peak = max(self._times.kv_peak, used)

    def went_by(self, start_s: float, ends_W: Float, numbers_NG: Int, asked: list[int], output_tokens: int) -> None:
        """Iterations are at an end, in which so many tokens were given; ranks that were not asked just decoded."""
        steps, took_s = len(ends_W), float(ends_W[-1]) - start_s
        durations_W = np.diff(ends_W, prepend=start_s)
        growth_G = numbers_NG[3] * (steps / self._limits.block_tokens)
        growth_G[asked] = 0.0
        held = float((self._used_G + growth_G / 2).sum()) / (len(growth_G) * self._limits.kv_blocks)
        self._used_G += growth_G
        waiting = int(self._waiting_G.sum())
        running = int(self._here_G.sum()) - waiting
        prompt_tokens = int(numbers_NG[0].sum())
        with_prompts = prompt_tokens > 0
        waits = self._waits(numbers_NG) if waiting else (0.0, 0.0, 0.0)
        sums = (
            running * took_s,
            waiting * took_s,
            min(held, 1.0) * took_s,
            took_s * with_prompts,
            took_s * (not with_prompts),
            steps,
            prompt_tokens,
            output_tokens,
            *(took_s * part for part in waits),
        )
        times = self._times
        times.iterations += steps
        times.history.add(start_s, float(ends_W[-1]), sums)
        times.steps.add(prompts=with_prompts, batch=running, durations_W=durations_W, took_s=took_s)
        if times.log is not None:
            times.log.add(
                Logged(
                    instance=self._number,
                    start_s=start_s,
                    ends_W=ends_W,
                    numbers_NG=numbers_NG.copy(),
                    running=running,
                    waiting=waiting,
                )
            )

    def _waits(self, numbers_NG: Int) -> tuple[float, float, float]:
        """What the rank where most wait lacks: blocks, sequences' places, or the end of earlier prompts."""
        at = int(self._waiting_G.argmax())
        if self._here_G[at] - self._waiting_G[at] >= self._limits.max_sequences:
            return 0.0, 1.0, 0.0
        return (0.0, 0.0, 1.0) if numbers_NG[0, at] else (1.0, 0.0, 0.0)
