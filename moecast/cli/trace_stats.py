"""``moecast trace stats``: what is in a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options
from moecast.cli.asked import PARTS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from moecast.cli.trace_plan import PlanCounter
    from moecast.traces import RoutingTrace, TraceMeta, TraceProfile


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
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="A moecast plan: count for its placement and replica rule instead."),
    ] = None,
    domain_size: Annotated[
        int | None,
        typer.Option(
            "--domain-size",
            min=1,
            help="Ranks in a domain, in order, for the fan-out by domains.",
            show_default="8, or all ranks where there are fewer",
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
    quick: Annotated[bool, typer.Option("--quick", help="Only what counting gives: load, placement.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write the numbers and their pictures as one HTML page.")
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Say what is in a trace: load, placement, locality, dependence, drift, and what would mislead.

    TRACE may also be a load table (JSON): counts of choices without tokens. docs/traces.md defines
    each number.

    Example: moecast trace stats t.parquet --ranks 8 --part measuring
    """
    from moecast.cli import render
    from moecast.errors import MoecastError
    from moecast.traces import count_tokens, iter_part, read_meta

    if part not in PARTS:
        raise MoecastError(f"one of {', '.join(PARTS)}", field="--part", value=part)
    if html is not None:
        _check_page(trace, html, plan, quick=quick)
    if trace.suffix == ".json":
        tokens = {"--plan": plan, "--domain-size": domain_size, "--phase": phase, "--topics": topics}
        _check_counts_do(tokens | {"--part": None if part == "all" else part})
        _show_load_table(trace, ranks, json=json)
        return
    meta = read_meta(trace)
    placed = _Placed.of(meta, ranks, plan, domain_size)
    if not count_tokens(trace):
        raise MoecastError("holds no tokens", file=trace)
    wanted = None if topics is None else [name.strip() for name in topics.split(",")]
    with render.progress("counting", quiet=json) as advance:
        batches = iter_part(trace, part=part, fraction=plan_on, phase=phase, topics=wanted, progress=advance)
        watched = batches if placed.counter is None else placed.counter.watch(batches)
        try:
            shown = _counted(meta, watched, placed) if quick else _profiled(watched, placed, seed)
        except ValueError as error:  # nothing left, which a part of a small trace can be
            raise MoecastError(str(error), file=trace) from error
    if html is not None and shown.profile is not None:
        from moecast.report import write_trace_page

        with render.progress("drawing", quiet=json):
            write_trace_page(shown.profile, html, plan=None if plan is None else placed.name)
    if json:
        render.echo_json(shown.json | ({} if html is None else {"html": str(html)}))
    else:
        render.console().print(*shown.lines)
        if html is not None:
            from rich.markup import escape

            render.console().print(f"pictures: [bold]{escape(str(html))}[/bold]")


def _check_page(trace: Path, html: Path, plan: Path | None, *, quick: bool) -> None:
    from moecast.errors import MoecastError
    from moecast.files import check_outputs

    if quick or trace.suffix == ".json":
        rule = "the pictures need more than counts; " + ("leave --quick out" if quick else f"{trace} holds no tokens")
        raise MoecastError(rule, field="--html", value=str(html))
    check_outputs({"--html": html}, {"the trace": trace, "--plan": plan})


def _check_counts_do(asked: Mapping[str, object]) -> None:
    """A load table has no tokens to choose among or to follow; better said than left out."""
    from moecast.errors import MoecastError

    for name, value in asked.items():
        if value is not None:
            rule = "a load table has counts only; this needs a trace"
            raise MoecastError(rule, field=name, value=str(value))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Placed:
    """Where the experts stand: a rank each, and with replicas a counter that follows the plan's rule.

    With replicas `rank_LE` is that of experts in order on `spread` ranks, and stands in for what
    the counter finds.
    """

    ranks: int
    spread: int
    name: str
    rank_LE: npt.NDArray[np.int32]
    domain_size: int
    counter: PlanCounter | None = None

    @classmethod
    def of(cls, meta: TraceMeta, ranks: int | None, plan: Path | None, domain_size: int | None) -> _Placed:
        """Read the options.

        Raises
        ------
        MoecastError
            More ranks than experts, or a plan that is not for this trace.
        """
        from moecast.errors import MoecastError
        from moecast.traces import contiguous_ranks_LE

        if plan is None:
            ranks = min(8, meta.experts) if ranks is None else ranks
            if ranks > meta.experts:
                rule = f"the trace has {meta.experts} experts per layer"
                raise MoecastError(rule, field="--ranks", value=ranks)
            size = min(8, ranks) if domain_size is None else domain_size
            return cls(
                ranks=ranks, spread=ranks, name="contiguous", rank_LE=contiguous_ranks_LE(meta, ranks), domain_size=size
            )
        from moecast.cli.trace_plan import PlanCounter, rank_of_expert_LE, read_plan_for

        read = read_plan_for(plan, meta)
        if ranks not in (None, read.ep):
            rule = f"the plan has {read.ep} ranks in an EP group"
            raise MoecastError(rule, field="--ranks", value=ranks)
        size = min(8, read.ep) if domain_size is None else domain_size
        rank_LE = rank_of_expert_LE(read)
        if rank_LE is not None:
            return cls(ranks=read.ep, spread=read.ep, name=plan.name, rank_LE=rank_LE, domain_size=size)
        spread = min(read.ep, meta.experts)
        return cls(
            ranks=read.ep,
            spread=spread,
            name=plan.name,
            rank_LE=contiguous_ranks_LE(meta, spread),
            domain_size=size,
            counter=PlanCounter(read, domain_size=size),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """What is printed, as JSON or for people."""

    json: dict[str, Any]
    lines: tuple[Any, ...]
    profile: TraceProfile | None = None


def _counted(meta: TraceMeta, batches: Iterable[RoutingTrace], placed: _Placed) -> _Shown:
    from moecast.cli import stats_json, stats_tables
    from moecast.traces import trace_stats

    stats = trace_stats(batches, rank_of_expert_LE=placed.rank_LE, n_ranks=placed.spread)
    if placed.counter is not None:
        stats = placed.counter.applied(stats)
    lines = stats_tables.counts_table(meta, stats, placed.ranks, placed.name), stats_tables.layers_table(meta, stats)
    return _Shown(json=stats_json.counts_json(meta, stats, placed.ranks, placed.name), lines=lines)


def _profiled(batches: Iterable[RoutingTrace], placed: _Placed, seed: int) -> _Shown:
    from moecast.cli import stats_json, stats_tables
    from moecast.traces import profile_trace

    found = profile_trace(
        batches,
        rank_of_expert_LE=placed.rank_LE,
        n_ranks=placed.spread,
        domain_size=placed.domain_size,
        seed=seed,
    )
    if placed.counter is not None:
        found = dataclasses.replace(
            found,
            n_ranks=placed.ranks,
            stats=placed.counter.applied(found.stats),
            fan_out_domains_LF=placed.counter.fan_out_domains_LF,
        )
    lines = (
        stats_tables.counts_table(found.meta, found.stats, placed.ranks, placed.name),
        stats_tables.profile_table(found),
        stats_tables.layers_table(found.meta, found.stats),
        *stats_tables.health_lines(found.health),
    )
    return _Shown(json=stats_json.profile_json(found, placed.name), lines=lines, profile=found)


def _show_load_table(path: Path, ranks: int | None, *, json: bool) -> None:
    from moecast.cli import render, stats_json, stats_tables
    from moecast.errors import MoecastError
    from moecast.traces import contiguous_ranks_LE, load_balance, load_gini_L, read_load_table
    from moecast.traces.statistics.summary import mean_known

    counts = read_load_table(path)
    ranks = min(8, counts.meta.experts) if ranks is None else ranks
    if ranks > counts.meta.experts:
        rule = f"the table has {counts.meta.experts} experts per layer"
        raise MoecastError(rule, field="--ranks", value=ranks)
    balance = load_balance(counts.load_LE, contiguous_ranks_LE(counts.meta, ranks), ranks)
    gini_L = load_gini_L(counts.load_LE)
    if json:
        render.echo_json(stats_json.load_json(counts, balance, gini_L, ranks))
    else:
        render.console().print(stats_tables.load_table(counts, balance, mean_known(gini_L), ranks))
