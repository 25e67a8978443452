"""The steps of a Workload: drawn from a trace's sequences, or taken as its run made them.

Axes: T token, G DP rank, S sequence of the trace, W step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.arrays import index
from moecast.errors import MoecastError
from moecast.sim import drawing, strata
from moecast.sim.layout import MOST_RANKS
from moecast.sim.step import Step

if TYPE_CHECKING:
    from moecast.sim.workload import Workload
    from moecast.traces import RoutingTrace

Int = npt.NDArray[np.int64]


def draw_steps(trace: RoutingTrace, workload: Workload, *, ranks: int) -> list[Step]:
    """Decide which tokens are in flight together.

    Whole sequences are drawn, seeded, without replacement (docs/design.md, 6). Prefill fills every
    rank to exactly `tokens_per_rank`, cutting sequences into chunks that go on in the next step on
    the same rank. Decode takes successive positions of `tokens_per_rank` running sequences per
    rank, the first ones from a random place on.

    Parameters
    ----------
    ranks
        DP ranks that hold tokens.

    Raises
    ------
    MoecastError
        The trace holds nothing of the phase or a topic, or is too small: the line names the most
        that fits.
    """
    ranks = index("ranks", ranks, least=1, most=MOST_RANKS)
    if workload.steps_mode == "as-recorded":
        return recorded_steps(trace, workload, ranks=ranks)
    prefill, *decode = [_drawn_steps(trace, part, ranks) for part in workload.parts]
    return [step.beside(other) for step, other in zip(prefill, decode[0], strict=True)] if decode else prefill


def _drawn_steps(trace: RoutingTrace, workload: Workload, ranks: int) -> list[Step]:
    """Draw the steps of one phase."""
    drawn = strata.make_strata(trace, workload)
    stratum_W = strata.stratum_of_each_step(workload, drawn)
    done = strata.draw_rows(drawn, stratum_W, workload, ranks, workload.tokens_per_rank)
    if isinstance(done, int):
        recorded = trace.step_T is not None and trace.source_rank_T is not None
        raise strata.too_small(drawn, stratum_W, workload, ranks, done, recorded=recorded)
    source_T = np.repeat(np.arange(ranks, dtype=np.int32), workload.tokens_per_rank)
    sequences = [stratum.sequences for stratum in drawn]
    last = strata.last_rows(trace, sequences)
    steps = [
        Step(
            token_T=row_T,
            source_T=source_T,
            context_T=_contexts(trace, workload, row_T),
            phase=workload.phase,
            topic=drawn[stratum].topic,
            last_T=workload.kernels.wanted_T(last[row_T]),
        )
        for row_T, stratum in zip(done, stratum_W, strict=True)
    ]
    if not workload.speculate:
        return steps
    next_T = strata.next_rows(trace, sequences)
    return [_with_drafts(step, next_T, workload.speculate) for step in steps]


def _with_drafts(step: Step, next_T: Int, drafts: int) -> Step:
    """Let each running sequence's drafts stand behind its token: those that follow it, its last one again and again."""
    rows = [step.token_T]
    for _ in range(drafts):
        rows.append(next_T[rows[-1]])
    behind = np.arange(drafts + 1)
    return replace(
        step,
        token_T=np.stack(rows, axis=1).ravel(),
        source_T=step.source_T.repeat(drafts + 1),
        context_T=(step.context_T[:, None] + behind).ravel(),
        end_T=np.tile(behind == drafts, step.n_tokens),
    )


def fit_workload(trace: RoutingTrace, workload: Workload, *, ranks: int, steps_too: bool = False) -> Workload:
    """Take the most tokens per rank that the trace fills, at most the Workload's.

    With `steps_too`, fewer steps too.

    Where not even one token per rank fits, sequences are used again (`reuse`).

    Raises
    ------
    MoecastError
        The trace holds nothing of the phase or a topic.
    """
    ranks = index("ranks", ranks, least=1, most=MOST_RANKS)
    if workload.steps_mode == "as-recorded" or workload.reuse:
        return workload
    return workload.with_parts([_fit_part(trace, part, ranks, steps_too) for part in workload.parts])


def _fit_part(trace: RoutingTrace, workload: Workload, ranks: int, steps_too: bool) -> Workload:
    drawn = strata.make_strata(trace, workload)
    tried = range(workload.steps, 0, -1) if steps_too else (workload.steps,)
    for steps in tried:
        fewer = replace(workload, steps=steps)
        most = strata.most_that_fits(drawn, strata.stratum_of_each_step(fewer, drawn), fewer, ranks)
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
    mask_T = strata.phase_mask(trace, workload)
    last = strata.last_rows(trace, [drawing.sequences_of(trace, mask_T)])
    row_T = np.flatnonzero(mask_T)
    most = int(trace.source_rank_T[row_T].max()) + 1
    if most > ranks:
        rule = f"the trace was recorded on {most} ranks, the plan has {ranks}"
        raise MoecastError(rule, field="source_rank")
    ids_W, step_T = np.unique(trace.step_T[row_T], return_inverse=True)
    if len(ids_W) < workload.steps:
        rule = f"the trace has {len(ids_W)} recorded steps"
        raise MoecastError(rule, field="steps", value=workload.steps)
    row_T = row_T[np.lexsort((trace.position_T[row_T], trace.sequence_T[row_T], trace.source_rank_T[row_T], step_T))]
    bounds = np.cumsum(np.bincount(step_T))[: workload.steps]
    return [
        Step(
            token_T=rows,
            source_T=trace.source_rank_T[rows].astype(np.int32),
            context_T=_contexts(trace, workload, rows),
            phase=workload.phase,
            last_T=workload.kernels.wanted_T(last[rows]),
        )
        for rows in np.split(row_T, bounds)[: workload.steps]
    ]


def _contexts(trace: RoutingTrace, workload: Workload, row_T: Int) -> Int:
    if workload.context is not None:
        return np.full(len(row_T), workload.context, np.int64)
    return trace.position_T[row_T].astype(np.int64) + 1
