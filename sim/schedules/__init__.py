"""Schedules: the order in which ranks go through the stages of a step.

To add one: a file with a class that satisfies `Schedule`, and an entry in `SCHEDULES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from moecast.errors import MoecastError
from moecast.sim.forward import ForwardPass
from moecast.sim.program import Task
from moecast.sim.schedules.sequential import Sequential


class Schedule(Protocol):
    """An order of stages; its docstring says which engine runs it."""

    @property
    def name(self) -> str:
        """What plans call it."""

    def stages(self, step: ForwardPass) -> Iterator[Task]:
        """Order a step's stages: a generator that reads like the timeline it makes."""


SCHEDULES: tuple[Schedule, ...] = (Sequential(),)


def find_schedule(name: str) -> Schedule:
    """Find a schedule by name.

    Raises
    ------
    MoecastError
        There is none.
    """
    for schedule in SCHEDULES:
        if schedule.name == name:
            return schedule
    raise MoecastError(f"one of {', '.join(s.name for s in SCHEDULES)}", field="schedule", value=name)


__all__ = ["SCHEDULES", "Schedule", "find_schedule"]
