"""`simulate_training`: from cluster, model, plan, routing and recipe to the forecast of a training step.

Axes: G rank, S task, P pipeline rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.accuracy import training_grounds
from moecast.sim.breakdown import IdleTimes, breakdown, waits_for_peers
from moecast.sim.checks import check_question
from moecast.sim.collectives.links import link_kinds
from moecast.sim.cost import kernels_on
from moecast.sim.describe import describe_trace, element_types, labels, transferred
from moecast.sim.drawn_steps import draw_steps
from moecast.sim.engines import MEGATRON, NEUTRAL
from moecast.sim.exposed import seconds_of_ranks
from moecast.sim.kernel_grounds import kernel_grounds
from moecast.sim.memory import MEMORY_FRACTION, usable_bytes
from moecast.sim.network import Rung, find_rung
from moecast.sim.schedules.pipeline import Pipeline, PipelineOrder, find_pipeline_schedule, make_order
from moecast.sim.timeline import program_timeline, write_timeline
from moecast.sim.totals import shares_of
from moecast.sim.training.context import travelling_bytes
from moecast.sim.training.flop import model_tflops_per_gpu
from moecast.sim.training.memory import training_memory
from moecast.sim.training.prediction import TrainingPrediction
from moecast.sim.training.recipe import Recipe
from moecast.sim.training.stage import shard_of
from moecast.sim.training.step import training_program
from moecast.sim.workload import Workload
from moecast.traces import PHASES
from moecast.units import format_bytes

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.program import StepProgram, StepTimes
    from moecast.sim.step import Step
    from moecast.topology import Cluster, Hardware
    from moecast.traces import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedTraining:
    """A training step that a rung has timed: the program, its times, and the pipeline's order."""

    program: StepProgram
    times: StepTimes
    order: PipelineOrder


def simulate_training(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    recipe: Recipe,
    *,
    schedule: str = "1f1b",
    drawn: int = 2,
    from_phase: str | None = None,
    network: str | Rung = "bound",
    memory_fraction: float = MEMORY_FRACTION,
    seed: int = 0,
    notes: Sequence[str] = (),
    timeline: str | Path | None = None,
) -> TrainingPrediction:
    """Forecast one training step: its time and where it goes, tokens/s, model FLOP/s, the bubble, memory by part.

    Parameters
    ----------
    schedule
        Of the pipeline (`moecast.sim.schedules.pipeline`); without a pipeline ``1f1b`` goes through
        microbatches one by one.
    trace
        The routing of the model's MoE layers; of one layer it stands for all of them.
    drawn
        Microbatches whose routing is drawn from the trace; more than these take turns.
    from_phase
        Draw from the trace's rows of this phase; None: of training, else of prefill.
    network
        The rung that times the step. ``fluid`` follows every flow: for some ten thousand exchanges
        of 64 ranks half a minute and more.
    timeline
        Write the step here, for ui.perfetto.dev: a track per rank and stream.

    Raises
    ------
    MoecastError
        The question has no answer: sizes that do not match, a plan that is not legal or larger than
        the cluster, a schedule that does not go with the pipeline, a trace that is too small.
    """
    plan = with_chunks_of(plan, schedule)
    check_question(cluster, model, plan, trace, pipeline=True, alike=True)
    _microbatches(recipe, plan)
    drawn_of = from_phase or phase_of(trace)
    steps = draw_microbatches(trace, recipe, ranks=plan.layout.dp, drawn=drawn, from_phase=drawn_of, seed=seed)
    timed = time_training(cluster, model, plan, trace, recipe, schedule=schedule, steps=steps, network=network)
    if timeline is not None:
        about = {"model": model.name, "cluster": cluster.name, "phase": f"train, {schedule}"}
        names = [f"rank {rank} ({cluster.gpus[gpu].name})" for rank, gpu in enumerate(plan.gpu_of_rank)]
        kinds = link_kinds(cluster)
        drawing = program_timeline(timed.program, timed.times, rank_names=names, link_kind_J=kinds, about=about)
        write_timeline(drawing, timeline)
    step_s, tokens = timed.times.step_time_s, recipe.batch * recipe.sequence
    idling = waits_for_peers(timed.program, timed.times)
    where = breakdown(timed.program, timed.times, idling=idling)
    rate = tokens / step_s / plan.ranks
    memory = training_memory_of(model, plan, recipe, timed.order, cluster.hardware, fraction=memory_fraction)
    grounds = training_grounds(cluster.hardware, plan, recipe, trace)
    return TrainingPrediction(
        cluster=cluster.name,
        model=model.name,
        network=find_rung(network).name,
        schedule=schedule,
        degrees={name: getattr(plan.layout, name) for name in ("tp", "cp", "dp", "pp", "virtual", "ep", "etp")},
        recipe=recipe.describe(),
        element_types=element_types(recipe.precision.of(model)),
        trace=describe_trace(trace),
        seed=seed,
        microbatches=timed.order.microbatches,
        microbatches_drawn=len(steps),
        step_time_s=step_s,
        tokens_per_s=rate * plan.ranks,
        tokens_per_s_per_gpu=rate,
        model_tflops_per_gpu=model_tflops_per_gpu(model, sequence=recipe.sequence, tokens_per_s_per_gpu=rate),
        breakdown_s=where.step,
        overlapped_s=where.overlapped_s,
        held_up_s=where.held_up_s,
        critical_path=shares_of(where.path_s),
        waiting_P=waiting_of_pipeline(timed, plan, idling),
        in_flight_P=tuple(timed.order.peak_in_flight(rank) for rank in range(plan.layout.pp)),
        memory_bytes=memory,
        fits=memory["total"] <= memory["usable"],
        interval_s=grounds.interval_s(step_s) if model.is_whole else None,
        rests_on=grounds.to_json(),
        labels=(
            *labels_of(model, trace, drawn_of),
            *kernel_grounds(cluster.hardware, recipe.precision.of(model), plan, phase="train"),
        ),
        warnings=(*notes, *warnings_of(cluster, plan, recipe, find_rung(network), memory)),
    )


def labels_of(model: ModelShape, trace: RoutingTrace, from_phase: str) -> tuple[str, ...]:
    """List what every output must say with the numbers: whose routing it is, and that no training step was recorded."""
    found = list(labels(model, trace, Workload(phase="prefill", tokens_per_rank=1)))
    if not model.is_whole:
        found.append("step time, tokens/s and memory are of the layers whose routing there is, not of the whole model")
    by_law = isinstance(trace.meta.source.get("made"), Mapping)  # which is of no phase
    if from_phase != "train" and not by_law:
        found.append(f"routing of {from_phase}, not of training")
    return tuple(found)


def warnings_of(cluster: Cluster, plan: Plan, recipe: Recipe, rung: Rung, memory: Mapping[str, int]) -> tuple[str, ...]:
    """List what a reader should know before trusting the numbers."""
    found = list(transferred(cluster.hardware))
    if not recipe.host:
        found.append(
            "no host is counted (--host-launch, --host-wait): Megatron's hosts take some 5 ms to "
            "launch a direction of an MoE layer without CUDA graphs, and a step is no shorter than "
            "that (docs/accuracy.md)"
        )
    if plan.layout.dp > 1 and not recipe.overlap_grad_reduce:
        found.append(
            "gradients are reduced after the last backward pass, and parameters gathered, beside "
            "nothing: Megatron hides some of it where it is asked to (--overlap-grad-reduce, "
            "--overlap-param-gather)"
        )
    if rung.is_lower_bound:
        found.append(f"{rung.name} is a lower bound: --network fluid follows every flow")
    if memory["total"] > memory["usable"]:
        needed, usable = (format_bytes(memory[name]) for name in ("total", "usable"))
        found.append(f"needs {needed} of the {usable} that are usable: it does not fit")
    return tuple(found)


def time_training(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    recipe: Recipe,
    *,
    schedule: str,
    steps: Sequence[Step],
    network: str | Rung = "bound",
) -> TimedTraining:
    """Lay a training step out and time it; for what draws the timeline, and for what compares schedules."""
    plan, found = with_chunks_of(plan, schedule), find_pipeline_schedule(schedule)
    if cluster.hardware.engine == NEUTRAL.name:
        cluster = kernels_on(cluster, engine=MEGATRON.name)  # what trains is no serving engine
    sizes = Pipeline(pp=plan.layout.pp, virtual=plan.layout.virtual, microbatches=_microbatches(recipe, plan))
    order = make_order(found, sizes)
    try:
        program = training_program(cluster, model, plan, recipe, schedule=found, trace=trace, steps=steps)
    except ValueError as error:
        raise MoecastError(str(error)) from error
    return TimedTraining(program=program, times=find_rung(network).run(program), order=order)


def _microbatches(recipe: Recipe, plan: Plan) -> int:
    try:
        return recipe.microbatches(plan.layout.dp)
    except ValueError as error:
        raise MoecastError(str(error)) from error


def with_chunks_of(plan: Plan, schedule: str) -> Plan:
    """The plan with its chunks where the schedule wants them: folded where the last chunk stands on the first rank.

    Raises
    ------
    MoecastError
        There is no such schedule, or it does not go with so many chunks.
    """
    found, layout = find_pipeline_schedule(schedule), plan.layout
    for virtual in dict.fromkeys((layout.virtual, 2)) if layout.virtual == 1 else (layout.virtual,):
        sizes = Pipeline(pp=layout.pp, virtual=virtual, microbatches=max(2 * layout.pp * virtual, 2))
        if found.supports(sizes) is None:
            return plan.with_(virtual=virtual, folded=found.chunks(sizes).folded, dp=0)
    return plan  # what is wrong with it is said when the order is made


def phase_of(trace: RoutingTrace) -> str:
    """The rows that microbatches are drawn from where nobody says: those of training, else of prefill."""
    return "train" if bool((trace.phase_T == PHASES.index("train")).any()) else "prefill"


def draw_microbatches(
    trace: RoutingTrace, recipe: Recipe, *, ranks: int, drawn: int, from_phase: str | None, seed: int
) -> list[Step]:
    """Draw the tokens of some microbatches, in sequences of the recipe's length: each attends to all before it in one.

    Raises
    ------
    MoecastError
        The trace holds nothing of the phase.
    """
    if drawn < 1:
        raise MoecastError("at least 1", field="drawn", value=drawn)
    workload = Workload(
        phase="prefill",
        tokens_per_rank=recipe.tokens_of_microbatch,
        steps=min(drawn, recipe.microbatches(ranks)),
        seed=seed,
        reuse=True,
        from_phase=from_phase or phase_of(trace),
    )
    place_T = np.tile(np.arange(recipe.tokens_of_microbatch) % recipe.sequence + 1, ranks)
    return [replace(step, context_T=place_T, last_T=None) for step in draw_steps(trace, workload, ranks=ranks)]


def training_memory_of(
    model: ModelShape,
    plan: Plan,
    recipe: Recipe,
    order: PipelineOrder,
    hardware: Hardware,
    *,
    fraction: float = MEMORY_FRACTION,
) -> dict[str, int]:
    """Bytes by part on the pipeline rank that holds most, with an even share of the experts' rows.

    A rank that holds several chunks holds what is of each; activations stand as its order of passes
    lets them.
    """
    chunks = order.chunks
    held = []
    for rank in range(chunks.n_ranks):
        own = [stage for stage, there in zip(chunks.stage_C, chunks.rank_C, strict=True) if there == rank]
        in_flight = order.peak_in_flight(rank) / len(own)
        parts = [
            training_memory(
                shard_of(model, plan, stage),
                recipe.precision,
                tokens=-(-recipe.tokens_of_microbatch // plan.layout.cp),
                sequence=recipe.sequence,
                in_flight=in_flight,
                optimizer=recipe.optimizer,
                recompute=recipe.recompute,
                zero=recipe.zero,
                pipeline=plan.layout.pp > 1,
                travelling_bytes=travelling_bytes(
                    model, recipe.tokens_of_microbatch, tp=plan.tp, cp=plan.cp, exchange=plan.context_exchange
                ),
            )
            for stage in own
        ]
        held.append({name: sum(part[name] for part in parts) for name in parts[0]})
    most = max(held, key=lambda part: sum(part.values()))
    usable = usable_bytes(hardware, fraction)
    return {**most, "total": sum(most.values()), "usable": usable, "capacity": int(hardware.memory_bytes)}


def waiting_of_pipeline(timed: TimedTraining, plan: Plan, idling: IdleTimes) -> tuple[float, ...]:
    """The part of the step in which the ranks of each pipeline rank neither compute nor communicate: their bubble."""
    spent_G = seconds_of_ranks(timed.program, timed.times, idling.idle_S)
    waiting_G = 1 - spent_G / timed.times.step_time_s
    return tuple(float(waiting_G[np.flatnonzero(plan.layout.stage_G == rank)].mean()) for rank in range(plan.layout.pp))
