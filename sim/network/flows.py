"""What every rung asks of a set of flows first: are its numbers usable, and who feeds whom.

Axes: F flow, J link, X (flow, link) pair, R (flow, parent) pair, C (flow, child) pair, G rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moecast.arrays import HUGE, TINY, index, numbers, whole_numbers
from moecast.compiled import entry, inner
from moecast.sim.program import Exchange, Float, Flows, Int, Int32, StepProgram, Task

MOST_RANKS = 2**31 - 1
PROBLEMS = (
    "",
    "bytes_F must be finite and at least 0",
    "latency_F, feed_delay_F and feed_tail_F must be finite and at least 0",
    "offsets_F1 and parent_offsets_F1 must rise from 0 to the number of pairs",
    "link_X must be an index of capacity_J",
    "share_X must be finite and above 0",
    "source_rank_F and destination_rank_F must be ranks, waiter_F a rank or -1",
    "parent_R must be another flow of the same exchange",
    "no flow may feed itself, through others either",
)


def check_program(program: StepProgram) -> None:
    """See that a program's arrays are usable, before compiled loops index with them.

    The flows of an exchange are checked when they are made (`filled`), which for many exchanges is only when they run.

    Raises
    ------
    ValueError, TypeError
        Names the task and the rule that it breaks.
    """
    index("n_ranks", program.n_ranks, least=1, most=MOST_RANKS)
    if not program.tasks:
        raise ValueError("tasks: a program has at least one")
    check_axis("capacity_J", program.capacity_J, "fi")
    numbers("capacity_J", program.capacity_J, positive=True)
    known: set[object] = set()  # arrays that many tasks share are looked at once
    for number, task in enumerate(program.tasks):
        if isinstance(task, Exchange):
            if id(task.group_R) not in known:
                check_axis(f"task {number}: group_R", task.group_R, "iu")
                if not np.all((task.group_R >= 0) & (task.group_R < len(task.group_R))):
                    raise ValueError(f"task {number}: group_R must count from 0 to at most the number of ranks - 1")
                known.add(id(task.group_R))
            _seconds(number, "setup_s", np.asarray(task.setup_s, np.float64))
        else:
            check_axis(f"task {number}: seconds_R", task.seconds_R, "fi")
            _seconds(number, "seconds_R", task.seconds_R)
        _check_place(number, task, program.n_ranks, known)


def _check_place(number: int, task: Task, n_ranks: int, known: set[object]) -> None:
    """See that a task's ranks are there, and that it waits for earlier tasks only."""
    if task.ranks_R is None:
        name = "group_R" if isinstance(task, Exchange) else "seconds_R"
        if task.n_ranks != n_ranks:
            raise ValueError(f"task {number}: {name} has shape ({task.n_ranks},), the program {n_ranks} ranks")
    elif (id(task.ranks_R), task.n_ranks) not in known:
        ranks_R = whole_numbers(f"task {number}: ranks_R", task.ranks_R, most=n_ranks - 1, shape=(task.n_ranks,))
        if len(np.unique(ranks_R)) < len(ranks_R):
            raise ValueError(f"task {number}: ranks_R names a rank twice")
        known.add((id(task.ranks_R), task.n_ranks))
    for name, places in (("after", task.after), ("after_all", task.after_all)):
        for place in places:
            if not 0 <= place < number:
                raise ValueError(f"task {number}: {name} = {place}: must be an earlier task")


def filled(exchange: Exchange, program: StepProgram) -> Flows:
    """Give an exchange's flows, checked.

    Raises
    ------
    ValueError, TypeError
        Names the rule that the flows break.
    """
    flows = exchange.fill()
    check_flows(flows, n_links=len(program.capacity_J), n_ranks=exchange.n_ranks)
    return flows


def check_flows(flows: Flows, *, n_links: int, n_ranks: int | None = None) -> None:
    """See that the arrays of one exchange's flows are usable.

    Raises
    ------
    ValueError, TypeError
        Names the rule that the flows break.
    """
    for name in Flows.__dataclass_fields__:
        floats = name.startswith(("bytes", "share", "latency", "feed"))
        check_axis(f"flows: {name}", getattr(flows, name), "fi" if floats else "i")
    lengths = {
        len(a)
        for a in (
            flows.source_rank_F,
            flows.destination_rank_F,
            flows.waiter_F,
            flows.latency_F,
            flows.feed_delay_F,
            flows.feed_tail_F,
            flows.bytes_F,
        )
    }
    if lengths != {flows.n} or {len(flows.offsets_F1), len(flows.parent_offsets_F1)} != {flows.n + 1}:
        raise ValueError("flows: arrays named _F must have one length, those named _F1 one more")
    if len(flows.link_X) != len(flows.share_X):
        raise ValueError("flows: link_X and share_X must have one length")
    problem = _problem(
        flows.bytes_F,
        flows.latency_F,
        flows.feed_delay_F,
        flows.feed_tail_F,
        flows.offsets_F1,
        flows.link_X,
        flows.share_X,
        flows.parent_offsets_F1,
        flows.parent_R,
        n_links,
    )
    problem = problem or _rank_problem(
        flows.source_rank_F, flows.destination_rank_F, flows.waiter_F, MOST_RANKS if n_ranks is None else n_ranks
    )
    if not problem and len(flows.parent_R) and len(parents_first(flows.parent_offsets_F1, flows.parent_R)) < flows.n:
        problem = 8
    if problem:
        raise ValueError(f"flows: {PROBLEMS[problem]}")


def check_axis(name: str, values: Any, kinds: str) -> None:
    """See that an array has one axis of numbers (kinds fi) or of whole ones (i, u), as loops are compiled for.

    Raises
    ------
    ValueError, TypeError
        It has not.
    """
    fits = isinstance(values, np.ndarray) and values.dtype.kind in kinds and values.dtype.itemsize in (4, 8)
    if not fits or not values.dtype.isnative:
        wanted = "numbers" if "f" in kinds else "whole numbers"
        raise TypeError(f"{name}: must be an array of {wanted}, not {getattr(values, 'dtype', type(values).__name__)}")
    if values.ndim != 1:
        raise ValueError(f"{name}: shape {list(values.shape)}, must have one axis")


def _seconds(task: int, name: str, values: Float) -> None:
    if not np.all((values >= 0) & (values <= HUGE)):
        raise ValueError(f"task {task}: {name} must be finite and at least 0")


@entry
def _problem(
    bytes_F: Float,
    latency_F: Float,
    delay_F: Float,
    tail_F: Float,
    offsets_F1: Int,
    link_X: Int32,
    share_X: Float,
    parents_F1: Int,
    parent_R: Int32,
    n_links: int,
) -> int:
    n = len(bytes_F)
    # First of all: the loops below index with these.
    if not (_rises(offsets_F1, len(link_X)) and _rises(parents_F1, len(parent_R))):
        return 3
    for f in range(n):
        if not (0 <= bytes_F[f] <= HUGE):  # said so that not a number fails, too
            return 1
        if not (0 <= latency_F[f] <= HUGE and 0 <= delay_F[f] <= HUGE and 0 <= tail_F[f] <= HUGE):
            return 2
        for r in range(parents_F1[f], parents_F1[f + 1]):
            if not (0 <= parent_R[r] < n and parent_R[r] != f):
                return 7
    for x in range(len(link_X)):
        if not 0 <= link_X[x] < n_links:
            return 4
        if not (TINY <= share_X[x] <= HUGE):
            return 5
    return 0


@entry
def _rank_problem(source_F: Int32, destination_F: Int32, waiter_F: Int32, n_ranks: int) -> int:
    for f in range(len(source_F)):
        if not (0 <= source_F[f] < n_ranks and 0 <= destination_F[f] < n_ranks and -1 <= waiter_F[f] < n_ranks):
            return 6
    return 0


@inner
def _rises(offsets_F1: Int, last: int) -> bool:
    for f in range(len(offsets_F1) - 1):
        if offsets_F1[f] > offsets_F1[f + 1]:
            return False
    return bool(offsets_F1[0] == 0 and offsets_F1[-1] == last)


@entry
def children(parents_F1: Int, parent_R: Int32) -> tuple[Int, Int]:
    """Turn the parents of each flow into the children of each, as a CSR."""
    n = len(parents_F1) - 1
    offsets_F1 = np.zeros(n + 1, np.int64)
    for r in range(len(parent_R)):
        offsets_F1[parent_R[r] + 1] += 1
    for f in range(n):
        offsets_F1[f + 1] += offsets_F1[f]
    # Counted first, then dealt out: two passes and no sorting, and children stand in the order of flows.
    child_C, put_F = np.empty(len(parent_R), np.int64), offsets_F1[:-1].copy()
    for f in range(n):
        for r in range(parents_F1[f], parents_F1[f + 1]):
            child_C[put_F[parent_R[r]]] = f
            put_F[parent_R[r]] += 1
    return offsets_F1, child_C


@entry
def parents_first(parents_F1: Int, parent_R: Int32) -> Int:
    """Order the flows so that parents stand before their children; those that feed themselves are left out."""
    n = len(parents_F1) - 1
    if not len(parent_R):
        return np.arange(n)
    offsets_F1, child_C = children(parents_F1, parent_R)
    order_F, unfed_F = np.empty(n, np.int64), np.empty(n, np.int64)
    ordered = 0
    for f in range(n):
        unfed_F[f] = parents_F1[f + 1] - parents_F1[f]
        if unfed_F[f] == 0:
            order_F[ordered] = f
            ordered += 1
    seen = 0
    # The order is its own queue: what has been appended is looked at in turn. Flows in a circle are never appended.
    while seen < ordered:
        f = order_F[seen]
        seen += 1
        for child in child_C[offsets_F1[f] : offsets_F1[f + 1]]:
            unfed_F[child] -= 1
            if unfed_F[child] == 0:
                order_F[ordered] = child
                ordered += 1
    return order_F[:ordered]
