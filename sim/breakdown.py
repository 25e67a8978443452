"""Where the time of a step goes: what each rank spends in each part, and what of it is only waiting for peers.

A rank of an exchange waits for *peers* while one whose bytes it expects computes, or waits itself for one that does.
While that peer is held up by an exchange, the fabric is what both wait for, and so it is for everything after the last
of them has entered. The same holds at the step's end, until the last rank is done.

The rung ``bound`` knows of some time only that one of the ranks spends it in an exchange, not which. All wait for that
one, so it is each rank's time, in the exchange from which it was left over.

Axes: S stage, G rank, F flow, K EP group, L MoE layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.program import BREAKDOWN_PARTS, Exchange, Float, Int, StepProgram, StepTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What of a step's time is waiting for peers, in seconds.

    Parameters
    ----------
    idle_SG
        In each stage by each rank; 0 in compute stages.
    end_idle_G
        After each rank's last stage.
    end_fabric_SG
        After each rank's last stage, too, but for an exchange that holds up the last rank: by that exchange.
    """

    idle_SG: Float
    end_idle_G: Float
    end_fabric_SG: Float


def breakdown(
    program: StepProgram, times: StepTimes, used_L: npt.NDArray[np.bool_] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean over ranks of the time in each part: of the step, whose time it adds up to, and of the MoE layers in it.

    Of the layers only those that `used_L` says; None: all. What ranks wait for the last one at the end is no layer's.
    """
    waits = waits_for_peers(program, times)
    step, layers = dict.fromkeys(BREAKDOWN_PARTS, 0.0), dict.fromkeys(BREAKDOWN_PARTS, 0.0)
    idle_S = waits.idle_SG.mean(axis=1)
    spent_S = (times.leave_SG - times.enter_SG + waits.end_fabric_SG).mean(axis=1) - idle_S
    for stage, spent, idle in zip(program.stages, spent_S.tolist(), idle_S.tolist(), strict=True):
        of_layers = stage.layer >= 0 and (used_L is None or used_L[stage.layer])
        for parts in (step, layers) if of_layers else (step,):
            parts[stage.kind] += spent
            parts["idle"] += idle
    step["idle"] += float(waits.end_idle_G.mean())
    return step, layers


def waits_for_peers(program: StepProgram, times: StepTimes) -> Waits:
    """Find what of a step's time each rank waits for peers."""
    idle_SG, end_fabric_SG = np.zeros_like(times.enter_SG), np.zeros_like(times.enter_SG)
    stages = {index: stage for index, stage in enumerate(program.stages) if isinstance(stage, Exchange)}
    exchanges = list(stages)
    for place, index in enumerate(exchanges):
        enter_G, leave_G = times.enter_SG[index], times.leave_SG[index]
        peer_G = last_peer(stages[index], enter_G)
        until_G = np.minimum(enter_G[peer_G], leave_G)
        held_up_G = np.zeros_like(enter_G)
        for _, seconds_G in _held_up(exchanges[:place], times, idle_SG, peer_G, enter_G, until_G):
            held_up_G += seconds_G
        unused_G = leave_G - enter_G - times.busy_SG[index]
        idle_SG[index] = np.clip(np.minimum(unused_G, until_G - enter_G - held_up_G), 0.0, None)
    done_G = times.leave_SG[-1]
    last_G = np.full(len(done_G), done_G.argmax())
    end_idle_G = done_G.max() - done_G
    for index, seconds_G in _held_up(exchanges, times, idle_SG, last_G, done_G, done_G[last_G]):
        end_fabric_SG[index] += seconds_G
        end_idle_G = end_idle_G - seconds_G
    end_fabric_SG[exchanges] += _of_no_rank(exchanges, times)[:, None]
    return Waits(idle_SG=idle_SG, end_idle_G=np.clip(end_idle_G, 0.0, None), end_fabric_SG=end_fabric_SG)


def last_peer(exchange: Exchange, enter_G: Float) -> Int:
    """Find which of those whose bytes each rank expects enters last [G]; behind a barrier, which of its EP group.

    It is the rank itself where none of them enters later.
    """
    flows, n_ranks = exchange.flows, len(enter_G)
    order_G = np.argsort(enter_G, kind="stable")
    place_G = np.empty(n_ranks, np.int64)
    place_G[order_G] = np.arange(n_ranks)
    last_G = place_G.copy()
    if exchange.barrier:
        last_K = np.full(int(exchange.group_G.max(initial=0)) + 1, -1)
        np.maximum.at(last_K, exchange.group_G, place_G)
        last_G = last_K[exchange.group_G]
    else:
        waited_F = flows.waiter_F >= 0
        np.maximum.at(last_G, flows.waiter_F[waited_F], _last_starter(exchange, place_G)[waited_F])
    peer_G = order_G[last_G]
    return np.asarray(np.where(enter_G[peer_G] > enter_G, peer_G, np.arange(n_ranks)), np.int64)


def _last_starter(exchange: Exchange, place_G: Int) -> Int:
    """The place, in the order of entry, of the last rank that has to enter before a flow can start [F]."""
    flows = exchange.flows
    parents_F = np.diff(flows.parent_offsets_F1)
    fed_R = np.repeat(np.arange(flows.n), parents_F)
    place_F = np.where(parents_F > 0, -1, place_G[flows.source_rank_F])
    before_F = np.zeros(0, np.int64)
    while not np.array_equal(before_F, place_F):  # as often as relays follow one another
        before_F = place_F.copy()
        np.maximum.at(place_F, fed_R, before_F[flows.parent_R])
    return np.asarray(place_F, np.int64)


def _held_up(
    exchanges: Sequence[int], times: StepTimes, idle_SG: Float, peer_G: Int, from_G: Float, until_G: Float
) -> Iterator[tuple[int, Float]]:
    """How long each of the exchanges, waiting for peers in it apart, holds up each rank's peer between two moments [G].

    Goes back from the last of them. Within one, a rank's idle time is taken to come first.
    """
    for index in reversed(exchanges):
        leave_G = times.leave_SG[index, peer_G]
        if (leave_G <= from_G).all():
            return
        busy_from_G = times.enter_SG[index, peer_G] + idle_SG[index, peer_G]
        yield index, np.clip(np.minimum(leave_G, until_G) - np.maximum(busy_from_G, from_G), 0.0, None)


def _of_no_rank(exchanges: Sequence[int], times: StepTimes) -> Float:
    """Seconds of each exchange that no rank is known to spend in it, and that are not made up for later [exchange]."""
    over = times.last_S[exchanges] - times.leave_SG[exchanges].max(axis=1)
    if len(over):
        over[-1] = times.last_S[-1] - times.leave_SG[-1].max()
    return np.diff(np.minimum.accumulate(over[::-1])[::-1], prepend=0.0)
