"""`validate`: hold a plan's forecast against the rungs above it."""

from __future__ import annotations

from moecast.errors import MoecastError
from moecast.sim import Plan, Question, Workload, draw_steps
from moecast.sim.describe import labels
from moecast.traces import RoutingTrace
from moecast.validate.identity import MODE, question_hashes
from moecast.validate.ladder import Ladder, climb
from moecast.validate.measurement import Measurement


def validate(asked: Question, *, measurement: Measurement | None = None) -> Ladder:
    """Ask every rung for the time of the same plan on the same steps, whichever the question names.

    Parameters
    ----------
    measurement
        What `replay` measured for this question. It went over all_to_all_single, so all rungs are
        then asked for dispatch mode `nccl`, whatever mode the plan names.

    Raises
    ------
    MoecastError
        The question has no answer, or the measurement is of another one.
    """
    asked.check()
    plan, trace, workload = asked.plan, asked.trace, asked.workload
    if measurement is not None:
        check_same_question(measurement, plan, trace, workload)
        plan = plan.with_(dispatch=MODE)
    steps = draw_steps(trace, workload, ranks=plan.dp)
    told = labels(asked.model, trace, workload)
    return climb(asked.cluster, asked.model, plan, trace, steps, measurement=measurement, labels=told, seed=asked.seed)


def check_same_question(measurement: Measurement, plan: Plan, trace: RoutingTrace, workload: Workload) -> None:
    """Refuse a measurement of another plan, trace or workload.

    Raises
    ------
    MoecastError
        Names what differs.
    """
    for field, asked in question_hashes(plan, trace, workload).items():
        if getattr(measurement, field) != asked:
            what = field.removesuffix("_hash")
            rule = f"the measurement is of another {what}"
            raise MoecastError(rule, field=field, value=getattr(measurement, field))
