"""Laying tasks on streams: chains of work that go through a step beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from moecast.sim.program import COMMUNICATION, COMPUTE, CONTEXT, Compute, Task


def settled(tasks: Iterable[Task]) -> Iterator[Task]:
    """Give the tasks of a program in order; those that name what stands so far before them wait for its place."""
    for place, task in enumerate(tasks):
        yield task if task.behind is None else replace(task, after=places_behind(task, place), behind=None)


def places_behind(task: Task, place: int) -> tuple[int, ...]:
    """The places of the tasks that one waits for which names them by how far before its own they stand."""
    return tuple(sorted(place - back for back in task.behind or ()))


BEFORE = -1
"""The place of the task before all of a list."""


class Places:
    """A list of tasks in the making that name each other by place, for whoever puts all of them somewhere."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def put(self, task: Task, *after: int, stream: str | None) -> int:
        """Append a task to a stream behind others; returns its place."""
        place = len(self.tasks)
        self.tasks.append(replace(task, stream=stream, behind=tuple(sorted({place - at for at in after}))))
        return place


class TaskList:
    """The tasks of a program in the making, in their order."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def put(self, task: Task, *, stream: str | None, after: Iterable[int] = ()) -> int:
        """Append a task to a stream, behind what it names itself or else behind `after`; returns its place."""
        own = task.behind is not None
        waits = {*task.after, *(places_behind(task, len(self.tasks)) if own else after)}
        self.tasks.append(replace(task, stream=stream, after=tuple(sorted(waits)), behind=None))
        return len(self.tasks) - 1


class Chain:
    """Work each part of which waits for the one before, such as one half batch's way through the layers.

    What it computes stands on stream "compute", what it sends on "communication"; chains on the
    same streams take turns there in the order in which they are put.

    Parameters
    ----------
    tasks
        The program that it is put into.
    microbatch
        Of its tasks.
    last
        The tasks that its first part waits for.
    """

    def __init__(self, tasks: TaskList, *, microbatch: int = -1, last: tuple[int, ...] = ()) -> None:
        self._tasks, self._microbatch = tasks, microbatch
        self.last = last
        """What the next part waits for."""

    def put(self, tasks: Task | Iterable[Task], *, stream: str | None = None) -> tuple[int, ...]:
        """Go on with one or more tasks, on another stream if one is named; returns what to wait for."""
        for task in (tasks,) if isinstance(tasks, Task) else tasks:
            usual = COMPUTE if isinstance(task, Compute) else COMMUNICATION
            usual = CONTEXT if task.stream == CONTEXT else usual
            marked = replace(task, microbatch=self._microbatch)
            self.last = (self._tasks.put(marked, stream=stream or usual, after=self.last),)
        return self.last

    def beside(self, tasks: Iterable[Task], *, after: tuple[int, ...]) -> None:
        """Put tasks that wait for an earlier part of the chain only; the next part waits for them, too."""
        last = after
        for task in tasks:
            stream = COMPUTE if isinstance(task, Compute) else COMMUNICATION
            last = (self._tasks.put(replace(task, microbatch=self._microbatch), stream=stream, after=last),)
        self.last = tuple(sorted({*self.last, *last}))

    def join(self, chains: Iterable[Chain]) -> None:
        """Let the next part wait for the ends of others, too."""
        self.last = tuple(sorted({*self.last, *(place for chain in chains for place in chain.last)}))
