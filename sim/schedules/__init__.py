"""Schedules: how the tasks of a step are laid on streams.

To add one: a file with a class that satisfies `Schedule`, and an entry in `SCHEDULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from moecast.errors import MoecastError
from moecast.sim.context.rules import cuts_prompts
from moecast.sim.forward import ForwardPass
from moecast.sim.program import StepProgram, Task
from moecast.sim.schedules.chunked import MOST_DEGREE, Chunked
from moecast.sim.schedules.fsmoe import FsMoe
from moecast.sim.schedules.sequential import Sequential
from moecast.sim.schedules.shared_beside import SharedBeside
from moecast.sim.schedules.token_weave import TokenWeave
from moecast.sim.schedules.two_batch import TwoBatch

if TYPE_CHECKING:
    from moecast.sim.plan import Plan


class Schedule(Protocol):
    """How a step's tasks are laid on streams; its docstring says which engine does so, and its closed form."""

    @property
    def name(self) -> str:
        """What plans call it."""

    @property
    def in_sequence(self) -> bool:
        """Whether every task stands on one stream: certificates hold for such schedules only."""

    def supports(self, step: ForwardPass, /) -> str | None:
        """Say in one line why it cannot run a step; None where it can."""

    def tasks(self, step: ForwardPass) -> Iterator[Task]:
        """Lay a step's tasks: reads like the timeline that it makes."""


SCHEDULES: tuple[Schedule, ...] = (Sequential(), SharedBeside(), TwoBatch(), TokenWeave())
BY_DEGREE: dict[str, Callable[..., Schedule]] = {"chunked": Chunked, "fsmoe": FsMoe}
"""Those that take a number of chunks, after a colon."""


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
    kind, _, degree = name.partition(":")
    if kind in BY_DEGREE and degree.isdecimal() and 1 <= int(degree) <= MOST_DEGREE:
        return BY_DEGREE[kind](degree=int(degree))
    names = [*(schedule.name for schedule in SCHEDULES), *(f"{kind}:D" for kind in BY_DEGREE)]
    rule = f"one of {', '.join(names)} with D from 1 to {MOST_DEGREE}"
    raise MoecastError(rule, field="schedule", value=name)


def beside_in(plan: Plan, kernels: str) -> str | None:
    """Say what of a step under a plan stands beside other work.

    None where all of it is on one stream.

    `kernels`: of prefill or of decode. Certificates hold for steps on one stream only.
    """
    if not find_schedule(plan.schedule).in_sequence:
        return f"schedule {plan.schedule}"
    if cuts_prompts(plan, kernels) and plan.context_exchange != "all-gather":
        return f"context exchange {plan.context_exchange}"
    return None


def schedule_tasks(step: ForwardPass) -> list[Task]:
    """Lay a step's tasks by its plan's schedule.

    Raises
    ------
    MoecastError
        There is no such schedule, or it does not run this step.
    """
    schedule = find_schedule(step.placed.plan.schedule)
    why = schedule.supports(step)
    if why is not None:
        raise MoecastError(why, field="schedule", value=schedule.name)
    return list(schedule.tasks(step))


def program_of(step: ForwardPass) -> StepProgram:
    """Make the program of a step by its plan's schedule.

    Raises
    ------
    MoecastError
        As of `schedule_tasks`.
    """
    return step.program(schedule_tasks(step))


__all__ = [
    "BY_DEGREE",
    "SCHEDULES",
    "Chunked",
    "FsMoe",
    "Schedule",
    "beside_in",
    "find_schedule",
    "program_of",
    "schedule_tasks",
]
