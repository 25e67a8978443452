"""The Workload: which tokens of a trace are in flight together, step by step.

The steps themselves are drawn in `moecast.sim.drawn_steps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from moecast.errors import MoecastError
from moecast.sim.parts import PARTS_OF, PHASES, Part
from moecast.sim.step import Step
from moecast.traces import PHASES as TRACE_PHASES

MOST_SEED = 2**63 - 1
"""Searches keep the state of their random numbers in 64 bits."""

MOST_DRAFTS = 64

StepsMode = Literal["drawn", "as-recorded"]
RequestPlacement = Literal["any", "topic"]
REQUEST_PLACEMENTS: tuple[str, ...] = get_args(RequestPlacement)
STEPS_MODES: tuple[str, ...] = get_args(StepsMode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is in flight: how many tokens on each rank, of which texts, over how many steps.

    Parameters
    ----------
    phase
        `prefill`, `decode`, or `mixed`: chunks of prompts beside running sequences, in every step.
    tokens_per_rank
        Prefill: tokens that each DP rank holds in each step. Decode and mixed: sequences on each DP
        rank, one token each. Steps as recorded hold what the run held.
    prefill_tokens_per_rank
        Mixed: tokens of prompts on each DP rank beside those; 0: none.
    speculate, acceptance
        Decode and mixed: tokens that are drafted for each sequence and verified in the step with
        its own, and the chance that a draft is accepted where those before it were. Drafts are
        routed like the tokens that follow in the trace; what drafting itself costs is not counted.
    steps
        How many steps.
    context
        Decode: every token attends to this many keys; None: to its recorded position and all before
        it.
    seed
        Of the drawing.
    topics
        Weights by topic name: shares of the tokens (prefill) or sequences (decode). A tuple of
        names restricts without weighing. None: all sequences alike, those without a topic included.
    one_topic_per_step
        Each step holds one topic; topics take turns, by weight where there are weights.
    reuse
        Sequences may be drawn again when all have been drawn.
    steps_mode
        `drawn`, or `as-recorded`: the trace's own steps and source ranks.
    request_placement
        Which DP rank a drawn sequence runs on: ``any``, the one with fewest tokens, or ``topic``:
        ranks are shared out to topics by their tokens, in order, and a sequence goes to one of its
        topic's as long as that has room.
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
    prefill_tokens_per_rank: int = 0
    speculate: int = 0
    acceptance: float = 0.0
    request_placement: RequestPlacement = "any"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.phase not in PHASES:
            rule = f"one of {', '.join(PHASES)} can be simulated"
            raise MoecastError(rule, field="phase", value=self.phase)
        if self.from_phase is not None and self.from_phase not in TRACE_PHASES:
            rule = f"one of {', '.join(TRACE_PHASES)}"
            raise MoecastError(rule, field="from_phase", value=self.from_phase)
        self._check_parts()
        least_tokens = 0 if self.prefill_tokens_per_rank else 1
        for field, least in (
            ("tokens_per_rank", least_tokens),
            ("steps", 1),
            ("seed", 0),
            ("context", 1),
            ("prefill_tokens_per_rank", 0),
            ("speculate", 0),
        ):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                rule = f"must be a whole number of at least {least}"
                raise MoecastError(rule, field=field, value=value)
        if self.seed > MOST_SEED:
            raise MoecastError(f"must be at most {MOST_SEED}", field="seed", value=self.seed)
        if self.steps_mode == "as-recorded":
            for field in ("topics", "one_topic_per_step", "reuse", "request_placement"):
                if getattr(self, field) not in (None, False, "any"):
                    rule = "not with steps as recorded"
                    raise MoecastError(rule, field=field, value=getattr(self, field))
        self._check_drafts()
        self._check_topics()
        self._check_names()

    def _check_parts(self) -> None:
        """Refuse what only another part has."""
        parts = PARTS_OF[self.phase]
        if self.context is not None and Part.DECODE not in parts:
            raise MoecastError("only decode takes a context length", field="context", value=self.context)
        if len(parts) == 1 and self.prefill_tokens_per_rank:
            rule = "stands beside running sequences, in phase mixed"
            raise MoecastError(rule, field="prefill_tokens_per_rank", value=self.prefill_tokens_per_rank)
        if len(parts) > 1 and self.steps_mode == "as-recorded":
            raise MoecastError("recorded steps are of one phase", field="phase", value=self.phase)

    def _check_names(self) -> None:
        if self.request_placement not in REQUEST_PLACEMENTS:
            rule = f"one of {', '.join(REQUEST_PLACEMENTS)}"
            raise MoecastError(rule, field="request_placement", value=self.request_placement)
        if self.steps_mode not in STEPS_MODES:
            raise MoecastError(f"one of {', '.join(STEPS_MODES)}", field="steps", value=self.steps_mode)

    def _check_drafts(self) -> None:
        if self.speculate and (Part.DECODE not in PARTS_OF[self.phase] or self.steps_mode == "as-recorded"):
            raise MoecastError("drafts are for drawn steps that decode", field="speculate", value=self.speculate)
        if self.speculate > MOST_DRAFTS:
            raise MoecastError(f"at most {MOST_DRAFTS} drafts", field="speculate", value=self.speculate)
        if not 0 <= self.acceptance <= 1:
            raise MoecastError("a chance, from 0 to 1", field="acceptance", value=self.acceptance)
        if self.acceptance and not self.speculate:
            rule = "is of drafts, and there are none: ask for some (speculate)"
            raise MoecastError(rule, field="acceptance", value=self.acceptance)

    def _check_topics(self) -> None:
        if isinstance(self.topics, Mapping):
            for topic, weight in self.topics.items():
                if not 0 <= weight < float("inf"):
                    rule = "a weight is finite and not negative"
                    raise MoecastError(rule, field=f"topics.{topic}", value=weight)
            if not 0 < sum(self.topics.values()) < float("inf"):
                rule = "at least one weight must be positive, and their sum finite"
                raise MoecastError(rule, field="topics")
        elif self.topics is not None:
            object.__setattr__(self, "topics", tuple(self.topics))
            if not self.topics:
                raise MoecastError("names at least one topic", field="topics")

    @property
    def parts(self) -> tuple[Workload, ...]:
        """The Workloads whose steps stand beside each other: of a mixed one its prefill and its decode part."""
        if len(PARTS_OF[self.phase]) == 1:
            return (self,)
        alone: dict[str, Any] = {"prefill_tokens_per_rank": 0}
        prompts: dict[str, Any] = {"tokens_per_rank": self.prefill_tokens_per_rank, "context": None}
        no_drafts: dict[str, Any] = {"speculate": 0, "acceptance": 0.0}
        parts = []
        if self.prefill_tokens_per_rank:
            parts.append(replace(self, **alone, **prompts, **no_drafts, phase=str(Part.PREFILL)))
        if self.tokens_per_rank:
            parts.append(replace(self, **alone, phase=str(Part.DECODE)))
        return tuple(parts)

    def with_parts(self, parts: Sequence[Workload]) -> Workload:
        """Put changed parts in the place of `parts`."""
        if len(PARTS_OF[self.phase]) == 1:
            return parts[0]
        of = {part.kernels: part for part in parts}
        prompts, running = of.get(Part.PREFILL), of.get(Part.DECODE)
        return replace(
            self,
            tokens_per_rank=running.tokens_per_rank if running else 0,
            prefill_tokens_per_rank=prompts.tokens_per_rank if prompts else 0,
            steps=min(part.steps for part in parts),
            context=running.context if running else self.context,
            reuse=any(part.reuse for part in parts),
        )

    @property
    def kernels(self) -> Part:
        """Whose kernels run, as of `Step.kernels`."""
        first, *_ = self.parts
        return PARTS_OF[first.phase][0]

    @property
    def decoding(self) -> Workload | None:
        """Its decode part, if it has one."""
        return next((part for part in self.parts if part.kernels is Part.DECODE), None)

    @property
    def latency_kind(self) -> str:
        """What the time of a step is to a user; of steps that may decode, the time between tokens."""
        return PARTS_OF[self.phase][-1].latency_kind

    @property
    def accepted_per_step(self) -> float:
        """Tokens that a running sequence goes on by in a step, expected: 1 + a + … + a^k with k drafts.

        Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, arXiv
        2211.17192, eq. 1.
        """
        return float(sum(self.acceptance**draft for draft in range(self.speculate + 1)))

    def tokens_done(self, step: Step) -> float:
        """Tokens that a step is good for: those of prompts, and of each running sequence what is accepted."""
        if not self.speculate:
            return step.n_tokens
        drafted = step.n_tokens if step.decode_T is None else int(step.decode_T.sum())
        return step.n_tokens - drafted + drafted / (self.speculate + 1) * self.accepted_per_step

    @property
    def drawn_phase(self) -> str:
        """The phase of the trace's rows that are drawn."""
        return self.phase if self.from_phase is None else self.from_phase

    @property
    def label(self) -> str:
        """What an output says about the rows' origin; empty where they are of the simulated phase."""
        return "" if self.drawn_phase == self.phase else f"{self.phase} drawn from {self.drawn_phase} routing"
