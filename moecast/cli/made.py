"""How much routing `--routing` and `--load` make: enough for the Workload asked, so that none is ever too small."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from pathlib import Path

    from moecast.cli.asked import ElementTypes, Source
    from moecast.sim import ModelShape, Workload
    from moecast.traces import RoutingTrace

DEFAULT_ISL = 1024  # tokens of a made prompt
DEFAULT_CONTEXT = 2048  # keys that a made decode token attends to, where --context says nothing
MOST_TOKENS = 1 << 16
"""Different tokens that are made, about; a Workload that holds more draws them again."""


def model_of(model: str | None, dims: str | None, types: ElementTypes | None) -> ModelShape:
    """The model that routing is made for.

    Raises
    ------
    MoecastError
        Nothing names it, or other widths are asked for it.
    """
    from moecast.sim import load_model

    if dims is not None:
        rule = "routing is made at the model's own shape: name it with --model"
        raise MoecastError(rule, field="--dims", value=dims)
    if model is None:
        rule = "routing is made of a model's shape: name it with --model"
        raise MoecastError(rule, field="--model")
    shape = load_model(model)
    return shape if types is None else types.put_into(shape)


def routing_for(
    source: Source, model: ModelShape, workload: Workload, *, ranks: int, seed: int, quiet: bool
) -> tuple[RoutingTrace, Workload, tuple[str, ...]]:
    """Make routing of the model's shape for so many DP ranks.

    Returns
    -------
    trace
        The part of it that the source asks for.
    workload
        The same, with `reuse` where it holds more tokens than are made, and a context where none
        was recorded that the model would have.
    notes
        What to say of it.
    """
    from moecast.sim import fit_workload

    if workload.parts != (workload,):
        return _for_parts(source, model, workload, ranks=ranks, seed=seed, quiet=quiet)
    lifted, decodes = source.routing == "trace", workload.decoding is not None
    if lifted and decodes and workload.context is None and _is_shipped(source.trace):
        # the shipped texts are short, as its model is small
        workload = replace(workload, context=DEFAULT_CONTEXT)
    if lifted:
        made = _lifted(source, model, workload, ranks, seed, quiet)
    else:
        made = _drawn(source, model, workload, ranks, seed)
    trace = source.cut(made)
    fits = workload.reuse or fit_workload(trace, workload, ranks=ranks) == workload
    notes = () if lifted or decodes else (f"prompts of {source.isl or DEFAULT_ISL} tokens each (--isl)",)
    if fits:
        return trace, workload, notes
    again = f"{trace.n_tokens:,} different tokens are made, fewer than the steps hold: they are drawn again"
    return trace, replace(workload, reuse=True), (*notes, again)


def _for_parts(
    source: Source, model: ModelShape, workload: Workload, *, ranks: int, seed: int, quiet: bool
) -> tuple[RoutingTrace, Workload, tuple[str, ...]]:
    """Make routing of each part of a mixed workload, in sequences of their own."""
    import numpy as np

    from moecast.traces import concatenate

    found = [routing_for(source, model, part, ranks=ranks, seed=seed, quiet=quiet) for part in workload.parts]
    traces, first = [], 0
    for trace, _, _ in found:
        traces.append(replace(trace, sequence_T=(trace.sequence_T + np.uint32(first)).astype(np.uint32)))
        first += int(trace.sequence_T.max(initial=0)) + 1
    said = tuple(dict.fromkeys(note for _, _, notes in found for note in notes))
    return concatenate(traces), workload.with_parts([part for _, part, _ in found]), said


def _is_shipped(path: Path | None) -> bool:
    from moecast.traces import shipped_trace_path

    return path is None or path == shipped_trace_path()


def sequences_needed(workload: Workload, *, ranks: int, length: int) -> int:
    """Sequences of `length` tokens that a Workload draws.

    In prefill each rank takes whole sequences until it holds its tokens of all steps. In decode
    each place of the batch begins its first one anywhere and goes on to others when it ends.
    """
    if workload.decoding is not None:
        return ranks * workload.tokens_per_rank * (1 + math.ceil((workload.steps - 1) / length))
    return ranks * math.ceil(workload.tokens_per_rank * workload.steps / length)


def _drawn(source: Source, model: ModelShape, workload: Workload, ranks: int, seed: int) -> RoutingTrace:
    """Routing by a law or a load table. Decode begins its sequences as deep as their context is long."""
    from moecast.sim.made_routing import parse_law, routing_by_law, routing_by_load
    from moecast.traces import read_load_table

    decode = workload.decoding is not None
    length = workload.steps if decode else source.isl or DEFAULT_ISL
    asked: dict[str, Any] = {
        "tokens": _with_part(sequences_needed(workload, ranks=ranks, length=length), length, source),
        "sequence": length,
        "phase": workload.drawn_phase,
        "position": max((workload.context or DEFAULT_CONTEXT) - workload.steps, 0) if decode else 0,
        "seed": seed,
    }
    if source.load is not None:
        return routing_by_load(read_load_table(source.load), model, **asked)
    assert source.routing is not None
    return routing_by_law(parse_law(source.routing), model, step_tokens=ranks * workload.tokens_per_rank, **asked)


def _lifted(source: Source, model: ModelShape, workload: Workload, ranks: int, seed: int, quiet: bool) -> RoutingTrace:
    """Routing like a recorded trace's, its sequences as long as recorded ones are."""
    import numpy as np

    from moecast.cli import render
    from moecast.traces import PHASES, concatenate, fit_trace, read_trace, shipped_trace_path, synthesise

    with render.progress("making routing", quiet=quiet) as advance:
        lifting, moved = render.two_halves(advance)
        recorded = read_trace(source.trace or shipped_trace_path())
        own_T = recorded.phase_T == PHASES.index(workload.drawn_phase)
        length_S = np.unique(recorded.sequence_T[own_T], return_counts=True)[1]
        donors = fit_trace(recorded, phase=workload.drawn_phase)
        # Sequences differ in length: each rank may hold the rest of the longest one beyond what it
        # is asked.
        mean = max(int(length_S.mean()), 1)
        sequences = sequences_needed(workload, ranks=ranks, length=mean) + ranks * math.ceil(length_S.max() / mean)
        tokens = _with_part(sequences, mean, source)
        shape = "x".join(map(str, model.shape_LEK))
        made = synthesise(donors, shape=shape, tokens=tokens, seed=seed, progress=moved, lifting=lifting)
        return concatenate(list(made))


def _with_part(sequences: int, length: int, source: Source) -> int:
    """Tokens to make, so that the part asked for holds so many whole sequences: at each end it may hold a cut one."""
    tokens = sequences if source.share == 1 else math.ceil((sequences + 2) / max(source.share, 0.01))
    return min(tokens, math.ceil(MOST_TOKENS / length)) * length
