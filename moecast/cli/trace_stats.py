"""``moecast trace stats``: what is in a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options

if TYPE_CHECKING:
    pass


def stats_command(
    trace: options.TraceArgument,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks",
            min=1,
            help="Count balance, fan-out and crossings for experts in order on so many ranks.",
            show_default="8, or E where it is less",
        ),
    ] = None,
    phase: Annotated[
        str | None, typer.Option("--phase", help="Only train, prefill or decode.", show_default="all")
    ] = None,
    topics: Annotated[str | None, typer.Option("--topics", help="Only these: law,code.", show_default="all")] = None,
    part: Annotated[
        str, typer.Option("--part", help="all, planning or measuring: which part of the trace (see --plan-on).")
    ] = "all",
    plan_on: options.PlanOn = 0.5,
    seed: options.Seed = 0,  # noqa: ARG001  every command takes one; nothing here is random
    json: options.Json = False,
) -> None:
    """Count load, balance, fan-out and crossings under the contiguous placement, over all tokens and by layer.

    Example: moecast trace stats t.parquet --ranks 8 --part measuring
    """
    from moecast.cli import render
    from moecast.cli import trace_tables as tables
    from moecast.cli.inputs import PARTS
    from moecast.errors import MoecastError
    from moecast.traces import contiguous_ranks_LE, count_tokens, iter_trace, read_meta, read_trace, trace_stats

    if part not in PARTS:
        raise MoecastError(f"one of {', '.join(PARTS)}", field="--part", value=part)
    meta = read_meta(trace)
    ranks = min(8, meta.experts) if ranks is None else ranks
    if ranks > meta.experts:
        raise MoecastError(f"the trace has {meta.experts} experts per layer", field="--ranks", value=ranks)
    if not count_tokens(trace):
        raise MoecastError("holds no tokens", file=trace)
    wanted = None if topics is None else [name.strip() for name in topics.split(",")]
    with render.progress("counting", quiet=json) as advance:
        if part == "all" and phase is None and wanted is None:
            source: Any = iter_trace(trace, progress=advance)
        else:
            whole = read_trace(trace, phase=phase, topics=wanted, progress=advance)
            source = whole if part == "all" else whole.split(plan_on)[PARTS.index(part) - 1]
        counted = trace_stats(source, rank_of_expert_LE=contiguous_ranks_LE(meta, ranks), n_ranks=ranks)
    if json:
        render.echo_json(tables.stats_json(meta, counted, ranks))
    else:
        render.console().print(tables.stats_table(meta, counted, ranks), tables.layers_table(meta, counted))
