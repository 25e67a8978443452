"""The Workload: which tokens of a trace are in flight together, step by step.

Axes: T token, G DP rank, S sequence of the trace, Q place in the drawing order, W step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim import drawing

if TYPE_CHECKING:
    from moecast.traces import RoutingTrace

Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

PHASES = ("prefill", "decode")
"""The phases that can be simulated; training's backward pass is not."""

StepsMode = Literal["drawn", "as-recorded"]
STEPS_MODES: tuple[str, ...] = get_args(StepsMode)

MAX_TOKENS = 1 << 31  # of one Workload; more is a mistake in the options


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is in flight: how many tokens on each rank, of which texts, over how many steps.

    Parameters
    ----------
    phase
        `prefill` or `decode`: what is simulated.
    tokens_per_rank
        Prefill: tokens that each DP rank holds in each step. Decode: sequences on each DP rank, one token each.
    steps
        How many steps.
    context
        Decode: every token attends to this many keys; None: to its recorded position and all before it.
    seed
        Of the drawing.
    topics
        Weights by topic name: shares of the tokens (prefill) or sequences (decode). A sequence of names restricts without
        weighing. None: all sequences alike, those without a topic included.
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
        if self.steps_mode not in STEPS_MODES:
            raise MoecastError(f"one of {', '.join(STEPS_MODES)}", field="steps", value=self.steps_mode)
        for field, least in (("tokens_per_rank", 1), ("steps", 1), ("seed", 0), ("context", 1)):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise MoecastError(f"must be a whole number of at least {least}", field=field, value=value)
        if self.context is not None and self.phase != "decode":
            raise MoecastError("only decode takes a context length", field="context", value=self.context)
        if isinstance(self.topics, Mapping):
            for topic, weight in self.topics.items():
                if not 0 <= weight < float("inf"):
                    raise MoecastError("a weight is finite and not negative", field=f"topics.{topic}", value=weight)
            if not any(self.topics.values()):
                raise MoecastError("at least one weight must be positive", field="topics")
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """The tokens of one forward pass.

    Parameters
    ----------
    token_T
        int64; each token's row in the trace. Sorted by rank; within a rank a sequence's tokens stand in order.
    source_T
        int32; the DP rank that holds it.
    context_T
        int64; how many keys it attends to, itself included.
    phase
        `prefill` or `decode`.
    topic
        The topic of all its tokens, where the step was drawn from one.
    """

    token_T: Int
    source_T: Int32
    context_T: Int
    phase: str
    topic: str | None = None

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.token_T)

    def tokens_G(self, ranks: int) -> Int:
        """Tokens on each rank."""
        return np.bincount(self.source_T, minlength=ranks)

    def context_sum_G(self, ranks: int, window: int | None = None) -> Int:
        """Keys that each rank's tokens attend to, at most `window` each."""
        keys_T = self.context_T if window is None else np.minimum(self.context_T, window)
        total_G = np.zeros(ranks, np.int64)
        np.add.at(total_G, self.source_T, keys_T)
        return total_G


def draw_steps(trace: RoutingTrace, workload: Workload, *, ranks: int) -> list[Step]:
    """Decide which tokens are in flight together.

    Whole sequences are drawn, seeded, without replacement (docs/design.md, 6). Prefill fills every rank to exactly
    `tokens_per_rank`, cutting sequences into chunks that go on in the next step on the same rank. Decode takes successive
    positions of `tokens_per_rank` running sequences per rank, the first ones from a random place on.

    Parameters
    ----------
    ranks
        DP ranks that hold tokens.

    Raises
    ------
    MoecastError
        The trace holds nothing of the phase or a topic, or is too small: the line names the most that fits.
    """
    if ranks < 1:
        raise ValueError(f"ranks = {ranks}: must be at least 1")
    if workload.steps_mode == "as-recorded":
        return recorded_steps(trace, workload, ranks=ranks)
    pools = _pools(trace, workload)
    pool_W = _pool_of_each_step(workload, pools)
    done = _draw(pools, pool_W, workload, ranks, workload.tokens_per_rank)
    if isinstance(done, int):
        raise _too_small(pools, pool_W, workload, ranks, done)
    source_T = np.repeat(np.arange(ranks, dtype=np.int32), workload.tokens_per_rank)
    return [
        Step(
            token_T=row_T,
            source_T=source_T,
            context_T=_contexts(trace, workload, row_T),
            phase=workload.phase,
            topic=pools[pool].topic,
        )
        for row_T, pool in zip(done, pool_W, strict=True)
    ]


def recorded_steps(trace: RoutingTrace, workload: Workload, *, ranks: int) -> list[Step]:
    """The first steps of the trace as its run made them, with the ranks that held the tokens.

    Raises
    ------
    MoecastError
        The trace did not record steps or source ranks, or has fewer steps or more ranks.
    """
    if trace.step_T is None or trace.source_rank_T is None:
        missing = "step" if trace.step_T is None else "source_rank"
        raise MoecastError(f"the trace did not record {missing}; draw the steps instead", field="steps", value="as-recorded")
    row_T = np.flatnonzero(_phase_mask(trace, workload))
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
        )
        for rows in np.split(row_T, bounds)[: workload.steps]
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pool:
    """Sequences that steps draw from: all that may be drawn, or those of one topic."""

    sequences: drawing.Sequences
    topic: str | None
    weight: float = 1.0
    weight_C: npt.NDArray[np.float64] | None = None  # None: alike
    seed: tuple[int, ...] = ()


def _pools(trace: RoutingTrace, workload: Workload) -> list[_Pool]:
    sequences = drawing.sequences_of(trace, _phase_mask(trace, workload))
    weights = _topic_weights(trace, workload)
    if weights is not None:
        weight_C = np.array([weights.get(name, 0.0) for name in trace.topics])
        allowed_S = np.append(weight_C > 0, False)[sequences.topic_S]
        sequences = sequences.only(allowed_S)
    if not workload.one_topic_per_step:
        present = np.unique(sequences.topic_S)
        only = trace.topics[present[0]] if len(present) == 1 and present[0] >= 0 else None
        mix_C = weight_C if weights is not None and isinstance(workload.topics, Mapping) else None
        return [_Pool(sequences=sequences, topic=only, weight_C=mix_C, seed=(workload.seed, 0))]
    pools = []
    for index, name in enumerate(trace.topics):
        weight = 1.0 if weights is None else weights.get(name, 0.0)
        own_S = sequences.topic_S == index
        if weight and own_S.any():
            part = sequences.only(own_S)
            pools.append(_Pool(sequences=part, topic=name, weight=weight, seed=(workload.seed, index + 1)))
    if not pools:
        raise MoecastError("the trace knows no topics", field="one_topic_per_step")
    return pools


def _phase_mask(trace: RoutingTrace, workload: Workload) -> npt.NDArray[np.bool_]:
    from moecast.traces import PHASES as TRACE_PHASES

    if workload.drawn_phase not in TRACE_PHASES:
        raise MoecastError(f"one of {', '.join(TRACE_PHASES)}", field="from_phase", value=workload.from_phase)
    mask_T: npt.NDArray[np.bool_] = trace.phase_T == TRACE_PHASES.index(workload.drawn_phase)
    if not mask_T.any():
        held = ", ".join(TRACE_PHASES[i] for i in np.unique(trace.phase_T)) or "no token"
        raise MoecastError(f"the trace holds {held} only", field="phase", value=workload.drawn_phase)
    return mask_T


def _topic_weights(trace: RoutingTrace, workload: Workload) -> dict[str, float] | None:
    topics = workload.topics
    if topics is None:
        return None
    weights = dict(topics) if isinstance(topics, Mapping) else dict.fromkeys(topics, 1.0)
    for name, weight in weights.items():
        known = name in trace.topics
        if not known or (weight and not (trace.topic_T == trace.topics.index(name)).any()):
            raise MoecastError(f"the trace's topics: {', '.join(trace.topics) or 'none'}", field="topics", value=name)
    return weights


def _pool_of_each_step(workload: Workload, pools: list[_Pool]) -> list[int]:
    """Pools take turns by weight: each step goes to the one that lags most behind its share, in a seeded order."""
    turn = np.random.default_rng((workload.seed, 0)).permutation(len(pools))
    share = np.array([pools[i].weight for i in turn]) / sum(pool.weight for pool in pools)
    given = np.zeros(len(pools))
    chosen = []
    for step in range(workload.steps):
        lagging = int(np.argmax(np.round(share * (step + 1) - given, 9)))
        given[lagging] += 1
        chosen.append(int(turn[lagging]))
    return chosen


def _draw(pools: list[_Pool], pool_W: list[int], workload: Workload, ranks: int, tokens: int) -> list[Int] | int:
    """Rows of each step; where a pool runs out, the number of steps before."""
    row_W: list[Int] = [np.empty(0, np.int64)] * len(pool_W)
    short = len(pool_W)
    for index, pool in enumerate(pools):
        steps = [step for step, chosen in enumerate(pool_W) if chosen == index]
        if not steps:
            continue
        at_WGB, done = _fill(pool, workload, ranks, tokens, len(steps))
        if done < len(steps):
            short = min(short, steps[done])
            continue
        for step, at_GB in zip(steps, at_WGB, strict=True):
            row_W[step] = pool.sequences.row_T[at_GB.ravel()]
    return short if short < len(pool_W) else row_W


def _fill(pool: _Pool, workload: Workload, ranks: int, tokens: int, steps: int) -> tuple[Int, int]:
    sequences, decode = pool.sequences, workload.phase == "decode"
    per_step = ranks * tokens
    if per_step * steps > MAX_TOKENS:
        raise MoecastError(f"{per_step * steps} tokens in all, more than {MAX_TOKENS}", field="tokens_per_rank", value=tokens)
    if not workload.reuse and (per_step > sequences.n if decode else per_step * steps > len(sequences.row_T)):
        return np.empty((0, 0, 0), np.int64), 0 if decode else len(sequences.row_T) // per_step
    rng = np.random.default_rng(pool.seed)
    length_S = sequences.length_S
    if decode:  # a place's first sequence lasts a step or more, each later one at least the shortest length
        cost_S, need = np.ones(sequences.n, np.int64), per_step * (1 - (1 - steps) // int(length_S.min()))
    else:  # beyond what is asked, each rank can hold the rest of one sequence
        cost_S, need = length_S, per_step * steps + ranks * int(length_S.max())
    if pool.weight_C is not None:
        order_Q = drawing.weighted_order(
            sequences, pool.weight_C, cost_S, need=need if workload.reuse else None, rng=rng
        )
    else:
        rounds = 1 + need // int(cost_S.sum()) if workload.reuse else 1
        order_Q = drawing.shuffled(sequences.n, rounds, rng)
    if decode:
        return drawing.fill_decode(order_Q, rng.random(len(order_Q)), sequences.first_S1, ranks, tokens, steps)
    return drawing.fill_prefill(order_Q, sequences.first_S1, ranks, tokens, steps)


def _too_small(pools: list[_Pool], pool_W: list[int], workload: Workload, ranks: int, done: int) -> MoecastError:
    """The error that names the most that fits, found by bisection and therefore tried."""
    fits, fails = 0, workload.tokens_per_rank
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if isinstance(_draw(pools, pool_W, workload, ranks, middle), int):
            fails = middle
        else:
            fits = middle
    held = sum(len(pool.sequences.row_T) for pool in pools)
    count = sum(pool.sequences.n for pool in pools)
    what = "sequences" if workload.phase == "decode" else "tokens"
    many = f"{fits} {what} per rank fit {len(pool_W)} steps" if fits else f"nothing fits {len(pool_W)} steps"
    long = f", {done} steps fit as asked" if done else ""
    return MoecastError(
        f"the trace is too small ({held} {workload.drawn_phase} tokens in {count} sequences) for {ranks} ranks: "
        f"{many}{long}; or allow reuse",
        field="tokens_per_rank",
        value=workload.tokens_per_rank,
    )


def _contexts(trace: RoutingTrace, workload: Workload, row_T: Int) -> Int:
    if workload.context is not None:
        return np.full(len(row_T), workload.context, np.int64)
    return trace.position_T[row_T].astype(np.int64) + 1
