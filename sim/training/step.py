"""A whole training step as a program: microbatches through a pipeline, then gradients, optimizer and parameters.

Axes: R rank of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.collectives.links import link_capacity, link_names
from moecast.sim.program import Compute, Exchange, StepProgram, Task
from moecast.sim.schedules.fsmoe import BETWEEN
from moecast.sim.schedules.fsmoe_training import degree_of
from moecast.sim.schedules.pipeline.cells import Pair, Pipeline
from moecast.sim.schedules.pipeline.companions import Companions
from moecast.sim.schedules.pipeline.lower import lower, on_narrowest
from moecast.sim.schedules.pipeline.order import PipelineOrder, PipelineSchedule, make_order
from moecast.sim.schedules.pipeline.sends import HiddenSends
from moecast.sim.sites import Sites
from moecast.sim.stage_tasks import OUTSIDE
from moecast.sim.training.alone import with_plain_where_alone
from moecast.sim.training.collectives import Collectives
from moecast.sim.training.gradients import Reduction, reductions
from moecast.sim.training.overlapped import GRADIENT_STREAMS, STREAMS, Overlapped, overlaps
from moecast.sim.training.partitioned import filled, partitions, probe
from moecast.sim.training.recipe import Recipe
from moecast.sim.training.stage import StageWork, stage_work

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


def training_program(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    recipe: Recipe,
    *,
    schedule: PipelineSchedule,
    trace: RoutingTrace,
    steps: Sequence[Step],
    microbatches: int | None = None,
) -> StepProgram:
    """Lay out one training step.

    Parameters
    ----------
    schedule
        Of the pipeline; with one stage any that goes through microbatches one by one.
    trace, steps
        The routing of the microbatches (see `stage_work`).
    microbatches
        How many each data-parallel rank goes through; None: what the recipe's batch asks for.

    Raises
    ------
    MoecastError, ValueError
        The schedule does not go with the plan's pipeline, or as of `stage_work`.
    """
    count = recipe.microbatches(plan.layout.dp) if microbatches is None else microbatches
    order = make_order(schedule, Pipeline(pp=plan.layout.pp, virtual=plan.layout.virtual, microbatches=count))
    _check_moe_schedule(order, recipe)
    chunks = order.chunks
    works: list[StageWork] = []
    sites_of: dict[int, Sites] = {}
    for stage, rank in zip(chunks.stage_C, chunks.rank_C, strict=True):
        known = sites_of.get(rank)
        works.append(
            stage_work(cluster, model, plan, recipe, stage=stage, rank=rank, trace=trace, steps=steps, sites=known)
        )
        sites_of[rank] = works[-1].sites
    sites = Sites.of(cluster, plan)
    collectives = [Collectives(sites_of[rank], plan.layout.of_stage(rank)) for rank in range(chunks.n_ranks)]
    sends, capacity_J = HiddenSends(sites, works), link_capacity(sites)
    empty = StepProgram(tasks=(), n_ranks=sites.n_ranks, capacity_J=capacity_J, link_names_J=link_names(sites))
    beside: Companions = Overlapped(order, works, recipe, collectives)
    left: tuple[tuple[Reduction, ...], ...] = ((),) * len(works)
    if partitions(recipe, order):
        probed = probe(order, works, Overlapped(order, works, recipe, collectives, gradients=False))
        marked = replace(empty, tasks=tuple(lower(order, works, sends, probed)))
        beside = found = filled(probed, marked, works, recipe, [collectives[rank] for rank in chunks.rank_C])
        left = found.left_C
    tasks = lower(order, works, sends, beside)
    for rank in range(chunks.n_ranks):
        own = [work for work, there in zip(works, chunks.rank_C, strict=True) if there == rank]
        ranks_R = own[0].ranks_R if chunks.n_ranks > 1 else None
        reduced = _last_reduced(tasks, ranks_R)
        over = [part for parts, there in zip(left, chunks.rank_C, strict=True) if there == rank for part in parts]
        ends = _end_of_step(own, recipe, collectives[rank], count, reduced, over)
        tasks += [replace(task, ranks_R=ranks_R) for task in ends]
    plain = _plain(tasks, works, chunks.rank_C, collectives)
    narrowed, narrowest_J = on_narrowest([*tasks, *plain.values()], capacity_J)
    program = replace(empty, tasks=tuple(narrowed[: len(tasks)]), narrowest_J=narrowest_J)
    alone = (task for task in narrowed[len(tasks) :] if isinstance(task, Exchange))
    return with_plain_where_alone(program, dict(zip(plain, alone, strict=True)))


def _check_moe_schedule(order: PipelineOrder, recipe: Recipe) -> None:
    """Refuse chunks of MoE layers in pairs of microbatches, which have their own way of overlapping.

    Raises
    ------
    MoecastError
        A pair, and chunks.
    """
    pairs = any(isinstance(block, Pair) for blocks in order.blocks_G for block in blocks)
    if pairs and degree_of(recipe.moe_schedule) > 1:
        rule = "sequential where microbatches run in pairs: what one sends is under the other's compute already"
        raise MoecastError(rule, field="moe_schedule", value=recipe.moe_schedule)


def _plain(
    tasks: Sequence[Task], works: Sequence[StageWork], rank_C: Sequence[int], collectives: Sequence[Collectives]
) -> dict[int, Exchange]:
    """What stands beside microbatches, by its place, as it would be beside nothing."""
    rank_of = {id(work.ranks_R): rank for work, rank in zip(works, rank_C, strict=True)}
    return {
        place: collectives[rank_of.get(id(task.ranks_R), 0)].plain(task)
        for place, task in enumerate(tasks)
        if isinstance(task, Exchange) and task.stream in STREAMS
    }


def _last_reduced(tasks: Sequence[Task], ranks_R: Int32 | None) -> tuple[int, ...]:
    """The last tasks of some ranks that reduce gradients beside microbatches: the end of each stream."""
    found = {
        task.stream: place
        for place, task in enumerate(tasks)
        if task.ranks_R is ranks_R and task.kind == "other" and task.stream in (*GRADIENT_STREAMS, BETWEEN)
    }
    return tuple(sorted(found.values()))


def _end_of_step(
    works: Sequence[StageWork],
    recipe: Recipe,
    collectives: Collectives,
    microbatches: int,
    reduced: tuple[int, ...],
    left: Sequence[Reduction],
) -> list[Task]:
    """Reduce the gradients of a pipeline rank, update its parameters, and gather them, one after another.

    Of what does not stand beside microbatches. What ZeRO 2 and 3 send for every microbatch is as
    often here. `reduced`: what the update waits for. `left`: what found no place beside
    microbatches.
    """
    wanted = [
        *left,
        *(
            part
            for work in works
            for part in reductions(work.shard, recipe.precision, zero=recipe.zero)
            if not overlaps(part, recipe)
        ),
    ]
    seconds = sum(work.optimizer_seconds(recipe) for work in works)

    def sent(*, gathers: bool) -> list[Exchange]:
        parts = [part for part in wanted if (part.operation == "all-gather") is gathers]
        often = collectives.alone([part for part in parts if part.per_microbatch])
        return often * microbatches + collectives.alone([part for part in parts if not part.per_microbatch])

    n_ranks = len(works[0].ranks_R)
    update = Compute(kind="other", layer=OUTSIDE, seconds_R=np.full(n_ranks, seconds), after=reduced)
    return [*sent(gathers=False), update, *sent(gathers=True)]
