"""FSMoE in training: an MoE layer in chunks, forward or backward, a stream for each network.

What goes to the experts, forward tokens and backward the gradients of what was combined, goes
between domains and is spread inside them; what comes back is gathered inside and goes home between
them. Between domains all chunks are sent before the first comes home; inside, a chunk is spread
before the one before it is gathered.

Times on even work are those of `moecast.sim.schedules.fsmoe`, of each pass.

Source: FSMoE, arXiv 2501.10714 (co-scheduling of intra- and inter-node communication), forward and
backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from moecast.errors import MoecastError
from moecast.sim.collectives.legs import Leg
from moecast.sim.program import COMPUTE, HOST, Compute, Exchange, Task
from moecast.sim.schedules.fsmoe import BETWEEN, INSIDE
from moecast.sim.schedules.lay import BEFORE, Places

NAME, MOST_DEGREE = "fsmoe", 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One chunk's way through the experts of a layer.

    Parameters
    ----------
    there, back
        What goes to the experts and comes back, leg by leg; what is on no stream stays there.
    experts
        What they compute.
    """

    there: tuple[tuple[Task, str | None], ...]
    experts: Compute
    back: tuple[tuple[Task, str | None], ...]


def legs_on_streams(tasks: Iterable[Task], legs: Iterable[tuple[Leg, ...]]) -> Iterator[tuple[Task, str | None]]:
    """Give exchanges leg by leg with the streams of their networks; a wait on no stream, or a launch, as it is."""
    for task, parts in zip(tasks, legs, strict=True):
        if task.stream in (None, HOST):
            yield task, task.stream
        else:
            yield from ((part.exchange, BETWEEN if part.between else INSIDE) for part in parts)


def co_scheduled(chunks: Sequence[Chunk], beside: Iterable[Compute]) -> Iterator[Task]:
    """Lay the chunks of one layer and pass; `beside` runs while the first of them travel.

    Gives tasks that name what they wait for by how far before them it stands; the last one is
    behind all exchanges.
    """
    laid = Places()
    ways = [_Way(laid, chunk) for chunk in chunks]
    for way in ways:
        way.send()
    last = BEFORE
    for task in beside:
        last = laid.put(task, last, stream=COMPUTE)
    ways[0].spread()
    for way, ahead in zip_longest(ways, ways[1:]):
        if ahead is not None:
            ahead.spread()
        way.compute_and_return()
    yield from laid.tasks


class _Way:
    """A chunk under way."""

    def __init__(self, laid: Places, chunk: Chunk) -> None:
        self._laid, self._chunk, self._last = laid, chunk, BEFORE
        streams = [stream for _, stream in chunk.there]
        self._inside = streams.index(INSIDE) if INSIDE in streams else len(streams)

    def send(self) -> None:
        self._put(self._chunk.there[: self._inside])

    def spread(self) -> None:
        self._put(self._chunk.there[self._inside :])

    def compute_and_return(self) -> None:
        self._put(((self._chunk.experts, COMPUTE), *self._chunk.back))

    def _put(self, tasks: Iterable[tuple[Task, str | None]]) -> None:
        for task, stream in tasks:
            self._last = self._laid.put(task, self._last, stream=stream)


def degree_of(name: str) -> int:
    """Chunks of an MoE layer: 1 of ``sequential``, D of ``fsmoe:D``.

    Raises
    ------
    MoecastError
        Neither of them.
    """
    kind, _, degree = name.partition(":")
    if name == "sequential":
        return 1
    if kind == NAME and degree.isdecimal() and 1 < int(degree) <= MOST_DEGREE:
        return int(degree)
    rule = f"sequential, or {NAME}:D with D from 2 to {MOST_DEGREE}"
    raise MoecastError(rule, field="moe_schedule", value=name)


def turn_of(tasks: Sequence[Task]) -> tuple[int, int] | None:
    """Where the network between domains has nothing to do in a layer's last pass: before its way back, and after it.

    Places of the first exchange that comes back, and of the last one.
    """
    between = [place for place, task in enumerate(tasks) if isinstance(task, Exchange) and task.stream == BETWEEN]
    turns = [there for before, there in pairwise(between) if tasks[before].kind != tasks[there].kind]
    return (turns[-1], between[-1]) if turns else None
