"""One instance of an engine: attention-DP ranks that step together, each with its own scheduler.

Ranks that share experts wait for each other in every layer, so that an iteration is as long as its busiest rank makes
it; a rank with nothing to do takes part. While no rank has anything but running requests to decode, and nobody comes,
many iterations are planned at once; whoever comes cuts the plan.

Axes: G DP rank, W iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.batchers import Batcher, Scheduled
from moecast.sim.serving.batchers.batcher import MOST
from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.cost.step_load import ROWS, StepLoad, numbers_of
from moecast.sim.serving.records import PoolTimes, Records, Sample
from moecast.sim.serving.request import Request

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MOST_AHEAD = 4096
_NOBODY = np.empty(0, np.int64)
_NOTHING = Scheduled()


@dataclass(slots=True, eq=False)
class _Rank:
    """A scheduler, and how far it may be left alone.

    Parameters
    ----------
    quiet
        Iterations that it need not be asked for; its requests `ids` get a token in each.
    behind
        Iterations that went by and that it has not been told of.
    """

    batcher: Batcher
    quiet: int = MOST
    behind: int = 0
    ids: Int = field(default_factory=lambda: _NOBODY)
    scheduled: Scheduled | None = None

    def catch_up(self) -> None:
        """Tell it what went by."""
        if self.behind and len(self.ids):
            self.batcher.advance(self.behind)
        self.behind = 0


class Instance:
    """Ranks that step together.

    Parameters
    ----------
    batchers
        One for each rank.
    cost
        Seconds of an iteration.
    ahead
        An iteration is decided while the one before runs: who comes meanwhile waits for one more.
    receive_every
        It looks who has come after so many iterations without prompts; after one with prompts, and idle, at once.
    limits_kv, limits_sequences
        Blocks and sequences of a rank, to say what stands in the way of who waits.
    """

    def __init__(
        self,
        batchers: Sequence[Batcher],
        cost: StepCost,
        *,
        ahead: bool,
        kv_blocks: int,
        max_sequences: int,
        records: Records,
        times: PoolTimes,
        receive_every: int = 1,
    ) -> None:
        self._ranks = [_Rank(batcher) for batcher in batchers]
        self._cost, self._ahead = cost, ahead
        self._receive_every, self._since_looked = receive_every, 0
        self._kv_blocks, self._max_sequences = kv_blocks, max_sequences
        self._records, self._times = records, times
        self._inbox: list[tuple[int, Request, bool, float]] = []
        self._numbers_NG = np.zeros((ROWS, len(batchers)), np.int64)
        self._waiting_G = np.zeros(len(batchers), np.int64)
        self._running_G = np.zeros(len(batchers), np.int64)
        self._start_s, self._ends_W = 0.0, np.empty(0)
        self._asked: list[_Rank] = []
        self._promised_G: list[dict[int, int]] = [{} for _ in batchers]
        self.busy = False

    @property
    def end_s(self) -> float:
        """When the planned iterations end."""
        return float(self._ends_W[-1])

    def come(self, rank: int, request: Request, now_s: float, *, prefilled: bool = False) -> bool:
        """Let a request come to a rank; whether planned iterations are cut, so that it waits for no more than it must.

        `prefilled`: its prompt's keys and its first token come with it.
        """
        self._inbox.append((rank, request, prefilled, now_s))
        if not self.busy or len(self._ends_W) == 1:
            return False
        # the iteration in progress ends, and where the next one has been decided, that one too
        keep = int(np.searchsorted(self._ends_W, now_s)) + (2 if self._ahead else 1)
        keep += -(self._since_looked + keep) % self._receive_every
        if keep >= len(self._ends_W):
            return False
        self._ends_W = self._ends_W[:keep]
        return True

    def promise(self, rank: int, request: Request) -> bool:
        """Keep room on a rank for a request whose prompt was computed elsewhere; whether there is any.

        Blocks are those that its scheduler knew of when it last ran. A rank that has nobody takes anybody.
        """
        batcher, promised = self._ranks[rank].batcher, self._promised_G[rank]
        wanted = batcher.blocks_to_enter(request)
        there = batcher.running + len(promised)
        taken = batcher.kv_blocks_spoken_for + sum(promised.values())
        if there >= self._max_sequences:
            self._times.refused_for_seats += 1
            return False
        if there and taken + wanted > self._kv_blocks:
            self._times.refused_for_blocks += 1
            return False
        promised[request.id] = wanted
        return True

    def start(self, now_s: float) -> bool:
        """Decide the next iterations; whether there is anything to do."""
        if not self.busy or self._since_looked % self._receive_every == 0:
            self._since_looked = 0
            self._deliver(now_s)
        swapped = self._schedule(now_s)
        numbers_NG = self._numbers_NG
        if not numbers_NG[[0, 3]].any():
            self.busy = False
            if self._inbox:  # nothing runs that could have been decided before these came
                return self.start(now_s)
            self._check_stuck()
            return False
        load = StepLoad(
            prompt_tokens_G=numbers_NG[0], prompt_keys_G=numbers_NG[1], prompts_G=numbers_NG[2],
            decodes_G=numbers_NG[3], decode_keys_G=numbers_NG[4], swapped_blocks=swapped,
            scheduled_G=tuple(rank.scheduled if rank.scheduled is not None else _NOTHING for rank in self._ranks),
        )  # fmt: skip
        self._start_s, self.busy = now_s, True
        if self._asked:
            self._ends_W = np.array([now_s + self._cost.seconds(load)])
        else:
            # who has come too late for this iteration is in the next one
            most = self._receive_every - self._since_looked % self._receive_every if self._inbox else MOST_AHEAD
            steps = min(most, *(rank.quiet for rank in self._ranks))
            self._ends_W = now_s + np.cumsum(self._cost.ahead(load, steps))
        return True

    def _deliver(self, now_s: float) -> None:
        """Hand over who has come, as far as this iteration can know of them."""
        until_s = self._start_s if self._ahead and self.busy else now_s
        kept = []
        for item in self._inbox:
            rank_at, request, prefilled, come_s = item
            if come_s > until_s:
                kept.append(item)
                continue
            rank = self._ranks[rank_at]
            self._settle(rank, now_s)
            if prefilled:
                rank.batcher.add_prefilled(request)
            else:
                rank.batcher.add(request)
            self._waiting_G[rank_at] = rank.batcher.waiting
            rank.quiet = min(rank.quiet, rank.batcher.quiet_steps())
        self._inbox = kept

    def _settle(self, rank: _Rank, now_s: float) -> None:
        """End a rank's quiet time: it and the records hear of the iterations that went by."""
        if rank.behind:
            self._records.last_Q[rank.ids] = now_s
            rank.catch_up()

    def _schedule(self, now_s: float) -> int:
        """Ask the ranks that must be asked; blocks that the busiest of them swaps."""
        self._asked, swapped = [], 0
        by_request = self._cost.by_request
        for index, rank in enumerate(self._ranks):
            if rank.quiet and not (by_request and len(rank.ids)):
                continue
            self._settle(rank, now_s)
            rank.scheduled = scheduled = rank.batcher.schedule()
            self._numbers_NG[:, index] = numbers_of(scheduled)
            self._asked.append(rank)
            swapped = max(swapped, scheduled.swapped_blocks)
            self._times.swapped_blocks += scheduled.swapped_blocks
            if scheduled.preempted:
                self._times.preemptions += len(scheduled.preempted)
                self._records.preempted_Q[list(scheduled.preempted)] += 1
        return swapped

    def _check_stuck(self) -> None:
        for rank in self._ranks:
            if rank.batcher.waiting:
                rule = "requests wait and none can ever be admitted: more blocks, or a smaller watermark"
                raise MoecastError(rule, field="kv_blocks", value=self._kv_blocks)

    def finish(self) -> list[int]:
        """End the planned iterations; the requests that have all their tokens."""
        ends_W, start_s = self._ends_W, self._start_s
        steps = len(ends_W)
        durations_W = np.diff(ends_W, prepend=start_s)
        self._count_time(durations_W)
        self._since_looked = 0 if self._numbers_NG[0].any() else self._since_looked + steps
        self._start_s = float(ends_W[-2]) if steps > 1 else start_s
        self._ends_W = ends_W[-1:]
        finished: list[int] = []
        alike, asked = 0, set(map(id, self._asked))
        for index, rank in enumerate(self._ranks):
            if id(rank) in asked:
                finished += self._finish_rank(index, rank, float(ends_W[-1]))
            elif len(rank.ids):
                rank.quiet -= steps
                rank.behind += steps
                alike += len(rank.ids)
        quiet_G = np.array([id(rank) not in asked for rank in self._ranks])
        self._numbers_NG[4, quiet_G] += steps * self._numbers_NG[3, quiet_G]
        self._records.given_alike(durations_W, alike)
        self._times.output_tokens += alike * steps
        self._times.decode_tokens += alike * steps
        if self._times.wants_sample(float(ends_W[-1])):
            self._sample(float(ends_W[-1]))
        return finished

    def _finish_rank(self, index: int, rank: _Rank, end_s: float) -> tuple[int, ...]:
        scheduled, batcher = rank.scheduled, rank.batcher
        assert scheduled is not None
        self._times.kv_peak = max(self._times.kv_peak, batcher.kv_blocks_used)
        if promised := self._promised_G[index]:
            for request_id in promised.keys() & set(scheduled.request.tolist()):
                del promised[request_id]
        given = scheduled.request[scheduled.samples]
        self._records.given(given, end_s)
        decodes = int(scheduled.decodes.sum())
        self._times.output_tokens += len(given)
        self._times.decode_tokens += decodes
        self._times.prompt_tokens += int(scheduled.tokens.sum()) - decodes
        ended = batcher.done(scheduled)
        rank.scheduled = None
        self._waiting_G[index], self._running_G[index] = batcher.waiting, batcher.running
        if not batcher.running and not batcher.waiting:
            rank.quiet, rank.ids = MOST, _NOBODY
            self._numbers_NG[:, index] = 0
        elif decodes == len(scheduled) and not scheduled.swapped_blocks:
            self._go_quiet(index, rank, scheduled, ended)
        else:
            rank.quiet, rank.ids = 0, _NOBODY
        return ended

    def _go_quiet(self, index: int, rank: _Rank, scheduled: Scheduled, ended: tuple[int, ...]) -> None:
        """Leave a rank alone as long as those whom it just decoded go on, and nobody else."""
        rank.quiet = rank.batcher.quiet_steps()
        keep = ~np.isin(scheduled.request, ended) if ended else slice(None)
        rank.ids = scheduled.request[keep]
        if len(rank.ids) != rank.batcher.running:
            rank.quiet = 0
        keys = int(scheduled.context[keep].sum()) + 2 * len(rank.ids)
        if rank.quiet:
            self._numbers_NG[:, index] = (0, 0, 0, len(rank.ids), keys)

    def _count_time(self, durations_W: Float) -> None:
        times, took_s = self._times, float(durations_W.sum())
        times.iterations += len(durations_W)
        if self._numbers_NG[0].any():
            times.prompt_s += took_s
        else:
            times.decode_s += took_s
        if self._waiting_G.any():
            at = int(self._waiting_G.argmax())
            if self._running_G[at] >= self._max_sequences:
                times.seat_wait_s += took_s
            elif self._numbers_NG[0, at]:
                times.prompt_wait_s += took_s
            else:
                times.kv_wait_s += took_s

    def _sample(self, now_s: float) -> None:
        for rank in self._ranks:
            if rank.behind:
                self._records.last_Q[rank.ids] = now_s
                rank.catch_up()
        used = [rank.batcher.kv_blocks_used for rank in self._ranks]
        self._times.kv_peak = max(self._times.kv_peak, *used)
        self._times.add_sample(
            Sample(
                time_s=now_s,
                running=sum(rank.batcher.running for rank in self._ranks),
                waiting=sum(rank.batcher.waiting for rank in self._ranks),
                kv_used=sum(used) / (len(used) * self._kv_blocks),
            )
        )
