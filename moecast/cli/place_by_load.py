"""``moecast place --load``: a plan from counts of choices alone, which know no tokens, steps or times."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moecast.cli import options
from moecast.cli.asked import CONTEXT, LAYOUT, Asked, option

if TYPE_CHECKING:
    from collections.abc import Container

    from moecast.cli.place_outputs import Outputs
    from moecast.placement import LoadPlacement
    from moecast.sim import ModelShape
    from moecast.sim.plan import ReplicaRule
    from moecast.traces import TraceMeta

# What says which tokens are in flight together: a load table has no tokens.
OF_STEPS = (
    "dims",
    "isl",
    *LAYOUT,
    "sequence_parallel",
    *CONTEXT,
    "recorded_steps",
    "time_limit",
    "work_limit",
    "balance_weight",
    "balance_at_least",
    "robust",
    "advise",
    "prove",
    "replan_every",
    "plan_on",
    "phase",
    "tokens_per_rank",
    "steps",
    "context",
    "topics",
    "one_topic_per_step",
    "request_placement",
    "reuse",
    "from_phase",
)


def refuse_steps(given: Container[str]) -> None:
    """Options about steps and searches mean nothing to a load table: say so rather than ignore them.

    Raises
    ------
    MoecastError
        Names the first of them that is given.
    """
    from moecast.errors import MoecastError

    for name in OF_STEPS:
        if name in given:
            rule = "a load table has no tokens, steps or times for it to act on"
            raise MoecastError(rule, field=option(name))


def place_loads(
    asked: Asked,
    outputs: Outputs,
    *,
    solver: str,
    slots: int | None,
    replica_rule: ReplicaRule,
    expert_groups: int | None,
    json: bool,
) -> None:
    """Place by the load table that is asked about, write the plan and show it.

    Raises
    ------
    MoecastError
        The table or the cluster cannot be read, an engine's file is asked of a model that nobody
        names, or there is no legal plan.
    """
    from moecast.cli import render

    placement, shape, notes = _place(
        asked,
        solver=solver,
        slots=slots,
        replica_rule=replica_rule,
        exports=outputs.export is not None,
        expert_groups=expert_groups,
    )
    launch = outputs.write(placement.plan, shape)
    if json:
        render.echo_json(placement.to_json() | outputs.said(notes, launch))
    else:
        outputs.show(
            placement.table_title, placement.table_rows(), placement.table_notes(), launch=launch, warned=notes
        )


def _place(
    asked: Asked,
    *,
    solver: str,
    slots: int | None,
    replica_rule: ReplicaRule,
    exports: bool,
    expert_groups: int | None,
) -> tuple[LoadPlacement, ModelShape | None, tuple[str, ...]]:
    """Read the counts and place by them; what was assumed of the cluster comes along."""
    from moecast.errors import MoecastError
    from moecast.placement import place_by_load
    from moecast.topology import load_cluster
    from moecast.traces import read_load_table

    asked.source  # noqa: B018  a trace beside a load table is refused
    assert asked.load is not None
    if asked.cluster is None and (asked.nodes, asked.fabric) != (None, None):
        raise MoecastError("name the cluster they are of", field="--cluster")
    table = read_load_table(asked.load)
    shape = _model_of(asked.model, table.meta, asked.load)
    if exports and shape is None:
        rule = "an engine's file needs the model: name it with --model"
        raise MoecastError(rule, file=asked.load)
    built = None if asked.cluster is None else load_cluster(asked.cluster, nodes=asked.nodes, fabric=asked.fabric)
    placement = place_by_load(
        table,
        cluster=built,
        model=shape,
        solver=solver,
        ep=asked.ep,
        slots_per_rank=asked.slots_per_rank,
        slots=slots,
        dispatch=options.dispatch_mode(asked.dispatch),
        replica_rule=replica_rule,
        fill=exports,
        expert_groups=expert_groups,
        seed=asked.seed,
    )
    return placement, shape, built.notes if built else ()


def _model_of(model: str | None, meta: TraceMeta, file: Path) -> ModelShape | None:
    """The model of `--model`, else of the table's own config; None where neither is there."""
    from moecast.cli.inputs import read_model

    return None if model is None and meta.config is None else read_model(model, None, meta, file=file)
