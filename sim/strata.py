"""Strata of sequences that the steps of a Workload draw from: all that may be drawn, or one for each topic.

Axes: T token, G DP rank, S sequence, C topic, W step, B place of a rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim import drawing
from moecast.sim.filling import Filling, filling_of
from moecast.traces import PHASES as TRACE_PHASES

if TYPE_CHECKING:
    from moecast.sim.workload import Workload
    from moecast.traces import RoutingTrace

Int = npt.NDArray[np.int64]

MAX_TOKENS = 1 << 31  # of one Workload; more is a mistake in the options


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stratum:
    """Sequences that steps draw from: all that may be drawn, or those of one topic."""

    sequences: drawing.Sequences
    topic: str | None
    weight: float = 1.0
    weight_C: npt.NDArray[np.float64] | None = None  # None: alike
    seed: tuple[int, ...] = ()


def make_strata(trace: RoutingTrace, workload: Workload) -> list[Stratum]:
    """Sort the sequences of the drawn phase by the Workload's topics.

    Raises
    ------
    MoecastError
        The trace holds nothing of the phase, or nothing of a topic.
    """
    sequences = drawing.sequences_of(trace, phase_mask(trace, workload))
    weights = _topic_weights(trace, workload, sequences)
    if weights is not None:
        weight_C = np.array([weights.get(name, 0.0) for name in trace.topics])
        allowed_S = np.append(weight_C > 0, False)[sequences.topic_S]
        sequences = sequences.only(allowed_S)
    if not workload.one_topic_per_step:
        present = np.unique(sequences.topic_S)
        only = trace.topics[present[0]] if len(present) == 1 and present[0] >= 0 else None
        mix_C = weight_C if weights is not None and isinstance(workload.topics, Mapping) else None
        return [Stratum(sequences=sequences, topic=only, weight_C=mix_C, seed=(workload.seed, 0))]
    strata = []
    for index, name in enumerate(trace.topics):
        weight = 1.0 if weights is None else weights.get(name, 0.0)
        own_S = sequences.topic_S == index
        if weight and own_S.any():
            part = sequences.only(own_S)
            strata.append(Stratum(sequences=part, topic=name, weight=weight, seed=(workload.seed, index + 1)))
    if not strata:
        raise MoecastError("the trace knows no topics", field="one_topic_per_step")
    return strata


def phase_mask(trace: RoutingTrace, workload: Workload) -> npt.NDArray[np.bool_]:
    """Mark the trace's rows of the drawn phase.

    Raises
    ------
    MoecastError
        There are none.
    """
    mask_T: npt.NDArray[np.bool_] = trace.phase_T == TRACE_PHASES.index(workload.drawn_phase)
    if not mask_T.any():
        held = ", ".join(TRACE_PHASES[i] for i in np.unique(trace.phase_T)) or "no token"
        rule = f"the trace holds {held} only"
        raise MoecastError(rule, field="phase", value=workload.drawn_phase)
    return mask_T


def last_rows(trace: RoutingTrace, strata: list[drawing.Sequences]) -> npt.NDArray[np.bool_]:
    """Mark the trace's rows that end a sequence."""
    last = np.zeros(trace.n_tokens, bool)
    for sequences in strata:
        last[sequences.row_T[sequences.first_S1[1:] - 1]] = True
    return last


def next_rows(trace: RoutingTrace, strata: list[drawing.Sequences]) -> Int:
    """The row of the token that follows each row's in its sequence; of a last one, and outside, the row itself."""
    next_T = np.arange(trace.n_tokens)
    for sequences in strata:
        inside = np.ones(len(sequences.row_T), bool)
        inside[sequences.first_S1[1:] - 1] = False
        next_T[sequences.row_T[inside]] = np.roll(sequences.row_T, -1)[inside]
    return next_T


def _topic_weights(trace: RoutingTrace, workload: Workload, sequences: drawing.Sequences) -> dict[str, float] | None:
    topics = workload.topics
    if topics is None:
        return None
    weights = dict(topics) if isinstance(topics, Mapping) else dict.fromkeys(topics, 1.0)
    for name, weight in weights.items():
        if name not in trace.topics:
            raise MoecastError(f"the trace's topics: {', '.join(trace.topics) or 'none'}", field="topics", value=name)
        if weight and not np.any(sequences.topic_S == trace.topics.index(name)):
            rule = f"the trace holds no {workload.drawn_phase} token of this topic"
            raise MoecastError(rule, field="topics", value=name)
    return weights


def stratum_of_each_step(workload: Workload, strata: list[Stratum]) -> list[int]:
    """Let strata take turns by weight: each step goes to the one that lags most behind its share, in a seeded order."""
    turn = np.random.default_rng((workload.seed, 0)).permutation(len(strata))
    share = np.array([strata[i].weight for i in turn]) / sum(stratum.weight for stratum in strata)
    given = np.zeros(len(strata))
    chosen = []
    for step in range(workload.steps):
        lagging = int(np.argmax(np.round(share * (step + 1) - given, 9)))
        given[lagging] += 1
        chosen.append(int(turn[lagging]))
    return chosen


def draw_rows(
    strata: list[Stratum], stratum_W: list[int], workload: Workload, ranks: int, tokens: int
) -> list[Int] | int:
    """Draw the rows of each step; where a stratum runs out, return the number of steps before."""
    row_W: list[Int] = [np.empty(0, np.int64)] * len(stratum_W)
    short = len(stratum_W)
    for index, stratum in enumerate(strata):
        steps = [step for step, chosen in enumerate(stratum_W) if chosen == index]
        if not steps:
            continue
        at_WGB, done = _fill(stratum, workload, ranks, tokens, len(steps))
        if done < len(steps):
            short = min(short, steps[done])
            continue
        for step, at_GB in zip(steps, at_WGB, strict=True):
            row_W[step] = stratum.sequences.row_T[at_GB.ravel()]
    return short if short < len(stratum_W) else row_W


def _fill(stratum: Stratum, workload: Workload, ranks: int, tokens: int, steps: int) -> tuple[Int, int]:
    sequences, total = stratum.sequences, ranks * tokens * steps
    if total > MAX_TOKENS:
        rule = f"{total} tokens in all, more than {MAX_TOKENS}"
        raise MoecastError(rule, field="tokens_per_rank", value=tokens)
    filling = filling_of(workload.kernels, sequences, ranks=ranks, places=tokens, steps=steps)
    if not workload.reuse and (done := filling.too_few) is not None:
        return np.empty((0, 0, 0), np.int64), done
    rng = np.random.default_rng(stratum.seed)
    order_Q = _order(stratum, filling, workload.reuse, rng)
    serves_SG = None
    if workload.request_placement == "topic":
        serves_SG = drawing.ranks_of_topics(sequences.topic_S, filling.cost_S, stratum.weight_C, ranks)
    return filling.fill(order_Q, serves_SG, rng)


def _order(stratum: Stratum, filling: Filling, reuse: bool, rng: np.random.Generator) -> Int:
    """Which sequences come one after another: once each, or with `reuse` as often as is sure to be enough."""
    sequences, cost_S = stratum.sequences, filling.cost_S
    need = filling.need if reuse else None
    if stratum.weight_C is not None:
        return drawing.weighted_order(sequences, stratum.weight_C, cost_S, need=need, rng=rng)
    return drawing.shuffled(sequences.n, 1 if need is None else 1 + need // int(cost_S.sum()), rng)


def most_that_fits(strata: list[Stratum], stratum_W: list[int], workload: Workload, ranks: int) -> int:
    """The most tokens per rank, at most the Workload's, that its steps can draw; found by bisection and so tried."""
    if not isinstance(draw_rows(strata, stratum_W, workload, ranks, workload.tokens_per_rank), int):
        return workload.tokens_per_rank
    fits, fails = 0, workload.tokens_per_rank
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if isinstance(draw_rows(strata, stratum_W, workload, ranks, middle), int):
            fails = middle
        else:
            fits = middle
    return fits


def too_small(
    strata: list[Stratum], stratum_W: list[int], workload: Workload, ranks: int, done: int, *, recorded: bool = False
) -> MoecastError:
    """Make the error that names the most that fits."""
    fits = most_that_fits(strata, stratum_W, workload, ranks)
    held = sum(len(stratum.sequences.row_T) for stratum in strata)
    count = sum(stratum.sequences.n for stratum in strata)
    what = workload.kernels.counts
    steps = f"{len(stratum_W)} step" + "s" * (len(stratum_W) != 1)
    many = f"{fits} {what} per rank fit {steps}" if fits else f"nothing fits {steps}"
    long = f", {done} steps fit as asked" if done else ""
    return MoecastError(
        f"the trace is too small ({held} {workload.drawn_phase} tokens in {count} sequences) for "
        f"{ranks} ranks: {many}{long}; or allow "
        f"reuse{', or take the recorded steps' if recorded else ''}",
        field="tokens_per_rank",
        value=workload.tokens_per_rank,
    )
