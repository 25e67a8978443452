"""The bound rung: a lower bound on what `fluid` gives each rank at each stage, without following a single event.

Axes: S stage, G rank, F flow, J link, K EP group, C crowd (see `moecast.sim.network.waits`).
"""

from __future__ import annotations

import numpy as np

from moecast.sim.accounts import busy_seconds, link_bytes, setup_start
from moecast.sim.network.flows import check_program, feeding
from moecast.sim.network.waits import awaited, crowd_bounds, flow_bounds, latest_end, whoever_is_last, with_groups
from moecast.sim.program import Compute, Exchange, Float, Int32, StepProgram, StepTimes


class Bound:
    """The longest path through lower bounds: a max-plus recursion over the stages, rank by rank.

    What it rests on, for the same capacities and routes, whatever shares the links (so also for `fluid`):

    1. *Alone.* A flow ends no sooner than its start, its bytes times share over its slowest link's capacity, and its
       latency. A fed flow starts and ends no sooner than its parents' earliest starts and ends allow.
    2. *A port.* Of the flows that a rank waits for, those that start at s or later all cross a link in no less than
       the sum of their loads on it; the last of them then has its latency to come. A flow that feeds one that the
       rank waits for counts too: the rank leaves no sooner than that flow's end and the tails along the chain.
    3. *Somebody is last.* The same sum over the flows that any rank of an EP group waits for bounds the moment when
       the last rank of the group leaves. Which rank that is remains open; the number M says only that *some* rank r*
       leaves no sooner than M.
    4. *And others wait for it.* r* enters the next exchange no sooner than M and its own work in between. A rank w to
       which r* sends leaves no sooner than that, the setup and the flow's time alone. As r* is not known, the least
       over all ranks of the group is taken, r* = w among them; where some rank sends w nothing it says nothing.
       Behind a barrier, nobody starts sooner than the least over r* of its entry.

    Each holds for any shares of the links and for any later start than assumed, so by induction over the stages every
    time is a lower bound. A rank is busy as in `fluid`, with the earliest starts and ends of its flows and, for those
    it waits for and those it sends, from the first byte to the last on the link that bounds them.
    """

    name = "bound"

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
        last = _LastRank(program.n_ranks)
        now_G = np.zeros(program.n_ranks)
        for index, stage in enumerate(program.stages):
            enter_SG[index] = now_G
            if isinstance(stage, Compute):
                now_G = now_G + stage.seconds_G
                busy_SG[index] = stage.seconds_G
                last.works(stage.seconds_G)
            else:
                now_G, busy_SG[index] = _exchange(stage, program.capacity_J, now_G, last)
            leave_SG[index] = now_G
        return StepTimes(enter_SG=enter_SG, leave_SG=leave_SG, busy_SG=busy_SG, link_bytes_J=link_bytes(program))


class _LastRank:
    """What is known of the last rank of each EP group: not which it is, but that it left no sooner than `left_G`."""

    def __init__(self, n_ranks: int) -> None:
        self.group_G = np.full(n_ranks, -1, np.int32)
        self.left_G = np.full(n_ranks, -np.inf)  # of the last rank of each rank's group
        self.work_G = np.zeros(n_ranks)  # since then

    def works(self, seconds_G: Float) -> None:
        """Let every rank compute."""
        self.work_G = self.work_G + seconds_G

    def enters(self, group_G: Int32, enter_G: Float) -> Float:
        """When each rank enters at the earliest if it is the one that was last."""
        if not np.array_equal(group_G, self.group_G):
            return enter_G
        return np.maximum(enter_G, self.left_G + self.work_G)

    def leaves(self, group_G: Int32, left_K: Float) -> None:
        """Start again from an exchange that the last rank of each group leaves no sooner than `left_K`."""
        self.group_G, self.left_G = group_G, left_K[group_G]
        self.work_G = np.zeros_like(self.work_G)


def _exchange(stage: Exchange, capacity_J: Float, enter_G: Float, last: _LastRank) -> tuple[Float, Float]:
    """Earliest leave and the busy seconds of each rank; tells `last` when the last of each group leaves."""
    flows, group_G, n_ranks = stage.flows, stage.group_G, len(enter_G)
    n_groups = int(group_G.max(initial=-1)) + 1
    fed = feeding(flows)
    if_last_G = last.enters(group_G, enter_G)
    begin_G = setup_start(stage, enter_G)
    if stage.barrier:
        begin_G = np.maximum(begin_G, -latest_end(group_G, -if_last_G, n_groups)[group_G])
    begin_G = begin_G + stage.setup_s
    start_F, end_F, alone_F = flow_bounds(
        fed.order_F, flows.bytes_F, flows.source_rank_F, flows.offsets_F1, flows.link_X, flows.share_X, flows.latency_F,
        flows.parent_offsets_F1, flows.parent_R, flows.feed_delay_F, flows.feed_tail_F, capacity_J, begin_G,
    )  # fmt: skip
    members = awaited(
        flows.waiter_F, alone_F, flows.parent_offsets_F1, flows.parent_R, flows.feed_delay_F, flows.feed_tail_F, n_ranks
    )
    over_C, since_C = crowd_bounds(
        with_groups(members, group_G, flows.source_rank_F, n_groups, stage.barrier), 2 * n_ranks + n_groups, start_F,
        flows.bytes_F, flows.offsets_F1, flows.link_X, flows.share_X, flows.latency_F, capacity_J,
    )  # fmt: skip
    over_K = over_C[n_ranks : n_ranks + n_groups]
    if stage.barrier:
        leave_G = np.maximum(begin_G, over_K[group_G])
        ended_G = latest_end(group_G[flows.source_rank_F], end_F, n_groups)[group_G]
    else:
        leave_G = np.maximum(begin_G, over_C[:n_ranks])
        ended_G = latest_end(flows.waiter_F, end_F, n_ranks)
        leave_G = np.maximum(
            leave_G,
            whoever_is_last(members, flows.source_rank_F, flows.parent_offsets_F1, group_G, if_last_G + stage.setup_s),
        )
    leave_G = np.maximum(leave_G, ended_G)
    last.leaves(group_G, np.maximum(over_K, latest_end(group_G, leave_G, n_groups)))
    ranks = np.arange(n_ranks)
    port_C = np.concatenate((ranks, np.arange(n_ranks + n_groups, 2 * n_ranks + n_groups)))
    busy_G = busy_seconds(
        stage, enter_G=enter_G, leave_G=leave_G, start_F=start_F, end_F=end_F,
        ports=(np.concatenate((ranks, ranks)), since_C[port_C], over_C[port_C]),
    )  # fmt: skip
    return leave_G, busy_G
