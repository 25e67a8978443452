"""One instance of an engine: attention-DP ranks that step together, each with its own scheduler.

Ranks that share experts wait for each other in every layer, so that an iteration is as long as its
busiest rank makes it; a rank with nothing to do takes part. While no rank has anything but running
requests to decode, and nobody comes, many iterations are planned at once; whoever comes cuts the
plan.

Axes: G DP rank, W iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.batchers import Batcher, Limits, Scheduled
from moecast.sim.serving.batchers.batcher import MOST
from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.cost.step_load import ROWS, StepLoad, numbers_of
from moecast.sim.serving.records import PoolTimes, Records
from moecast.sim.serving.request import Request
from moecast.sim.serving.watch import Watch

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MOST_AHEAD = 4096
_NOBODY = np.empty(0, np.int64)
_NOTHING = Scheduled()


class Instance:
    """Ranks that step together.

    A rank whose scheduler just decodes whoever runs is *quiet*: it need not be asked for so many
    iterations (`_quiet_G`), in each of which its requests (`_ids_G`) get a token. It is told later
    of those that went by (`_behind_G`).

    Parameters
    ----------
    batchers
        One for each rank.
    cost
        Seconds of an iteration.
    ahead
        An iteration is decided while the one before runs: who comes meanwhile waits for one more.
    limits
        Of a rank, to say what stands in the way of who waits.
    number
        Its place in its pool.
    receive_every
        It looks who has come after so many iterations without prompts; after one with prompts, and
        idle, at once.
    """

    def __init__(
        self,
        batchers: Sequence[Batcher],
        cost: StepCost,
        *,
        ahead: bool,
        limits: Limits,
        records: Records,
        times: PoolTimes,
        number: int = 0,
        receive_every: int = 1,
    ) -> None:
        ranks = len(batchers)
        self._batchers, self._cost, self._ahead, self._limits = list(batchers), cost, ahead, limits
        self._receive_every, self._since_looked = receive_every, 0
        self._records, self._times = records, times
        self._watch = Watch(number, ranks, limits, times)
        self._inbox: list[tuple[int, Request, bool, float]] = []
        self._numbers_NG = np.zeros((len(ROWS), ranks), np.int64)
        self._quiet_G, self._behind_G = np.full(ranks, MOST), np.zeros(ranks, np.int64)
        self._ids_G: list[Int] = [_NOBODY] * ranks
        # of the ranks that were asked for the iteration in progress
        self._scheduled: dict[int, Scheduled] = {}
        self._start_s, self._ends_W = 0.0, np.empty(0)
        self._promised_G: list[dict[int, int]] = [{} for _ in batchers]
        self.busy = False

    @property
    def end_s(self) -> float:
        """When the planned iterations end."""
        return float(self._ends_W[-1])

    def come(self, rank: int, request: Request, now_s: float, *, prefilled: bool = False) -> bool:
        """Let a request come to a rank.

        Whether planned iterations are cut, so that it waits for no more than it must.

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
        """Keep room on a rank for a request whose prompt was computed elsewhere.

        Whether there is any.

        Blocks are those that its scheduler knew of when it last ran. A rank that has nobody takes
        anybody.
        """
        batcher, promised = self._batchers[rank], self._promised_G[rank]
        wanted = batcher.blocks_to_enter(request)
        there = batcher.running + len(promised)
        taken = batcher.kv_blocks_spoken_for + sum(promised.values())
        if there >= self._limits.max_sequences:
            self._times.refused_for_seats += 1
            return False
        if there and taken + wanted > self._limits.kv_blocks:
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
        if not (numbers_NG[0].any() or numbers_NG[3].any()):
            self.busy = False
            if self._inbox:  # nothing runs that could have been decided before these came
                return self.start(now_s)
            self._check_stuck()
            return False
        scheduled_G = tuple(self._scheduled.get(rank, _NOTHING) for rank in range(len(self._batchers)))
        load = StepLoad.of(numbers_NG, swapped_blocks=swapped, scheduled_G=scheduled_G)
        self._start_s, self.busy = now_s, True
        if self._scheduled:
            self._ends_W = np.array([now_s + self._cost.seconds(load)])
        else:
            # who has come too late for this iteration is in the next one
            most = self._receive_every - self._since_looked % self._receive_every if self._inbox else MOST_AHEAD
            steps = min(most, int(self._quiet_G.min()))
            self._ends_W = now_s + np.cumsum(self._cost.ahead(load, steps))
        return True

    def _deliver(self, now_s: float) -> None:
        """Hand over who has come, as far as this iteration can know of them."""
        if not self._inbox:
            return
        until_s = self._start_s if self._ahead and self.busy else now_s
        kept = []
        for item in self._inbox:
            rank, request, prefilled, come_s = item
            if come_s > until_s:
                kept.append(item)
                continue
            batcher = self._batchers[rank]
            self._settle(rank, now_s)
            if prefilled:
                batcher.add_prefilled(request)
            else:
                batcher.add(request)
            self._watch.came(rank, batcher, come_s, now_s)
            self._quiet_G[rank] = min(self._quiet_G[rank], batcher.quiet_steps())
        self._inbox = kept

    def _settle(self, rank: int, now_s: float) -> None:
        """End a rank's quiet time: it and the records hear of the iterations that went by."""
        if self._behind_G[rank]:
            self._records.last_Q[self._ids_G[rank]] = now_s
            self._batchers[rank].advance(int(self._behind_G[rank]))
            self._behind_G[rank] = 0

    def _schedule(self, now_s: float) -> int:
        """Ask the ranks that must be asked; blocks that the busiest of them swaps."""
        asked = np.flatnonzero(self._quiet_G == 0).tolist()
        if self._cost.by_request:
            asked = [rank for rank, ids in enumerate(self._ids_G) if len(ids) or not self._quiet_G[rank]]
        swapped = 0
        self._scheduled = {}
        for rank in asked:
            self._settle(rank, now_s)
            batcher = self._batchers[rank]
            self._scheduled[rank] = scheduled = batcher.schedule()
            self._numbers_NG[:, rank] = numbers_of(scheduled)
            self._watch.looked(rank, batcher)
            self._records.started(scheduled.request, now_s)
            swapped = max(swapped, scheduled.swapped_blocks)
            self._times.swapped_blocks += scheduled.swapped_blocks
            if scheduled.preempted:
                self._times.preemptions += len(scheduled.preempted)
                self._records.preempted_Q[list(scheduled.preempted)] += 1
        return swapped

    def _check_stuck(self) -> None:
        for batcher in self._batchers:
            if batcher.waiting:
                rule = "requests wait and none can ever be admitted: more blocks, or a smaller watermark"
                raise MoecastError(rule, field="kv_blocks", value=self._limits.kv_blocks)

    def finish(self) -> list[int]:
        """End the planned iterations; the requests that have all their tokens."""
        ends_W, start_s, asked = self._ends_W, self._start_s, list(self._scheduled)
        steps = len(ends_W)
        self._since_looked = 0 if self._numbers_NG[0].any() else self._since_looked + steps
        quiet_G = np.ones(len(self._batchers), bool)
        quiet_G[asked] = False
        alike = int(self._numbers_NG[3, quiet_G].sum())
        given = sum(int(scheduled.samples.sum()) for scheduled in self._scheduled.values())
        self._watch.went_by(start_s, ends_W, self._numbers_NG, asked, given + alike * steps)
        self._start_s = float(ends_W[-2]) if steps > 1 else start_s
        self._ends_W = ends_W[-1:]
        self._quiet_G[quiet_G & (self._quiet_G < MOST)] -= steps
        self._behind_G[quiet_G & (self._numbers_NG[3] > 0)] += steps
        self._numbers_NG[4, quiet_G] += steps * self._numbers_NG[3, quiet_G]
        self._records.given_alike(np.diff(ends_W, prepend=start_s), alike)
        self._times.output_tokens += given + alike * steps
        self._times.decode_tokens += alike * steps
        finished: list[int] = []
        for rank in asked:
            finished += self._finish_rank(rank, self._scheduled[rank], float(ends_W[-1]))
        return finished

    def _finish_rank(self, rank: int, scheduled: Scheduled, end_s: float) -> tuple[int, ...]:
        batcher = self._batchers[rank]
        if promised := self._promised_G[rank]:
            for request_id in promised.keys() & set(scheduled.request.tolist()):
                del promised[request_id]
        self._records.given(scheduled.request[scheduled.samples], end_s)
        decodes = int(scheduled.decodes.sum())
        self._times.decode_tokens += decodes
        self._times.prompt_tokens += int(scheduled.tokens.sum()) - decodes
        ended = batcher.done(scheduled)
        self._watch.left(rank, batcher, len(ended))
        if not batcher.running and not batcher.waiting:
            self._quiet_G[rank], self._ids_G[rank] = MOST, _NOBODY
            self._numbers_NG[:, rank] = 0
        elif decodes == len(scheduled) and not scheduled.swapped_blocks:
            self._go_quiet(rank, scheduled, ended)
        else:
            self._quiet_G[rank], self._ids_G[rank] = 0, _NOBODY
        return ended

    def _go_quiet(self, rank: int, scheduled: Scheduled, ended: tuple[int, ...]) -> None:
        """Leave a rank alone as long as those whom it just decoded go on, and nobody else."""
        batcher = self._batchers[rank]
        keep = (scheduled.request[:, None] != np.array(ended)).all(axis=1) if ended else slice(None)
        ids = scheduled.request[keep]
        quiet = batcher.quiet_steps() if len(ids) == batcher.running else 0
        self._quiet_G[rank], self._ids_G[rank] = quiet, ids
        if quiet:
            keys = int(scheduled.context[keep].sum()) + 2 * len(ids)
            self._numbers_NG[:, rank] = (0, 0, 0, len(ids), keys)
