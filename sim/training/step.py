"""A whole training step as a program: microbatches through a pipeline, then gradients, optimizer and parameters.

Axes: D group of ranks that hold the same parameters, M member of one, R rank of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.choice import candidates, pick
from moecast.sim.collectives.groups import numbers_of_groups
from moecast.sim.collectives.links import link_capacity, link_names
from moecast.sim.layout import Layout
from moecast.sim.program import Compute, Exchange, StepProgram, Task
from moecast.sim.schedules.pipeline.cells import Pipeline
from moecast.sim.schedules.pipeline.lower import lower, on_narrowest
from moecast.sim.schedules.pipeline.order import PipelineSchedule, make_order
from moecast.sim.schedules.pipeline.sends import HiddenSends
from moecast.sim.sites import Sites
from moecast.sim.stage_tasks import OUTSIDE
from moecast.sim.training.gradients import Group, Reduction, reductions
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
    tasks = lower(order, works, HiddenSends(sites, works))
    for rank in range(chunks.n_ranks):
        own = [work for work, there in zip(works, chunks.rank_C, strict=True) if there == rank]
        ranks_R = own[0].ranks_R if chunks.n_ranks > 1 else None
        ends = _end_of_step(own, recipe, plan.layout.of_stage(rank), count)
        tasks += [replace(task, ranks_R=ranks_R) for task in ends]
    capacity_J = link_capacity(sites)
    narrowed, narrowest_J = on_narrowest(tasks, capacity_J)
    return StepProgram(
        tasks=tuple(narrowed),
        n_ranks=sites.n_ranks,
        capacity_J=capacity_J,
        link_names_J=link_names(sites),
        narrowest_J=narrowest_J,
    )


def _end_of_step(works: Sequence[StageWork], recipe: Recipe, layout: Layout, microbatches: int) -> list[Task]:
    """Reduce the gradients of a pipeline rank, update its parameters, and gather them, one after another.

    What ZeRO 2 and 3 send for every microbatch stands here, too, as often: none of it beside a microbatch's work.
    """
    wanted = [part for work in works for part in reductions(work.shard, recipe.precision, zero=recipe.zero)]
    sites, n_ranks = works[0].sites, len(works[0].ranks_R)
    seconds = sum(work.optimizer_seconds(recipe) for work in works)

    def sent(*, gathers: bool) -> list[Exchange]:
        parts = [part for part in wanted if (part.operation == "all-gather") is gathers]
        often = collectives([part for part in parts if part.per_microbatch], sites, layout)
        return often * microbatches + collectives([part for part in parts if not part.per_microbatch], sites, layout)

    update = Compute(kind="other", layer=OUTSIDE, seconds_R=np.full(n_ranks, seconds))
    return [*sent(gathers=False), update, *sent(gathers=True)]


def collectives(parts: Sequence[Reduction], sites: Sites, layout: Layout) -> list[Exchange]:
    """Make exchanges of reductions, those of one operation over one kind of group in one, as NCCL would carry them."""
    found = []
    for group, operation in dict.fromkeys((part.group, part.operation) for part in parts):
        size = sum(part.bytes for part in parts if (part.group, part.operation) == (group, operation))
        groups_DM = groups_of(layout, group)
        sizes_D = np.full(len(groups_DM), round(size))
        choice = pick(candidates(sites, groups_DM, operation=operation), sites, sizes_D)
        found.append(
            Exchange(
                kind="other",
                layer=OUTSIDE,
                flows=choice.template.counted(sizes_D),
                setup_s=choice.setup_s(sites),
                barrier=False,
                group_R=numbers_of_groups(sites, groups_DM),
            )
        )
    return found


def groups_of(layout: Layout, group: Group) -> Int32:
    """The groups of a pipeline rank's layout over which gradients of a kind are reduced: ranks [D, M] from 0."""
    if group == "expert":
        return layout.peers("groups")
    if group == "tensor":
        return layout.peers("tp")
    return np.stack([np.flatnonzero(layout.tp_G == place) for place in range(layout.tp)]).astype(np.int32)
