"""Points of a sweep on several cores: processes that end when the one that started them does, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moecast.processes import Workers

if TYPE_CHECKING:
    from moecast.cli.asked import Asked

FEW_POINTS = 8
"""A process takes some seconds to start: fewer points than this are answered by one."""
OF_THE_PLAN = (
    "plan", "ep", "sequence_parallel", "context_exchange", "context_split", "slots_per_rank", "dispatch",
    "replica_rule", "schedule", "microbatches", "network", "fluid_steps", "memory_fraction", "gains",
)  # fmt: skip
"""Fields that no input depends on: points that differ in these only share what was read."""

_read: dict[Any, Any] = {}


def jobs_for(points: int, asked: int | None) -> int:
    """How many processes answer so many points; `asked` None: one for each core, where that pays."""
    if asked is not None:
        return max(1, min(asked, points))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, points) if points >= FEW_POINTS else 1


def answered(
    asked: Asked, points: Sequence[tuple[int, Mapping[str, Any]]], *, jobs: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answer points, each as soon as it is done: its number, and its prediction or why there is none, as JSON."""
    _read.clear()
    with Workers(asked, jobs) as workers:
        yield from (answer for _, answer in workers.as_done(answer_one, points))


def answer_one(asked: Asked, point: tuple[int, Mapping[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Answer a point in this process, which keeps the last inputs for the next one: its number, and as `answered`."""
    from moecast.cli.inputs import read_inputs, read_question
    from moecast.errors import MoecastError
    from moecast.sim import simulate_question

    number, changed = point
    try:
        changed_asked = asked.with_(**changed)
        key = changed_asked.with_(**dict.fromkeys(OF_THE_PLAN))
        if key not in _read:  # the last inputs, which the next points may share
            _read.clear()
            _read[key] = read_inputs(changed_asked, quiet=True)
        found = simulate_question(read_question(changed_asked, _read[key]))
    except MoecastError as error:
        return number, {"prediction": None, "refused": str(error)}
    return number, {"prediction": found.to_json(), "refused": None}
