"""``moecast demo``: the main job once, on the trace that comes with moecast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moecast.placement import Placement
    from moecast.report import Comparison, Entry
    from moecast.sim import ModelShape, Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

CLUSTER, NODES, FABRIC = "dgx-h200", 4, "leaf-spine:2"
MODEL = "deepseek-v2-lite"
SLOTS_PER_RANK = 3
SOLVERS = ("contiguous", "eplb", "local-search")
RUNGS = ("bound", "fluid")
TOKENS_PER_RANK = {"prefill": 512, "decode": 24}
STEPS = {"prefill": 2, "decode": 4}
PLAN_ON = 0.5
MOST_OF_A_SEQUENCE = 24  # tokens of a recorded decode sequence: a batch holds one of each at a time
WORK_LIMIT = 300_000  # of `local-search`, in moves tried: the same plan on every machine


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all plans of the demo share."""

    cluster: Cluster
    model: ModelShape
    planning: dict[str, RoutingTrace]
    measuring: dict[str, RoutingTrace]
    out: Path
    seed: int
    quiet: bool


def demo_command(
    out: Annotated[Path, typer.Option("--out", help="The folder for the report, timelines and plans.")] = Path("out"),
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            callback=options.shipped,
            help="Another trace than the shipped one.",
            show_default="the shipped one",
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The model that is simulated, at its own shape.")] = MODEL,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Simulate, place, simulate again on a real routing trace: 4 × dgx-h200, leaf-spine 2:1, EP32, 3 slots per rank.

    The routing is like the trace's, carried over to the model's layers, experts and choices; plans
    are made on the first half of each topic and simulated on the second.

    Example: moecast demo --out out
    """
    from moecast.cli import render

    job = _prepare(out, trace, model, seed=seed, quiet=json)
    entries = [entry for phase in TOKENS_PER_RANK for entry in _phase(job, phase)]
    comparison = _comparison(job, entries)
    written = _write(job, comparison)
    if json:
        render.echo_json({"comparison": comparison.to_json(), "files": [str(path) for path in written]})
        return
    _show(comparison, written)


def _prepare(out: Path, trace: Path | None, model: str, *, seed: int, quiet: bool) -> _Job:
    from moecast.errors import MoecastError
    from moecast.files import check_writable
    from moecast.sim import load_model
    from moecast.topology import load_cluster
    from moecast.traces import read_trace, shipped_trace_path

    shape = load_model(model)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = f"the output folder cannot be made ({error.strerror})"
        raise MoecastError(rule, file=out) from error
    check_writable(out / "report.html")
    recorded = read_trace(trace or shipped_trace_path())
    cluster = load_cluster(CLUSTER, nodes=NODES, fabric=FABRIC)
    halves = {
        phase: _routing(recorded, shape, phase, cluster.n_gpus, seed=seed, quiet=quiet).split(PLAN_ON)
        for phase in TOKENS_PER_RANK
    }
    return _Job(
        cluster=cluster,
        model=shape,
        planning={phase: planning for phase, (planning, _) in halves.items()},
        measuring={phase: measuring for phase, (_, measuring) in halves.items()},
        out=out,
        seed=seed,
        quiet=quiet,
    )


def _routing(
    recorded: RoutingTrace, shape: ModelShape, phase: str, ranks: int, *, seed: int, quiet: bool
) -> RoutingTrace:
    """Routing of one phase at the model's shape: as recorded where the trace has it, else carried over to it.

    In one round of recombination every recorded token stands once, so that the halves share none.
    """
    from moecast.cli import render
    from moecast.traces import PHASES, concatenate, fit_trace, synthesise

    if recorded.meta.shape_LEK == shape.shape_LEK:
        return recorded
    wanted = "x".join(map(str, shape.shape_LEK))
    held = int((recorded.phase_T == PHASES.index(phase)).sum())
    needed = 3 * ranks * TOKENS_PER_RANK[phase] * (STEPS[phase] if phase == "prefill" else MOST_OF_A_SEQUENCE)
    with render.progress(f"{phase}: carrying routing over to {wanted}", quiet=quiet) as advance:
        model = fit_trace(recorded, phase=phase)
        made = synthesise(model, shape=wanted, tokens=min(held, needed), seed=seed, progress=advance)
        return concatenate(list(made))


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
                    job.measuring[phase],
                    workload,
                    network=rung,
                    seed=job.seed,
                    gains=rung == RUNGS[0],  # ten runs more each, which `fluid` takes a second for
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
            job.planning[workload.phase],
            workload,
            solver=solver,
            slots_per_rank=SLOTS_PER_RANK,
            work_limit=WORK_LIMIT,
            network=RUNGS[0],
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
    step = draw_steps(job.measuring[phase], workload, ranks=best.ranks)[0]
    for name, placement in placements.items():
        events = step_timeline(
            job.cluster, job.model, placement.plan, job.measuring[phase], step, network=RUNGS[-1], seed=job.seed
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
    import numpy as np

    from moecast.traces import load_LE

    parts = [*job.planning.values(), *job.measuring.values()]
    meta = parts[0].meta
    load = np.sum([load_LE(part) for part in parts], axis=0)
    return {
        "model": meta.model,
        "tokens": sum(part.n_tokens for part in parts),
        "topics": list(parts[0].topics),
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


def _solver_notes(columns: Sequence[Entry]) -> list[str]:
    """What each solver says of how its plan was found, once."""
    said = {entry.plan: (entry.placement or {}).get("note") for entry in columns}
    return [f"{plan}: {note}" for plan, note in said.items() if note]


def _show(comparison: Comparison, written: list[Path]) -> None:
    from rich.markup import escape

    from moecast.cli import render
    from moecast.report.comparison_page import headline
    from moecast.sim.quantities import sample_of

    out = render.console()
    out.print(f"[bold]{escape(comparison.title)}[/bold]")
    for note in comparison.notes:
        out.print(f"[yellow]{escape(note)}[/yellow]")
    for phase in comparison.phases():
        columns = comparison.columns(phase)
        samples = dict.fromkeys(sample_of(entry.prediction) for entry in columns)
        render.comparison_table(f"{phase} ({'; '.join(samples)})", columns)
        for note in _solver_notes(columns):
            out.print(note, markup=False)
        out.print(headline(comparison, phase))
    report, *others = written
    out.print(f"\nReport: [bold]{escape(str(report))}[/bold]; beside it: {', '.join(path.name for path in others)}")
    out.print("Timelines open in ui.perfetto.dev.")
