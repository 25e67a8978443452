"""`simulate`: from cluster, model, plan, trace and workload to a Prediction.

Axes: W step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.errors import MoecastError
from moecast.sim import describe
from moecast.sim.accuracy import grounds_of
from moecast.sim.checks import check_question
from moecast.sim.dispatch_type import dispatch_type_of
from moecast.sim.drawn_steps import draw_steps
from moecast.sim.forward import ForwardPass
from moecast.sim.gains import bottleneck_of, marginal_gains, programs_with_more
from moecast.sim.kernel_grounds import kernel_grounds
from moecast.sim.memory import memory_by_part, usable_bytes
from moecast.sim.network import Rung, find_rung
from moecast.sim.placed_model import PlacedModel
from moecast.sim.prediction import Prediction
from moecast.sim.program import StepProgram, StepTimes
from moecast.sim.question import Question
from moecast.sim.schedules import program_of
from moecast.sim.serving_pipeline import ServingPipeline, first_stage
from moecast.sim.totals import RoutingTotals, TimeTotals

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.sim.workload import Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace


def simulate(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    workload: Workload,
    *,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> Prediction:
    """Forecast how fast a plan runs a workload on a cluster, what it needs, and what limits it.

    Parameters
    ----------
    progress
        Called with (done, in all): the steps, and the first one as often as it is timed again.
    how
        The other fields of a `Question`: `network`, `max_fluid_steps`, `memory_fraction`, `gains`,
        `seed`, ….

    Raises
    ------
    MoecastError
        The question has no answer: sizes that do not match, a plan that is not legal or not
        simulated yet, a trace that is too small.
    """
    for name in ("overrides", "notes"):
        how[name] = tuple(how.get(name, ()))
    asked = Question(cluster=cluster, model=model, plan=plan, trace=trace, workload=workload, **how)
    return simulate_question(asked, progress=progress)


def simulate_question(asked: Question, *, progress: Callable[[int, int], None] | None = None) -> Prediction:
    """Answer a question: as `simulate`, which takes its parts.

    Raises
    ------
    MoecastError
        The question has no answer.
    """
    asked.check()
    model, plan, trace, workload, rung = asked.model, asked.plan, asked.trace, asked.workload, asked.rung
    steps = draw_steps(trace, workload, ranks=plan.dp)
    timed = timed_steps(len(steps), len(steps) if rung.times_every_step else asked.max_fluid_steps)
    pipeline = _pipeline(asked.cluster, model, plan, workload.kernels, asked.seed)
    counted = plan if pipeline is None else first_stage(plan)
    placed = PlacedModel.of(asked.cluster, model, counted, phase=workload.kernels, seed=asked.seed)
    routing, timing, saved = _run(placed, pipeline, trace, steps, timed, rung, asked.gains, progress)
    memory = _memory(placed, plan, workload, steps, routing, asked.memory_fraction)
    speed = _speed(timing, [steps[index] for index in timed], plan.ranks, workload)
    grounds = grounds_of(asked)
    return Prediction(
        cluster=asked.cluster.name,
        model=model.name,
        network=rung.name,
        phase=workload.phase,
        plan=describe.describe_plan(
            plan,
            placed.mode,
            dispatch_type=dispatch_type_of(plan, model, asked.cluster.hardware),
            summed=placed.experts_are_summed,
        ),
        workload={**describe.describe_workload(workload), "element_types": describe.element_types(model)},
        trace=describe.describe_trace(trace),
        seed=asked.seed,
        routing_shape=model.shape_LEK,
        model_shape=model.named_shape or model.shape_LEK,
        steps=len(steps),
        steps_simulated=timed,
        bottleneck=bottleneck_of(saved),
        gains=saved,
        interval_s=grounds.interval_s(speed["step_time_s"]) if model.is_whole else None,
        rests_on=grounds.to_json(),
        labels=(
            *describe.labels(model, trace, workload),
            *kernel_grounds(
                asked.cluster.hardware, model, plan, phase=workload.phase, summed=placed.experts_are_summed
            ),
        ),
        warnings=(
            *asked.notes,
            *describe.transferred(asked.cluster.hardware),
            *describe.loose_bound(plan, rung, workload.kernels),
            *describe.empty_layers(routing.empty_layers, plan.layers),
            *describe.warnings(plan, model, trace, workload, memory=memory, overrides=asked.overrides),
        ),
        **routing.fields(),
        **_whole_step(
            model,
            speed,
            {"memory_bytes": memory, "fits": memory["total"] <= memory["usable"]},
        ),
    )


def _pipeline(cluster: Cluster, model: ModelShape, plan: Plan, phase: str, seed: int) -> ServingPipeline | None:
    """The plan's pipeline, where it has several stages or microbatches."""
    if plan.layout.stages * plan.microbatches == 1:
        return None
    return ServingPipeline.of(cluster, model, plan, phase=phase, seed=seed)


OF_A_STEP = ("step_time_s", "step_times_s", "tokens_per_s", "tokens_per_s_per_gpu", "latency_s", "memory_bytes", "fits")


def _whole_step(model: ModelShape, *fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only a whole step of the named model would say, where none was simulated."""
    values = {name: value for part in fields for name, value in part.items()}
    return values if model.is_whole else values | dict.fromkeys(OF_A_STEP)


def step_program(
    cluster: Cluster, model: ModelShape, plan: Plan, trace: RoutingTrace, step: Step, *, seed: int = 0
) -> StepProgram:
    """Build the program of one step, which every network rung runs.

    Raises
    ------
    MoecastError
        L, E or K differ, the plan names GPUs that the cluster does not have, or says what is not
        simulated.
    """
    check_question(cluster, model, plan, trace, pipeline=True)
    pipeline = _pipeline(cluster, model, plan, step.kernels, seed)
    if pipeline is not None:
        return pipeline.program(trace, step)
    forward = ForwardPass.of(PlacedModel.of(cluster, model, plan, phase=step.kernels, seed=seed), trace, step)
    return program_of(forward)


def simulate_step(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    step: Step,
    *,
    network: str | Rung = "fluid",
    seed: int = 0,
) -> tuple[StepProgram, StepTimes]:
    """Time one step: its program, and when each rank enters and leaves each stage."""
    program = step_program(cluster, model, plan, trace, step, seed=seed)
    return program, find_rung(network).run(program)


def timed_steps(steps: int, most: int) -> tuple[int, ...]:
    """Choose at most `most` of the steps, evenly spread, the first one always."""
    if most < 1:
        raise MoecastError("must be at least 1", field="max_fluid_steps", value=most)
    return tuple(sorted({int(index) for index in np.linspace(0, steps - 1, min(steps, most)).round()}))


def _run(
    placed: PlacedModel,
    pipeline: ServingPipeline | None,
    trace: RoutingTrace,
    steps: Sequence[Step],
    timed: Sequence[int],
    rung: Rung,
    gains: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[RoutingTotals, TimeTotals, dict[str, float]]:
    """Count every step's traffic, time some of the steps, and the first one again with twice of each resource."""
    routing, timing = RoutingTotals(placed), TimeTotals(placed)
    varied: dict[str, Callable[[], StepProgram]] = {}
    for index, step in enumerate(steps):
        forward = ForwardPass.of(placed, trace, step)
        routing.add(forward)
        if index in timed:
            program = program_of(forward) if pipeline is None else pipeline.program(trace, step)
            times = rung.run(program)
            timing.add(program, times, forward.traffic.rank_load_LG)
            if gains and index == timed[0]:
                again = None if pipeline is None else partial(_again_on, pipeline, trace, step)
                varied = programs_with_more(forward, program, times, again)
        if progress is not None:
            progress(index + 1, len(steps) + len(varied))
    times_s = {}
    for done, (name, program_with_more) in enumerate(varied.items(), len(steps) + 1):
        times_s[name] = rung.run(program_with_more()).step_time_s
        if progress is not None:
            progress(done, len(steps) + len(varied))
    return routing, timing, marginal_gains(times_s, timing.step_times_s[0])


def _again_on(pipeline: ServingPipeline, trace: RoutingTrace, step: Step, cluster: Cluster) -> StepProgram:
    return pipeline.on(cluster).program(trace, step)


def _memory(
    placed: PlacedModel, plan: Plan, workload: Workload, steps: Sequence[Step], routing: RoutingTotals, fraction: float
) -> dict[str, int]:
    hardware = placed.sites.cluster.hardware
    parts = memory_by_part(
        placed.model,
        plan,
        workload,
        hardware,
        steps=steps,
        expert_rows=routing.most_rows,
        most_tokens=routing.most_tokens,
    )
    usable, capacity = usable_bytes(hardware, fraction), int(hardware.memory_bytes)
    return {**parts, "total": sum(parts.values()), "usable": usable, "capacity": capacity}


def _speed(timing: TimeTotals, steps: Sequence[Step], ranks: int, workload: Workload) -> dict[str, Any]:
    fields = timing.fields()
    rate = sum(map(workload.tokens_done, steps)) / sum(timing.step_times_s)
    return {
        **fields,
        "tokens_per_s": rate,
        "tokens_per_s_per_gpu": rate / ranks,
        "latency_s": fields["step_time_s"] / workload.accepted_per_step,
        "latency_kind": workload.latency_kind,
    }
