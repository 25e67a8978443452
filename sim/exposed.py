"""What of a step's communication is exposed, and what runs beside compute of the same rank.

Axes: S task, G rank, R rank of a task, X (rank, task) pair: a stay, sorted by rank and start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moecast.compiled import entry
from moecast.sim.program import HOST, Compute, Exchange, Float, Int, Int32, StepProgram, StepTimes, Task


class Stays(NamedTuple):
    """Rank, start, end and task of each stay [X] in some tasks, sorted by rank and start, and where it stood before."""

    rank_X: Int32
    start_X: Float
    end_X: Float
    task_X: Int32
    order_X: Int32


class StaysByKind(NamedTuple):
    """Stays in what ranks compute, and in what they send each other."""

    work: Stays
    moving: Stays


def stays_by_kind(program: StepProgram, times: StepTimes, idle_S: Sequence[Float]) -> StaysByKind:
    """Sort the stays of a step, waiting for peers, `idle_S` at the beginning of each, apart."""
    computes = [index for index, task in enumerate(program.tasks) if isinstance(task, Compute)]
    exchanges = [index for index, task in enumerate(program.tasks) if _is_sent(task)]
    return StaysByKind(stays(program, times, idle_S, computes), stays(program, times, idle_S, exchanges))


def exposed_seconds(program: StepProgram, by_kind: StaysByKind) -> tuple[Float, float]:
    """Seconds of each task [S] over all ranks that nothing else hides, and of communication beside compute in all.

    Of a moment in which a rank does several things, the one that it computes has it; of several of
    a kind the one that began first. Waiting for peers has none.
    """
    work, moving = by_kind.work[:4], by_kind.moving[:4]
    spent_S = np.zeros(len(program.tasks))
    _sweep_compute(*work, spent_S)
    overlapped: float = _sweep_exchanges(*work[:3], *moving, spent_S)
    return spent_S, overlapped


def seconds_of_ranks(program: StepProgram, times: StepTimes, idle_S: Sequence[Float]) -> Float:
    """Seconds in which each rank [G] computes or communicates, each moment once; waiting for peers is neither."""
    at_work = [index for index, task in enumerate(program.tasks) if task.stream != HOST]
    rank_X, start_X, end_X, _, _ = stays(program, times, idle_S, at_work)
    spent_G = np.zeros(program.n_ranks)
    _sweep_ranks(rank_X, start_X, end_X, spent_G)
    return spent_G


def _is_sent(task: Task) -> bool:
    """Whether a task is communication, which what hosts do is not."""
    return isinstance(task, Exchange) and task.stream != HOST


def stays(program: StepProgram, times: StepTimes, idle_S: Sequence[Float], indices: list[int]) -> Stays:
    """Sort the stays in some tasks; before, all ranks of the first task came, and so on."""
    if not indices:
        return Stays(np.zeros(0, np.int32), np.zeros(0), np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.int32))
    rank_X = np.concatenate([program.ranks_of(program.tasks[i]) for i in indices]).astype(np.int32)
    task_X = np.repeat(np.array(indices, np.int32), [program.tasks[i].n_ranks for i in indices])
    start_X = np.concatenate([times.enter_S[i] + idle_S[i] for i in indices])
    order = np.lexsort((task_X, start_X, rank_X)).astype(np.int32)
    # One after another, so that no array is there twice: there are tens of millions of stays.
    rank_X, task_X, start_X = rank_X[order], task_X[order], start_X[order]
    end_X = np.concatenate([times.leave_S[i] for i in indices])[order]
    return Stays(rank_X, start_X, end_X, task_X, order)


@entry
def _sweep_ranks(rank_X: Int, start_X: Float, end_X: Float, spent_G: Float) -> None:
    until = 0.0
    for x in range(len(rank_X)):
        if x == 0 or rank_X[x] != rank_X[x - 1]:
            until = 0.0
        start = max(start_X[x], until)
        if end_X[x] > start:
            spent_G[rank_X[x]] += end_X[x] - start
            until = end_X[x]


@entry
def _sweep_compute(rank_X: Int, start_X: Float, end_X: Float, task_X: Int, spent_S: Float) -> None:
    until = 0.0
    for x in range(len(rank_X)):
        if x == 0 or rank_X[x] != rank_X[x - 1]:
            until = 0.0
        start = max(start_X[x], until)
        if end_X[x] > start:
            spent_S[task_X[x]] += end_X[x] - start
            until = end_X[x]


@entry
def _sweep_exchanges(
    rank_W: Int, start_W: Float, end_W: Float, rank_X: Int, start_X: Float, end_X: Float, task_X: Int, spent_S: Float
) -> float:
    """Give each exchange its exposed seconds; returns those beside compute."""
    overlapped, until = 0.0, 0.0
    first = 0  # the first compute of this rank that may not be over yet
    for x in range(len(rank_X)):
        if x == 0 or rank_X[x] != rank_X[x - 1]:
            until = 0.0
            while first < len(rank_W) and rank_W[first] < rank_X[x]:
                first += 1
        at = max(start_X[x], until)
        if end_X[x] <= at:
            continue
        # Time before `at` is settled for this rank, so computes that are over by then are never
        # asked again.
        while first < len(rank_W) and rank_W[first] == rank_X[x] and end_W[first] <= at:
            first += 1
        w, open_from = first, at
        while w < len(rank_W) and rank_W[w] == rank_X[x] and start_W[w] < end_X[x]:
            if start_W[w] > open_from:
                spent_S[task_X[x]] += start_W[w] - open_from
            hidden = min(end_W[w], end_X[x]) - max(start_W[w], open_from)
            if hidden > 0:
                overlapped += hidden
            open_from = max(open_from, min(end_W[w], end_X[x]))
            w += 1
        if end_X[x] > open_from:
            spent_S[task_X[x]] += end_X[x] - open_from
        until = end_X[x]
    return overlapped
