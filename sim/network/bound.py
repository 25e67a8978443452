"""The bound rung: a lower bound on what `fluid` gives each rank at each stage, without following a single event.

Axes: S stage, G rank, F flow, J link, K EP group, C crowd (see `moecast.sim.network.waits`).
"""

from __future__ import annotations

import numpy as np

from moecast.sim.accounts import busy_seconds, link_bytes, setup_start
from moecast.sim.network.flows import check_program, parents_first
from moecast.sim.network.links import kept_pairs, parallel_links
from moecast.sim.network.waits import WORK, flow_bounds, leave_bounds
from moecast.sim.program import Compute, Exchange, Float, Int, Int32, StepProgram, StepTimes


class Bound:
    """The longest path through lower bounds: a max-plus recursion over the stages, rank by rank.

    What it rests on, for the same capacities and routes, whatever shares the links (so also for `fluid`):

    1. *Alone.* A flow ends no sooner than its start, its bytes times share over its slowest link's capacity, and its
       latency. A fed flow starts and ends no sooner than its parents' earliest starts and ends allow.
    2. *A port.* Of the flows that a rank waits for, those that start at s or later all cross a link in no less than
       the sum of their loads on it; the last of them then has its latency to come. A flow that feeds one that the
       rank waits for counts too: the rank leaves no sooner than that flow's end and the tails along the chain.
       This runs on from exchange to exchange: a rank has left neither before all of both had crossed the link.
    3. *Somebody is last.* The same sum over the flows that any rank of an EP group waits for bounds the moment when
       the last rank of the group leaves. Which rank that is remains open; the number M says only that *some* rank r*
       leaves no sooner than M.
    4. *And others wait for it.* r* enters the next exchange no sooner than M and its own work in between. A rank w to
       which r* sends leaves no sooner than that, the setup and the flow's time alone; and somebody leaves no sooner
       than all that r* sends has crossed its ports. As r* is not known, the least over all ranks of the group is
       taken, r* = w among them; where some rank sends w nothing it says nothing about w. Behind a barrier, nobody
       starts sooner than the least over r* of its entry.

    Nothing here asks how a link is shared, so the bound is what a network could do that serves whom it likes first;
    fair sharing lets all who share a port finish together and late. On 32 GPUs it is 0.83 to 0.97 of `fluid` for random
    all-to-all traffic that is even, 0.7 where ranks are unevenly popular.

    Each holds for any shares of the links and for any later start than assumed, so by induction over the stages every
    time is a lower bound. How long a rank is busy is none: it is counted as in `fluid`, each flow moving from its
    earliest start until the last link on its way has served all that its EP group waits for, as fair sharing would.
    """

    name = "bound"
    times_every_step = True

    def run(self, program: StepProgram) -> StepTimes:
        """When each rank enters and leaves each stage, at the earliest.

        Raises
        ------
        ValueError
            The program's arrays do not fit together.
        """
        check_program(program)
        enter_SG = np.zeros((len(program.stages), program.n_ranks))
        leave_SG, busy_SG = np.zeros_like(enter_SG), np.zeros_like(enter_SG)
        floor_S = np.zeros(len(program.stages))
        past, bottleneck_J = _Past(program.n_ranks, len(program.capacity_J)), parallel_links(program)
        now_G = np.zeros(program.n_ranks)
        for index, stage in enumerate(program.stages):
            enter_SG[index] = now_G
            if isinstance(stage, Compute):
                now_G = now_G + stage.seconds_G
                busy_SG[index] = stage.seconds_G
                past.work_G = past.work_G + stage.seconds_G
            else:
                now_G, busy_SG[index] = _exchange(stage, program.capacity_J, bottleneck_J, now_G, past)
            leave_SG[index], floor_S[index] = now_G, past.floor_s
        return StepTimes(
            enter_SG=enter_SG, leave_SG=leave_SG, busy_SG=busy_SG, link_bytes_J=link_bytes(program), floor_S=floor_S
        )


class _Past:
    """What earlier exchanges leave behind, besides the time at which each rank left.

    The last rank of each EP group, whichever it is, left no sooner than `left_G`; each rank has computed `work_G`
    since. `served_CJ` is what the links have served for the ranks, and for the EP groups.
    """

    def __init__(self, n_ranks: int, n_links: int) -> None:
        self.group_G = np.full(n_ranks, -1, np.int32)
        self.left_G = np.full(n_ranks, -np.inf)
        self.work_G = np.zeros(n_ranks)
        self.served_CJ = np.zeros((2 * n_ranks, n_links), WORK)
        self.served_CJ["since"] = self.served_CJ["tail"] = np.inf

    def enter(self, group_G: Int32, enter_G: Float) -> Float:
        """When each rank enters at the earliest if it is the one that was last."""
        if not np.array_equal(group_G, self.group_G):
            self.group_G = group_G
            groups_CJ = self.served_CJ[len(group_G) :]
            groups_CJ["load"], groups_CJ["since"], groups_CJ["tail"] = 0.0, np.inf, np.inf
            return enter_G
        return np.maximum(enter_G, self.left_G + self.work_G)

    @property
    def floor_s(self) -> float:
        """When the last rank of all is done at the earliest, whichever that is."""
        if self.group_G[0] < 0:
            return 0.0
        return float(_least(self.group_G, self.left_G + self.work_G)[self.group_G].max(initial=0.0))

    def leave(self, left_K: Float) -> None:
        """Start again from an exchange that the last rank of each group leaves no sooner than `left_K`."""
        self.left_G = left_K[self.group_G]
        self.work_G = np.zeros_like(self.work_G)


def _exchange(
    stage: Exchange, capacity_J: Float, bottleneck_J: Int, enter_G: Float, past: _Past
) -> tuple[Float, Float]:
    """Earliest leave and the busy seconds of each rank; tells `past` when the last of each group leaves."""
    flows, group_G, n_ranks = stage.flows, stage.group_G, len(enter_G)
    n_groups = int(group_G.max(initial=-1)) + 1
    last_enter_G, setup_G = past.enter(group_G, enter_G), setup_start(stage, enter_G)
    if stage.barrier:
        setup_G = np.maximum(setup_G, _least(group_G, last_enter_G)[group_G])
    begin_G = setup_G + stage.setup_s
    links = kept_pairs(flows.offsets_F1, flows.link_X, flows.share_X, bottleneck_J)
    start_F, end_F, alone_F = flow_bounds(
        parents_first(flows.parent_offsets_F1, flows.parent_R), flows.bytes_F, flows.source_rank_F, *links,
        flows.latency_F, flows.parent_offsets_F1, flows.parent_R, flows.feed_delay_F, flows.feed_tail_F, capacity_J,
        begin_G,
    )  # fmt: skip
    leave_G, left_K, fair_F = leave_bounds(
        np.argsort(start_F), start_F, end_F, alone_F, flows.bytes_F, flows.source_rank_F, flows.waiter_F, *links,
        flows.latency_F, flows.parent_offsets_F1, flows.parent_R, flows.feed_delay_F, flows.feed_tail_F, capacity_J,
        group_G, n_groups, stage.barrier, begin_G, last_enter_G + stage.setup_s, past.served_CJ[: n_ranks + n_groups],
    )  # fmt: skip
    past.leave(left_K)
    busy_G = busy_seconds(stage, enter_G=enter_G, leave_G=leave_G, setup_G=setup_G, start_F=start_F, end_F=fair_F)
    return leave_G, busy_G


def _least(group_G: Int32, value_G: Float) -> Float:
    """Take the least value in each EP group; infinite for a number that no group has."""
    least_K = np.full(int(group_G.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least_K, group_G, value_G)
    return least_K
