"""What can be asked of the simulator, checked before anything is drawn or counted."""

from __future__ import annotations

from moecast.errors import MoecastError
from moecast.sim.model import ModelShape
from moecast.sim.plan import Plan
from moecast.sim.schedules import find_schedule
from moecast.topology import Cluster
from moecast.traces import RoutingTrace


def check_question(cluster: Cluster, model: ModelShape, plan: Plan, trace: RoutingTrace) -> None:
    """Fail in one line on a question that has no answer.

    Raises
    ------
    MoecastError
        L, E or K differ between trace, model and plan; the plan is not legal, larger than the cluster, or needs what is
        not simulated.
    """
    check_sizes(model, plan, trace)
    plan.check_simulated()
    if plan.ranks > cluster.n_gpus:
        raise MoecastError(f"{cluster.name} has {cluster.n_gpus} GPUs", field="ranks", value=plan.ranks)
    find_schedule(plan.schedule)
    plan.check_legal()


def check_sizes(model: ModelShape, plan: Plan, trace: RoutingTrace) -> None:
    """Fail where L, E or K of trace, model and plan differ.

    Raises
    ------
    MoecastError
        Names the first size that differs.
    """
    for field in ("layers", "experts", "choices"):
        ours = getattr(model, field)
        for whose, value in (("the trace", getattr(trace.meta, field)), ("the plan", getattr(plan, field))):
            if value != ours:
                raise MoecastError(f"{whose} has {value}, the model {model.name} has {ours}", field=field)
