"""The Workload: which tokens of a trace are in flight together, step by step.

Axes: T token, G DP rank, S sequence of the trace, Q place in the drawing order, W step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from moecast.arrays import index
from moecast.errors import MoecastError
from moecast.sim import drawing, pools
from moecast.sim.layout import MOST_RANKS
from moecast.sim.step import PHASES, Step
from moecast.traces import PHASES as TRACE_PHASES

if TYPE_CHECKING:
    from moecast.traces import RoutingTrace

Int = npt.NDArray[np.int64]

MOST_SEED = 2**63 - 1
"""Searches keep the state of their random numbers in 64 bits."""

StepsMode = Literal["drawn", "as-recorded"]
STEPS_MODES: tuple[str, ...] = get_args(StepsMode)

__all__ = ["PHASES", "STEPS_MODES", "Step", "Workload", "draw_steps", "recorded_steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is in flight: how many tokens on each rank, of which texts, over how many steps.

    Parameters
    ----------
    phase
        `prefill` or `decode`: what is simulated.
    tokens_per_rank
        Prefill: tokens that each DP rank holds in each step. Decode: sequences on each DP rank, one token each.
        Steps as recorded hold what the run held.
    steps
        How many steps.
    context
        Decode: every token attends to this many keys; None: to its recorded position and all before it.
    seed
        Of the drawing.
    topics
        Weights by topic name: shares of the tokens (prefill) or sequences (decode). A tuple of names restricts
        without weighing. None: all sequences alike, those without a topic included.
    one_topic_per_step
        Each step holds one topic; topics take turns, by weight where there are weights.
    reuse
        Sequences may be drawn again when all have been drawn.
    steps_mode
        `drawn`, or `as-recorded`: the trace's own steps and source ranks.
    from_phase
        Draw from the trace's rows of this phase instead; results say so. None: of `phase`.

    Raises
    ------
    MoecastError
        A value out of range.
    """

    phase: str
    tokens_per_rank: int
    steps: int = 8
    context: int | None = None
    seed: int = 0
    topics: Mapping[str, float] | tuple[str, ...] | None = None
    one_topic_per_step: bool = False
    reuse: bool = False
    steps_mode: StepsMode = "drawn"
    from_phase: str | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.phase not in PHASES:
            raise MoecastError(f"one of {', '.join(PHASES)} can be simulated", field="phase", value=self.phase)
        if self.from_phase is not None and self.from_phase not in TRACE_PHASES:
            raise MoecastError(f"one of {', '.join(TRACE_PHASES)}", field="from_phase", value=self.from_phase)
        if self.steps_mode not in STEPS_MODES:
            raise MoecastError(f"one of {', '.join(STEPS_MODES)}", field="steps", value=self.steps_mode)
        for field, least in (("tokens_per_rank", 1), ("steps", 1), ("seed", 0), ("context", 1)):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise MoecastError(f"must be a whole number of at least {least}", field=field, value=value)
        if self.seed > MOST_SEED:
            raise MoecastError(f"must be at most {MOST_SEED}", field="seed", value=self.seed)
        if self.steps_mode == "as-recorded":
            for field in ("topics", "one_topic_per_step", "reuse"):
                if getattr(self, field):
                    raise MoecastError("not with steps as recorded", field=field, value=getattr(self, field))
        if self.context is not None and self.phase != "decode":
            raise MoecastError("only decode takes a context length", field="context", value=self.context)
        self._check_topics()

    def _check_topics(self) -> None:
        if isinstance(self.topics, Mapping):
            for topic, weight in self.topics.items():
                if not 0 <= weight < float("inf"):
                    raise MoecastError("a weight is finite and not negative", field=f"topics.{topic}", value=weight)
            if not 0 < sum(self.topics.values()) < float("inf"):
                raise MoecastError("at least one weight must be positive, and their sum finite", field="topics")
        elif self.topics is not None:
            object.__setattr__(self, "topics", tuple(self.topics))
            if not self.topics:
                raise MoecastError("names at least one topic", field="topics")

    @property
    def drawn_phase(self) -> str:
        """The phase of the trace's rows that are drawn."""
        return self.phase if self.from_phase is None else self.from_phase

    @property
    def label(self) -> str:
        """What an output says about the rows' origin; empty where they are of the simulated phase."""
        return "" if self.drawn_phase == self.phase else f"{self.phase} drawn from {self.drawn_phase} routing"


def draw_steps(trace: RoutingTrace, workload: Workload, *, ranks: int) -> list[Step]:
    """Decide which tokens are in flight together.

    Whole sequences are drawn, seeded, without replacement (docs/design.md, 6). Prefill fills every rank to exactly
    `tokens_per_rank`, cutting sequences into chunks that go on in the next step on the same rank. Decode takes
    successive positions of `tokens_per_rank` running sequences per rank, the first ones from a random place on.

    Parameters
    ----------
    ranks
        DP ranks that hold tokens.

    Raises
    ------
    MoecastError
        The trace holds nothing of the phase or a topic, or is too small: the line names the most that fits.
    """
    ranks = index("ranks", ranks, least=1, most=MOST_RANKS)
    if workload.steps_mode == "as-recorded":
        return recorded_steps(trace, workload, ranks=ranks)
    drawn = pools.make_pools(trace, workload)
    pool_W = pools.pool_of_each_step(workload, drawn)
    done = pools.draw_rows(drawn, pool_W, workload, ranks, workload.tokens_per_rank)
    if isinstance(done, int):
        recorded = trace.step_T is not None and trace.source_rank_T is not None
        raise pools.too_small(drawn, pool_W, workload, ranks, done, recorded=recorded)
    source_T = np.repeat(np.arange(ranks, dtype=np.int32), workload.tokens_per_rank)
    last = pools.last_rows(trace, [pool.sequences for pool in drawn])
    return [
        Step(
            token_T=row_T,
            source_T=source_T,
            context_T=_contexts(trace, workload, row_T),
            phase=workload.phase,
            topic=drawn[pool].topic,
            last_T=None if workload.phase == "decode" else last[row_T],
        )
        for row_T, pool in zip(done, pool_W, strict=True)
    ]


def fit_workload(trace: RoutingTrace, workload: Workload, *, ranks: int, steps_too: bool = False) -> Workload:
    """Take the most tokens per rank that the trace fills, at most the Workload's; with `steps_too`, fewer steps too.

    Where not even one token per rank fits, sequences are used again (`reuse`).

    Raises
    ------
    MoecastError
        The trace holds nothing of the phase or a topic.
    """
    ranks = index("ranks", ranks, least=1, most=MOST_RANKS)
    if workload.steps_mode == "as-recorded" or workload.reuse:
        return workload
    drawn = pools.make_pools(trace, workload)
    tried = range(workload.steps, 0, -1) if steps_too else (workload.steps,)
    for steps in tried:
        fewer = replace(workload, steps=steps)
        most = pools.most_that_fits(drawn, pools.pool_of_each_step(fewer, drawn), fewer, ranks)
        if most:
            return replace(fewer, tokens_per_rank=most)
    return replace(workload, reuse=True)


def recorded_steps(trace: RoutingTrace, workload: Workload, *, ranks: int) -> list[Step]:
    """Take the first steps of the trace as its run made them, with the ranks that held the tokens.

    Raises
    ------
    MoecastError
        The trace did not record steps or source ranks, or has fewer steps or more ranks.
    """
    if trace.step_T is None or trace.source_rank_T is None:
        missing = "step" if trace.step_T is None else "source_rank"
        raise MoecastError(
            f"the trace did not record {missing}; draw the steps instead", field="steps", value="as-recorded"
        )
    mask_T = pools.phase_mask(trace, workload)
    last = pools.last_rows(trace, [drawing.sequences_of(trace, mask_T)])
    row_T = np.flatnonzero(mask_T)
    most = int(trace.source_rank_T[row_T].max()) + 1
    if most > ranks:
        raise MoecastError(f"the trace was recorded on {most} ranks, the plan has {ranks}", field="source_rank")
    ids_W, step_T = np.unique(trace.step_T[row_T], return_inverse=True)
    if len(ids_W) < workload.steps:
        raise MoecastError(f"the trace has {len(ids_W)} recorded steps", field="steps", value=workload.steps)
    row_T = row_T[np.lexsort((trace.position_T[row_T], trace.sequence_T[row_T], trace.source_rank_T[row_T], step_T))]
    bounds = np.cumsum(np.bincount(step_T))[: workload.steps]
    return [
        Step(
            token_T=rows,
            source_T=trace.source_rank_T[rows].astype(np.int32),
            context_T=_contexts(trace, workload, rows),
            phase=workload.phase,
            last_T=None if workload.phase == "decode" else last[rows],
        )
        for rows in np.split(row_T, bounds)[: workload.steps]
    ]


def _contexts(trace: RoutingTrace, workload: Workload, row_T: Int) -> Int:
    if workload.context is not None:
        return np.full(len(row_T), workload.context, np.int64)
    return trace.position_T[row_T].astype(np.int64) + 1
