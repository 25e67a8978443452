"""``moecast demo``: the main job once, on the trace that comes with moecast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from moecast.placement import Placement
    from moecast.report import Comparison, Entry
    from moecast.sim import ModelShape, Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

CLUSTER, NODES, FABRIC = "dgx-h200", 4, "leaf-spine:2"
DIMS = "deepseek-v2-lite"
SLOTS_PER_RANK = 3
SOLVERS = ("contiguous", "eplb", "joint")
RUNGS = ("bound", "fluid")
TOKENS_PER_RANK = {"prefill": 512, "decode": 24}
STEPS = {"prefill": 3, "decode": 8}
PLAN_ON = 0.5
WORK_LIMIT = 1_000_000  # of `joint`, in moves tried: the same plan on every machine


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all plans of the demo share."""

    cluster: Cluster
    model: ModelShape
    planning: RoutingTrace
    measuring: RoutingTrace
    out: Path
    seed: int
    quiet: bool


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="The folder for the report, timelines and plans.")] = Path("out"),
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            callback=options._shipped,
            help="Another trace than the shipped one.",
            show_default="the shipped one",
        ),
    ] = None,
    dims: Annotated[str, typer.Option("--dims", help="The model whose widths are simulated.")] = DIMS,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Simulate, place, simulate again on a real routing trace: 4 × dgx-h200, leaf-spine 2:1, EP32, 3 slots per rank.

    Plans are made on the first half of each topic and simulated on the second.

    Example: moecast demo --out out
    """
    from moecast.cli import render

    job = _prepare(out, trace, dims, seed=seed, quiet=json)
    entries = [entry for phase in TOKENS_PER_RANK for entry in _phase(job, phase)]
    comparison = _comparison(job, entries)
    written = _write(job, comparison)
    if json:
        render.echo_json({"comparison": comparison.to_json(), "files": [str(path) for path in written]})
        return
    _show(comparison, written)


def _prepare(out: Path, trace: Path | None, dims: str, *, seed: int, quiet: bool) -> _Job:
    from moecast.cli.inputs import read_model
    from moecast.errors import MoecastError
    from moecast.files import check_writable
    from moecast.topology import load_cluster
    from moecast.traces import read_trace, shipped_trace_path

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoecastError(f"the output folder cannot be made ({error.strerror})", file=out) from error
    check_writable(out / "report.html")
    path = trace or shipped_trace_path()
    whole = read_trace(path)
    planning, measuring = whole.split(PLAN_ON)
    return _Job(
        cluster=load_cluster(CLUSTER, nodes=NODES, fabric=FABRIC),
        model=read_model(None, dims, whole.meta, file=path),
        planning=planning,
        measuring=measuring,
        out=out,
        seed=seed,
        quiet=quiet,
    )


def _phase(job: _Job, phase: str) -> list[Entry]:
    """Make the plans of one phase on the planning part and predict them on the measuring part, on every rung."""
    from moecast.cli import render
    from moecast.report import Entry
    from moecast.sim import Workload, simulate

    workload = Workload(phase=phase, tokens_per_rank=TOKENS_PER_RANK[phase], steps=STEPS[phase], seed=job.seed)
    placements = {solver: _place(job, workload, solver) for solver in SOLVERS}
    entries = []
    for rung in RUNGS:
        for solver, placement in placements.items():
            with render.progress(f"{phase}: {solver} under {rung}", quiet=job.quiet) as advance:
                prediction = simulate(
                    job.cluster,
                    job.model,
                    placement.plan,
                    job.measuring,
                    workload,
                    network=rung,
                    seed=job.seed,
                    progress=advance,
                )
            entries.append(Entry(plan=solver, prediction=prediction, placement=placement.to_json()))
    _write_plans(job, phase, workload, placements)
    return entries


def _place(job: _Job, workload: Workload, solver: str) -> Placement:
    from moecast.cli import render
    from moecast.placement import place

    with render.progress(f"{workload.phase}: placing by {solver}", quiet=job.quiet) as advance:
        return place(
            job.cluster,
            job.model,
            job.planning,
            workload,
            solver=solver,
            slots_per_rank=SLOTS_PER_RANK,
            work_limit=WORK_LIMIT,
            fill=solver == SOLVERS[-1],
            trace_part=options.planning_part(PLAN_ON),
            seed=job.seed,
            progress=advance,
        )


def _write_plans(job: _Job, phase: str, workload: Workload, placements: dict[str, Placement]) -> None:
    from moecast.placement.engines import write_engine_file
    from moecast.sim import draw_steps, step_timeline, write_plan, write_timeline

    best = placements[SOLVERS[-1]].plan
    write_plan(best, job.out / f"plan-{phase}.json")
    write_engine_file(best, job.out / f"plan-{phase}.sglang.json", engine="sglang", model=job.model)
    step = draw_steps(job.measuring, workload, ranks=best.ranks)[0]
    for name, placement in placements.items():
        events = step_timeline(
            job.cluster, job.model, placement.plan, job.measuring, step, network=RUNGS[-1], seed=job.seed
        )
        write_timeline(events, job.out / f"timeline-{phase}-{name}.json")


def _comparison(job: _Job, entries: list[Entry]) -> Comparison:
    from moecast.report import Comparison

    labels = dict.fromkeys(label for entry in entries for label in entry.prediction.labels)
    split = f"Plans were made on the first {PLAN_ON:.0%} of each topic and simulated on the rest, which they never saw."
    title = (
        f"{job.model.name} on {NODES} × {CLUSTER}, {FABRIC}, EP{job.cluster.n_gpus}, {SLOTS_PER_RANK} slots per rank"
    )
    return Comparison(title=title, entries=tuple(entries), notes=(*labels, split), trace=_trace_facts(job))


def _trace_facts(job: _Job) -> dict[str, Any]:
    from moecast.traces import load_LE

    meta = job.measuring.meta
    load = load_LE(job.planning) + load_LE(job.measuring)
    return {
        "model": meta.model,
        "tokens": job.planning.n_tokens + job.measuring.n_tokens,
        "topics": list(job.measuring.topics),
        "source": dict(meta.source),
        "notes": meta.notes,
        "load": load.tolist(),
    }


def _write(job: _Job, comparison: Comparison) -> list[Path]:
    from moecast.report import write_comparison, write_report

    write_comparison(comparison, job.out / "comparison.json")
    write_report(comparison, job.out / "report.html")
    names = ["report.html", "comparison.json"]
    for phase in comparison.phases():
        names += [f"timeline-{phase}-{solver}.json" for solver in SOLVERS]
        names += [f"plan-{phase}.json", f"plan-{phase}.sglang.json"]
    return [job.out / name for name in names]


def _show(comparison: Comparison, written: list[Path]) -> None:
    from moecast.cli import render
    from moecast.report.comparison_page import headline

    out = render.console()
    out.print(f"[bold]{comparison.title}[/bold]")
    for note in comparison.notes:
        out.print(f"[yellow]{note}[/yellow]")
    for phase in comparison.phases():
        columns = comparison.columns(phase)
        samples = dict.fromkeys(render.sample_of(entry.prediction) for entry in columns)
        render.comparison_table(f"{phase} ({'; '.join(samples)})", columns)
        out.print(headline(comparison, phase))
    report, *others = written
    out.print(f"\nReport: [bold]{report}[/bold]; beside it: {', '.join(path.name for path in others)}")
    out.print("Timelines open in ui.perfetto.dev.")
