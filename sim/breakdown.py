"""Where the time of a step goes: what each rank spends in each part, and what of it is only waiting for peers.

A rank of an exchange waits for *peers* while one whose bytes it expects computes, or waits itself
for one that does. While that peer is held up by an exchange, the fabric is what both wait for, and
so it is for everything after the last of them has entered. The same holds at the step's end, until
the last rank is done.

The rung ``bound`` knows of some time only that one of the ranks spends it in an exchange, not
which. All wait for that one, so it is each rank's time, in the exchange from which it was left
over.

Axes: S task, G rank, R rank of a task, F flow, K EP group, L MoE layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim.busy import wait_for_starters
from moecast.sim.critical_path import critical_path, path_seconds
from moecast.sim.exposed import exposed_seconds, stays_by_kind
from moecast.sim.program import BREAKDOWN_PARTS, Exchange, Float, Int, StepProgram, StepTimes, Task
from moecast.sim.waiting import network_seconds

ROUNDING = 1e-12
"""Times that differ by less than this part are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleTimes:
    """What of a step's time is waiting for peers, in seconds.

    Parameters
    ----------
    idle_S
        In each task by each of its ranks [R]; 0 in compute tasks.
    end_idle_G
        After each rank's last task.
    end_fabric_S
        After each rank's last task, too, but for an exchange that holds up the last rank: by that
        exchange [R].
    peer_S
        In each exchange, which of its ranks each of them [R] waits for last: itself where none
        enters later.
    held_up_s
        Mean over ranks of waiting for peers, in one sequence, that an exchange holds up: in the
        exchanges' parts.
    """

    idle_S: Sequence[Float]
    end_idle_G: Float
    end_fabric_S: Sequence[Float]
    peer_S: Sequence[Int | None]
    held_up_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Mean over ranks of the seconds in each part, and of communication that ran beside compute.

    Parameters
    ----------
    step
        By part; adds up to the step's time. Exposed time: where a rank computes and communicates,
        compute wins.
    layers
        The same of the MoE layers in it. What ranks wait for the last one at the end is no layer's.
    overlapped_s
        Communication while the same rank computes.
    held_up_s
        Of the parts of exchanges, what is only waiting for a peer that one of them holds up:
        waiting for the network. What is waiting for a peer that computes is the part "idle".
    path_s
        By part: what the step's critical path goes through (`moecast.sim.critical_path`); adds up
        to its time, too.
    """

    step: dict[str, float]
    layers: dict[str, float]
    overlapped_s: float = 0.0
    held_up_s: float = 0.0
    path_s: Mapping[str, float] = field(default_factory=dict)


def breakdown(
    program: StepProgram,
    times: StepTimes,
    used_L: npt.NDArray[np.bool_] | None = None,
    *,
    idling: IdleTimes | None = None,
) -> Breakdown:
    """Read where the time of a step went, of the MoE layers only those that `used_L` says.

    None: all.

    `idling`: what `waits_for_peers` says, where it was asked already.
    """
    idling = waits_for_peers(program, times) if idling is None else idling
    path_s = path_seconds(program, critical_path(program, times, idling.peer_S))
    if not program.is_sequence:
        return _of_streams(program, times, used_L, idling, path_s)
    step, layers = dict.fromkeys(BREAKDOWN_PARTS, 0.0), dict.fromkeys(BREAKDOWN_PARTS, 0.0)
    idle_S = np.mean(idling.idle_S, axis=1)
    spent_S = (times.leave_SG - times.enter_SG + np.stack(idling.end_fabric_S)).mean(axis=1) - idle_S
    for task, spent, idle in zip(program.tasks, spent_S.tolist(), idle_S.tolist(), strict=True):
        for parts in (step, layers) if _counts(task, used_L) else (step,):
            parts[task.kind] += spent
            parts["idle"] += idle
    step["idle"] += float(idling.end_idle_G.mean())
    return Breakdown(step=step, layers=layers, held_up_s=idling.held_up_s, path_s=path_s)


def _counts(task: Task, used_L: npt.NDArray[np.bool_] | None) -> bool:
    return task.layer >= 0 and (used_L is None or bool(used_L[task.layer]))


def _of_streams(
    program: StepProgram,
    times: StepTimes,
    used_L: npt.NDArray[np.bool_] | None,
    idling: IdleTimes,
    path_s: Mapping[str, float],
) -> Breakdown:
    """Where tasks run beside each other: compute first, then communication that it does not hide, then waiting."""
    by_kind = stays_by_kind(program, times, idling.idle_S)
    spent_S, overlapped_s = exposed_seconds(program, by_kind)
    network_S = network_seconds(program, times, idling.peer_S, by_kind)
    del by_kind
    step, layers = dict.fromkeys(BREAKDOWN_PARTS, 0.0), dict.fromkeys(BREAKDOWN_PARTS, 0.0)
    for task, spent in zip(program.tasks, ((spent_S + network_S) / program.n_ranks).tolist(), strict=True):
        for parts in (step, layers) if _counts(task, used_L) else (step,):
            parts[task.kind] += spent
    step["idle"] = max(0.0, times.step_time_s - sum(step.values()))
    return Breakdown(
        step=step,
        layers=layers,
        overlapped_s=overlapped_s / program.n_ranks,
        held_up_s=float(network_S.sum()) / program.n_ranks,
        path_s=path_s,
    )


def waits_for_peers(program: StepProgram, times: StepTimes) -> IdleTimes:
    """Find what of a step's time each rank waits for peers.

    Where tasks run on several streams, it is all time until they enter; what holds them up then
    says `moecast.sim.waiting`.
    """
    if not program.is_sequence:
        return _idle_of_streams(program, times)
    idle_SG, end_fabric_SG = np.zeros_like(times.enter_SG), np.zeros_like(times.enter_SG)
    tasks = {index: task for index, task in enumerate(program.tasks) if isinstance(task, Exchange)}
    exchanges, all_enter_SG, all_leave_SG = list(tasks), times.enter_SG, times.leave_SG
    peer_S: list[Int | None] = [None] * len(program.tasks)
    held_up_s = 0.0
    for place, index in enumerate(exchanges):
        enter_G, leave_G = all_enter_SG[index], all_leave_SG[index]
        peer_S[index] = peer_G = last_peer(tasks[index], enter_G)
        until_G = np.minimum(enter_G[peer_G], leave_G)
        held_up_G = np.zeros_like(enter_G)
        for _, seconds_G in _held_up(exchanges[:place], times, idle_SG, peer_G, enter_G, until_G):
            held_up_G += seconds_G
        unused_G = leave_G - enter_G - times.busy_S[index]
        idle_SG[index] = np.clip(np.minimum(unused_G, until_G - enter_G - held_up_G), 0.0, None)
        waited_G = np.clip(np.minimum(unused_G, until_G - enter_G), 0.0, None)
        held_up_s += float((waited_G - idle_SG[index]).mean())
    done_G = all_leave_SG[-1]
    # Of those who end together the first: which of them is last by a rounding error would be chance.
    last_G = np.full(len(done_G), np.flatnonzero(done_G >= done_G.max() * (1 - ROUNDING))[0])
    end_idle_G = done_G.max() - done_G
    for index, seconds_G in _held_up(exchanges, times, idle_SG, last_G, done_G, done_G[last_G]):
        end_fabric_SG[index] += seconds_G
        end_idle_G = end_idle_G - seconds_G
    held_up_s += float(end_fabric_SG.sum(axis=0).mean())
    end_fabric_SG[exchanges] += _of_no_rank(exchanges, times)[:, None]
    return IdleTimes(
        idle_S=list(idle_SG),
        end_idle_G=np.clip(end_idle_G, 0.0, None),
        end_fabric_S=list(end_fabric_SG),
        peer_S=peer_S,
        held_up_s=held_up_s,
    )


def _idle_of_streams(program: StepProgram, times: StepTimes) -> IdleTimes:
    idle_S: list[Float] = []
    peer_S: list[Int | None] = []
    for index, task in enumerate(program.tasks):
        enter_R, leave_R = times.enter_S[index], times.leave_S[index]
        peer_R = last_peer(task, enter_R) if isinstance(task, Exchange) else None
        if peer_R is None:  # a step of thousands of ranks has tens of millions of stays: no array where one zero does
            peer_S.append(None)
            idle_S.append(np.broadcast_to(0.0, enter_R.shape))
            continue
        peer_S.append(peer_R.astype(np.int32))
        unused_R = leave_R - enter_R - times.busy_S[index]
        idle_S.append(np.clip(np.minimum(unused_R, enter_R[peer_R] - enter_R), 0.0, None))
    done_G = np.zeros(program.n_ranks)
    for task, leave_R in zip(program.tasks, times.leave_S, strict=True):
        ranks_R = program.ranks_of(task)
        done_G[ranks_R] = np.maximum(done_G[ranks_R], leave_R)
    nothing_S = [np.broadcast_to(0.0, idle_R.shape) for idle_R in idle_S]
    return IdleTimes(idle_S=idle_S, end_idle_G=times.step_time_s - done_G, end_fabric_S=nothing_S, peer_S=peer_S)


def last_peer(exchange: Exchange, enter_G: Float) -> Int:
    """Find which of those whose bytes each rank expects enters last [G].

    Behind a barrier, which of its EP group.

    It is the rank itself where none of them enters later.
    """
    n_ranks = len(enter_G)
    order_G = np.argsort(enter_G, kind="stable")
    place_G = np.empty(n_ranks, np.int64)
    place_G[order_G] = np.arange(n_ranks)
    last_G = place_G.copy()
    if exchange.barrier:
        last_K = np.full(int(exchange.group_R.max(initial=0)) + 1, -1)
        np.maximum.at(last_K, exchange.group_R, place_G)
        last_G = last_K[exchange.group_R]
    else:
        wait_for_starters(exchange, place_G, last_G)
    peer_G = order_G[last_G]
    return np.asarray(np.where(enter_G[peer_G] > enter_G, peer_G, np.arange(n_ranks)), np.int64)


def _held_up(
    exchanges: Sequence[int], times: StepTimes, idle_SG: Float, peer_G: Int, from_G: Float, until_G: Float
) -> Iterator[tuple[int, Float]]:
    """How long each of the exchanges, waiting for peers in it apart, holds up each rank's peer between two moments [G].

    Goes back from the last of them. Within one, a rank's idle time is taken to come first.
    """
    for index in reversed(exchanges):
        leave_G = times.leave_S[index][peer_G]
        if (leave_G <= from_G).all():
            return
        busy_from_G = times.enter_S[index][peer_G] + idle_SG[index, peer_G]
        yield index, np.clip(np.minimum(leave_G, until_G) - np.maximum(busy_from_G, from_G), 0.0, None)


def _of_no_rank(exchanges: Sequence[int], times: StepTimes) -> Float:
    """Seconds of each exchange that no rank is known to spend in it, and that are not made up for later [exchange]."""
    over = times.last_S[exchanges] - times.leave_SG[exchanges].max(axis=1)
    if len(over):
        over[-1] = times.last_S[-1] - times.leave_S[-1].max()
    return np.diff(np.minimum.accumulate(over[::-1])[::-1], prepend=0.0)
