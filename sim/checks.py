"""What can be asked of the simulator, checked before anything is drawn or counted."""

from __future__ import annotations

from moecast.errors import MoecastError
from moecast.sim.model import ModelShape
from moecast.sim.plan import Plan
from moecast.sim.schedules import find_schedule
from moecast.sim.simulated import check_simulated
from moecast.topology import Cluster
from moecast.traces import RoutingTrace


def check_question(
    cluster: Cluster,
    model: ModelShape,
    plan: Plan,
    trace: RoutingTrace,
    *,
    pipeline: bool = False,
    alike: bool = False,
) -> None:
    """Fail in one line on a question that has no answer.

    Parameters
    ----------
    pipeline
        It may have pipeline stages.
    alike
        A trace of one layer may stand for all of them.

    Raises
    ------
    MoecastError
        L, E or K differ between trace, model and plan; the plan is not legal, larger than the
        cluster, or needs what is not simulated.
    """
    check_sizes(model, plan, trace, alike=alike)
    check_simulated(plan, pipeline=pipeline)
    if plan.ranks > cluster.n_gpus:
        rule = f"{cluster.name} has {cluster.n_gpus} GPUs"
        raise MoecastError(rule, field="ranks", value=plan.ranks)
    find_schedule(plan.schedule)
    plan.check_legal()


def check_sizes(model: ModelShape, plan: Plan, trace: RoutingTrace, *, alike: bool = False) -> None:
    """Fail where L, E or K of trace, model and plan differ, or the plan is of other layers.

    A plan that numbers its layers from 0 says only how many they are: solvers that know no model
    make such ones.

    Raises
    ------
    MoecastError
        Names the first that differs.
    """
    for field in ("layers", "experts", "choices"):
        ours = getattr(model, field)
        for whose, value in (("the trace", getattr(trace.meta, field)), ("the plan", getattr(plan, field))):
            if value != ours and not (alike and (field, value, whose) == ("layers", 1, "the trace")):
                rule = f"{whose} has {value}, the model {model.name} has {ours}"
                raise MoecastError(rule, field=field)
    if plan.layer_ids not in (model.moe_layer_ids, tuple(range(plan.layers))):
        ours, theirs = (_runs(ids) for ids in (model.moe_layer_ids, plan.layer_ids))
        rule = f"the MoE layers of {model.name} are {ours}"
        raise MoecastError(rule, field="plan: layer_ids", value=theirs)


def _runs(ids: tuple[int, ...]) -> str:
    """Write rising numbers as runs: 3-60, 62."""
    first_of = [i for i, layer in enumerate(ids) if i == 0 or layer != ids[i - 1] + 1]
    runs = [ids[a:b] for a, b in zip(first_of, [*first_of[1:], len(ids)], strict=True)]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
