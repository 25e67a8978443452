"""A surrogate of an iteration's cost: a rank's own work from tables, and what ranks do together from simulated steps.

What ranks do together is dispatch, experts, combine, sums over tensor-parallel ranks, and waiting
for each other. It depends on which part's kernels run, the tokens of all ranks, and how uneven
these are. It is simulated at the points of a grid over the two numbers, when an iteration first
comes near one, with tokens that route as the trace's do; several draws of a point stand for how
steps of one size differ. In between it is a line.

How far off it is, is measured on iterations of the run itself, which it has not seen: every so
often one is simulated with its own requests.

Axes: G DP rank, W iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim.parts import Part
from moecast.sim.serving.cost.engine_step import EngineStep, Piece, pieces_of
from moecast.sim.serving.cost.own_work import OwnWork
from moecast.sim.serving.cost.step_load import ROWS, StepLoad

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

RATIO = 1.25
UNEVEN = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
MOST_PROBE_TOKENS = 1 << 17
PROBE_KEYS = 512


@dataclass(slots=True, kw_only=True)
class Tried:
    """Iterations that were both simulated and estimated.

    Parameters
    ----------
    errors
        Relative, of the estimate, of each.
    """

    errors: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Of the size of errors; None where none was tried."""
        return float(np.median(np.abs(self.errors))) if self.errors else None

    @property
    def worst(self) -> float | None:
        """The largest of them."""
        return float(np.max(np.abs(self.errors))) if self.errors else None

    @property
    def bias(self) -> float | None:
        """Mean error, with its sign."""
        return float(np.mean(self.errors)) if self.errors else None


class SurrogateCost:
    """Estimates iterations, and simulates what it needs to.

    Parameters
    ----------
    engine
        What times steps.
    topic_Q
        The topic of each request.
    draws
        Simulated steps at each point of the grid; iterations take them in turn.
    swap_block_s
        Seconds that a block takes between a GPU and its host.
    prompt_s
        Seconds of the host, in the iteration that ends it, for each prompt beside what is
        simulated.
    iteration_s
        Seconds of every iteration beside.
    try_at
        Iterations of those that are asked for one by one that are simulated, too, to measure the
        error; none: 0.
    """

    def __init__(
        self,
        engine: EngineStep,
        topic_Q: Int,
        *,
        draws: int = 1,
        swap_block_s: float = 0.0,
        tries: int = 0,
        prompt_s: float = 0.0,
        iteration_s: float = 0.0,
    ) -> None:
        self._engine, self._topic_Q = engine, topic_Q
        self._draws, self._swap_block_s, self._prompt_s = draws, swap_block_s, prompt_s
        self._iteration_s = iteration_s
        self._own: dict[Part, OwnWork] = {}
        self._points: dict[tuple[Part, int, float], Float] = {}
        self._networks: dict[tuple[Part, int, float], float] = {}
        self._tries, self._asked, self._next_try = tries, 0, 4
        self.tried = Tried()
        self.simulated = 0
        self.network_s = self.total_s = 0.0

    @property
    def by_request(self) -> bool:
        """It does not ask who is in an iteration."""
        return False

    def seconds(self, load: StepLoad) -> float:
        """Seconds of one iteration."""
        self._asked += 1
        part = Part.DECODE if load.decodes_only else Part.PREFILL
        own_s = float(self._own_work(part).seconds_G(load).max())
        together_s, network_s = self._together(part, load, self._asked % self._draws)
        found_s = own_s + together_s
        self.total_s += found_s
        self.network_s += network_s
        if self._tries and self._asked >= self._next_try and load.scheduled_G:
            self._try(load, found_s)
        prompts_s = self._prompt_s * float(load.prompts_G.max())
        return found_s + prompts_s + self._iteration_s + load.swapped_blocks * self._swap_block_s

    def ahead(self, load: StepLoad, steps: int) -> Float:
        """Seconds of so many decode iterations in turn [W]."""
        own_W = self._own_work(Part.DECODE).decode_ahead_WG(load, steps).max(axis=1)
        drawn = [self._together(Part.DECODE, load, draw) for draw in range(self._draws)]
        turn_W = (self._asked + 1 + np.arange(steps)) % self._draws
        self._asked += steps
        found_W = own_W + np.array([seconds for seconds, _ in drawn])[turn_W]
        self.total_s += float(found_W.sum())
        self.network_s += drawn[0][1] * steps
        return np.asarray(found_W + self._iteration_s)

    def _own_work(self, part: Part) -> OwnWork:
        if part not in self._own:
            self._own[part] = OwnWork(placed=self._engine.placed(part))
        return self._own[part]

    def _together(self, part: Part, load: StepLoad, draw: int) -> tuple[float, float]:
        """Seconds that ranks spend together, and those of them in exchanges, from the grid's points around."""
        tokens_G = load.tokens_G
        total, most = int(tokens_G.sum()), int(tokens_G.max())
        uneven = most * len(tokens_G) / total
        found_s = network_s = 0.0
        for tokens, of_tokens in _around_tokens(total):
            for step, of_uneven in _around(uneven, UNEVEN):
                weight = of_tokens * of_uneven
                if weight > 0:
                    point_s, point_network_s = self._point(part, tokens, step)
                    found_s += weight * float(point_s[draw])
                    network_s += weight * point_network_s
        return found_s, network_s

    def _point(self, part: Part, tokens: int, uneven: float) -> tuple[Float, float]:
        """Seconds that ranks spend together at a point of the grid, by draw, and those in exchanges."""
        uneven = min(uneven, float(self._engine.ranks))
        key = (part, tokens, uneven)
        if key not in self._points:
            scale = max(1.0, tokens / MOST_PROBE_TOKENS)
            tokens_G = _spread(round(tokens / scale), self._engine.ranks, uneven)
            timed = [self._probe(part, tokens_G, draw) for draw in range(self._draws)]
            self._points[key] = scale * np.array([seconds for seconds, _ in timed])
            self._networks[key] = scale * float(np.mean([network_s for _, network_s in timed]))
        return self._points[key], self._networks[key]

    def _probe(self, part: Part, tokens_G: Int, draw: int) -> tuple[float, float]:
        """Simulate a step of so many tokens on each rank; what is not the rank's own work."""
        pieces: list[Piece] = []
        number = 7919 * (draw + 1)
        for rank, tokens in enumerate(tokens_G.tolist()):
            for first, size in PROBES[part](tokens):
                topic, decodes = self._topic(number), part is Part.DECODE
                pieces.append(Piece(rank=rank, request=number, topic=topic, first=first, tokens=size, decodes=decodes))
                number += 1
        timed = self._engine.time(self._engine.step(pieces))
        self.simulated += 1
        own_s = float(self._own_work(part).seconds_G(_load_of_pieces(pieces, len(tokens_G))).max())
        return timed.seconds - own_s, timed.network_s

    def _topic(self, number: int) -> int:
        return int(self._topic_Q[number % len(self._topic_Q)]) if len(self._topic_Q) else -1

    def _try(self, load: StepLoad, estimate_s: float) -> None:
        """Simulate an iteration of the run with its own requests, where all ranks say who is in it."""
        if len(self.tried.errors) >= self._tries or not _says_all(load):
            return
        timed = self._engine.time(self._engine.step(pieces_of(load.scheduled_G, self._topic_Q)))
        self.tried.errors.append(estimate_s / timed.seconds - 1)
        self._next_try = int(1 + self._asked * 1.7)


def _says_all(load: StepLoad) -> bool:
    named = np.array([int(scheduled.tokens.sum()) + scheduled.wasted for scheduled in load.scheduled_G])
    return bool((named == load.tokens_G).all())


def _load_of_pieces(pieces: list[Piece], ranks: int) -> StepLoad:
    numbers_GN = np.zeros((ranks, len(ROWS)), np.int64)
    for piece in pieces:
        keys = piece.tokens * piece.first + piece.tokens * (piece.tokens + 1) // 2
        row = (0, 0, 0, piece.tokens, keys) if piece.decodes else (piece.tokens, keys, int(piece.wanted), 0, 0)
        numbers_GN[piece.rank] += row
    return StepLoad.of(numbers_GN.T)


def _prompts(tokens: int) -> list[tuple[int, int]]:
    """Prompts of about a thousand tokens: the first one's place, and how many."""
    count = max(1, round(tokens / (2 * PROBE_KEYS)))
    return [(0, tokens // count + (index < tokens % count)) for index in range(count) if tokens]


def _running(tokens: int) -> list[tuple[int, int]]:
    """Running sequences with a token each."""
    return [(PROBE_KEYS, 1)] * tokens


PROBES = {Part.PREFILL: _prompts, Part.DECODE: _running}


def _spread(tokens: int, sources: int, uneven: float) -> Int:
    """Tokens of each rank: the first one has `uneven` times the mean, the others share the rest."""
    if sources == 1 or uneven <= 1:
        return _evenly(tokens, sources)
    most = min(tokens, max(1, round(uneven * tokens / sources)))
    return np.concatenate([[most], _evenly(tokens - most, sources - 1)])


def _evenly(tokens: int, parts: int) -> Int:
    each, more = divmod(tokens, parts)
    return np.full(parts, each) + (np.arange(parts) < more)


def _around_tokens(tokens: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """The points of a grid of whole numbers on both sides, with their weights."""
    low = 1
    while (high := max(low + 1, round(low * RATIO))) <= tokens:
        low = high
    part = (tokens - low) / (high - low)
    return (low, 1 - part), (high, part)


def _around(value: float, grid: tuple[float, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
    at = max(0, int(np.searchsorted(grid, value, side="right")) - 1)
    if at + 1 >= len(grid):
        return (grid[at], 1.0), (grid[at], 0.0)
    part = (value - grid[at]) / (grid[at + 1] - grid[at])
    return (grid[at], 1 - part), (grid[at + 1], part)
