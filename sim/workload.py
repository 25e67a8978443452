"""The Workload: which tokens of a trace are in flight together, step by step.

The steps themselves are drawn in `moecast.sim.drawn_steps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from moecast.errors import MoecastError
from moecast.sim.step import PHASES
from moecast.traces import PHASES as TRACE_PHASES

MOST_SEED = 2**63 - 1
"""Searches keep the state of their random numbers in 64 bits."""

StepsMode = Literal["drawn", "as-recorded"]
STEPS_MODES: tuple[str, ...] = get_args(StepsMode)


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
