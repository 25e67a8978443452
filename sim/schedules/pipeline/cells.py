"""What pipeline schedules are made of: cells, which are one pass of one microbatch through one chunk of the model.

A *chunk* is what one rank of the pipeline holds of the model in one piece (a *virtual stage* where
it holds several). The passes: F forward, B the gradient of the input, W the gradient of the
weights, BW both in one, as a backward that nobody split.

Axes: C chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moecast.errors import MoecastError

MOST_CELLS = 2_000_000
"""Forwards that a step may have: 1,024 ranks with nearly 2,000 microbatches."""

Pass = Literal["F", "B", "W", "BW"]

Beside = Literal["nothing", "collectives", "microbatch"]
"""What a cell's work runs beside: collectives that take SMs, or another microbatch, under whose compute it sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The numbers of a pipeline.

    Parameters
    ----------
    pp
        Its ranks.
    virtual
        Pieces of the model that each rank holds.
    microbatches
        How many go through in a step.
    """

    pp: int
    virtual: int = 1
    microbatches: int

    def __str__(self) -> str:
        return f"pp = {self.pp}, virtual = {self.virtual}, microbatches = {self.microbatches}"

    def __post_init__(self) -> None:
        for field in ("pp", "virtual", "microbatches"):
            number = getattr(self, field)
            if not (isinstance(number, int) and number >= 1):
                raise MoecastError("a whole number, at least 1", field=field, value=number)
        if self.pp * self.virtual * self.microbatches > MOST_CELLS:
            rule = f"at most {MOST_CELLS} passes: pp · virtual · microbatches"
            raise MoecastError(rule, field="pp", value=self.pp)


@dataclass(frozen=True, slots=True)
class Cell:
    """One pass of one microbatch through one chunk."""

    kind: Pass
    chunk: int
    microbatch: int

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Itself."""
        return (self,)

    def __str__(self) -> str:
        return f"{self.kind} of microbatch {self.microbatch} in chunk {self.chunk}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A forward and a backward of two microbatches in one: what one sends goes under what the other computes."""

    forward: Cell
    backward: Cell

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Its forward, then its backward."""
        return (self.forward, self.backward)

    def __str__(self) -> str:
        return f"{self.forward} with {self.backward}"


Block = Cell | Pair
"""What a rank does in one piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Where the chunks of a pipeline stand, and the ways that microbatches take through them.

    Parameters
    ----------
    rank_C
        The pipeline rank of each chunk.
    routes
        The chunks from the model's first to its last layer, once for each copy of the model;
        microbatch m takes route m mod their number.
    """

    rank_C: tuple[int, ...]
    routes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if sorted(chunk for route in self.routes for chunk in route) != list(range(len(self.rank_C))):
            raise MoecastError("every chunk once in the routes", field="routes", value=self.routes)
        if len({len(route) for route in self.routes}) != 1:
            raise MoecastError("routes of the same length", field="routes", value=self.routes)
        if set(self.rank_C) != set(range(self.n_ranks)):
            raise MoecastError("every rank from 0 holds a chunk", field="rank_C", value=self.rank_C)

    @property
    def n_ranks(self) -> int:
        """Ranks of the pipeline."""
        return max(self.rank_C) + 1

    @property
    def folded(self) -> bool:
        """Whether a way goes through the ranks and back, so that the first has the model's first and last layers."""
        down = tuple(range(self.n_ranks))
        return self.n_ranks > 1 and self.rank_C == (*down, *reversed(down)) and len(self.routes) == 1

    @property
    def stage_C(self) -> tuple[int, ...]:
        """Which piece of the model each chunk is, counted from its first layer."""
        stage_of = {chunk: stage for route in self.routes for stage, chunk in enumerate(route)}
        return tuple(stage_of[chunk] for chunk in range(len(self.rank_C)))

    @property
    def before_C(self) -> tuple[int, ...]:
        """The chunk that each gets its input from; −1 for a first one."""
        before = {chunk: route[i - 1] if i else -1 for route in self.routes for i, chunk in enumerate(route)}
        return tuple(before[chunk] for chunk in range(len(self.rank_C)))

    @property
    def behind_C(self) -> tuple[int, ...]:
        """The chunk that each gives its output to; −1 for a last one."""
        behind = {
            chunk: route[i + 1] if route[i + 1 :] else -1 for route in self.routes for i, chunk in enumerate(route)
        }
        return tuple(behind[chunk] for chunk in range(len(self.rank_C)))

    def route_of(self, microbatch: int) -> tuple[int, ...]:
        """The chunks that a microbatch goes through, in this order."""
        return self.routes[microbatch % len(self.routes)]


class Turns:
    """The next microbatch of each pass in one chunk of one rank, as a schedule deals them out.

    Parameters
    ----------
    chunk
        The chunk.
    first, every
        Its microbatches: first, first + every, ….
    """

    def __init__(self, chunk: int, *, first: int = 0, every: int = 1) -> None:
        self.chunk, self.first, self.every = chunk, first, every
        self._forwards = self._backwards = self._weights = 0

    def _cell(self, kind: Pass, turn: int) -> Cell:
        return Cell(kind, self.chunk, self.first + turn * self.every)

    def forward(self) -> Cell:
        """The next F."""
        self._forwards += 1
        return self._cell("F", self._forwards - 1)

    def backward(self) -> Cell:
        """The next backward, in one piece."""
        self._backwards += 1
        self._weights += 1
        return self._cell("BW", self._backwards - 1)

    def inputs(self) -> Cell:
        """The next B."""
        self._backwards += 1
        return self._cell("B", self._backwards - 1)

    def weights(self) -> Cell:
        """The next W."""
        self._weights += 1
        return self._cell("W", self._weights - 1)

    @property
    def owed(self) -> int:
        """How many B have no W yet."""
        return self._backwards - self._weights
