"""`place`: from a cluster, a model, a trace and a Workload to a Plan, its objective and its certificate.

Axes: L MoE layer, E expert, G rank, P slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.advice import Advice
from moecast.placement.certificates import certificate_s
from moecast.placement.finish import check_taken, finished
from moecast.placement.limit import Budget, Limit, Progress, check_seed, stops_on_interrupt
from moecast.placement.notes import with_note
from moecast.placement.objective import Objective
from moecast.placement.placement import Placement
from moecast.placement.plan_shape import PlanShape
from moecast.placement.problem import PlacementProblem
from moecast.placement.replan import Replanning, replan
from moecast.placement.solvers import find_solver, takes
from moecast.sim.collectives import mode_of
from moecast.sim.degrees import Degrees
from moecast.sim.forward import ForwardPass
from moecast.sim.made_by import MadeBy
from moecast.sim.placed_model import PlacedModel
from moecast.sim.schedules import beside_in
from moecast.sim.totals import RoutingTotals

if TYPE_CHECKING:
    from moecast.placement.solver import Solver
    from moecast.sim.model import ModelShape
    from moecast.sim.network import Rung
    from moecast.sim.plan import DispatchMode, Plan, ReplicaRule
    from moecast.sim.workload import Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Int32 = npt.NDArray[np.int32]

WRITING_S = 0.3  # for the plan and what is printed


def place(
    cluster: Cluster,
    model: ModelShape,
    trace: RoutingTrace,
    workload: Workload,
    *,
    solver: str | Solver = "local-search",
    ep: int | None = None,
    tp: int = 1,
    degrees: Degrees | None = None,
    sequence_parallel: bool = True,
    context_exchange: str = "ring",
    context_split: str = "zig-zag",
    slots_per_rank: int | None = None,
    slots: int | None = None,
    network: str | Rung = "",
    dispatch: DispatchMode | None = None,
    replica_rule: ReplicaRule = "round_robin",
    schedule: str = "sequential",
    balance_weight: float | None = None,
    balance_at_least: float | None = None,
    robust: str | None = None,
    time_limit_s: float | None = None,
    work_limit: int | None = None,
    fill: bool = False,
    expert_groups: int | None = None,
    trace_part: str | None = None,
    seed: int = 0,
    advise: bool = False,
    prove_nodes: int = 0,
    replanning: Replanning | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Placement:
    """Find which expert stands on which rank, for the least mean step time under a Workload.

    Parameters
    ----------
    trace
        The part to plan on; results on the same part flatter the plan.
    solver
        A name of `moecast.placement.SOLVERS`, or an object of your own that satisfies
        `moecast.placement.Solver`.
    ep, slots_per_rank
        Ranks of an EP group (None: all GPUs) and slots of each rank (None: as few as hold the
        experts).
    slots
        Instead of `slots_per_rank`: slots of an EP group in each layer, dealt evenly (`PlanShape`).
    network
        The rung that judges plans; empty: ``fluid`` where that takes seconds, else ``bound``.
    tp
        Consecutive ranks that share their tokens and split attention, dense layers and the
        vocabulary.
    degrees
        The layout's other degrees; what solvers or the simulator cannot do yet is refused.
    sequence_parallel
        With `tp`: whether each rank keeps its part of the tokens only (`moecast.sim.Plan`).
    context_exchange, context_split
        With `cp` in `degrees`: how ranks see all keys of the sequences that they share, and how
        these are cut.
    advise
        Also say in words what to do about it (`moecast.placement.advice.Advice`): times twice as
        many steps.
    prove_nodes
        For each layer's copies, sets that the certificate looks at (`certificate_s`); 0: copies are
        counted only.
    replanning
        Also say whether to make new plans over time, by the same solver, and how often (`replan`).
    schedule
        How tasks overlap (`moecast.sim.schedules`). A certificate there is for ``sequential`` only.
    balance_weight
        ``local-search`` only: how much a choice counts against a copy; None: what both cost in
        seconds.
    balance_at_least
        ``local-search`` only: balance that each layer must have on the planning tokens taken as one
        step, 1 being even; None: seconds decide alone.
    robust
        ``topic``: the plan must do well in steps of any one topic, so that ``local-search`` looks
        at the worst.
    time_limit_s, work_limit
        When to stop with the best so far: on the clock, or after so many moves judged. Only a work
        limit gives the same plan again.
    fill
        Fill slots that the solver leaves empty, since serving engines have none; the objective is
        of the filled plan.
    expert_groups
        ``eplb`` only: groups of successive experts that the router limits a token to; None: the
        model's.
    progress
        Called with (thousandths done, 1000).
    say
        Called with what is being done, in words.

    Raises
    ------
    MoecastError
        The question has no answer: slots that cannot hold the experts or overfill the GPU, a solver
        that does not take the problem, a limit of nothing, a trace that is too small.
    """
    options = {"balance_weight": balance_weight, "balance_at_least": balance_at_least, "expert_groups": expert_groups}
    chosen = find_solver(solver, options)
    if fill and takes(chosen, "full"):
        chosen = find_solver(chosen, {"full": True})
    check_seed(seed)
    if replanning is not None and time_limit_s is not None:
        rule = "is for one search, and every window has its own: give a work limit"
        raise MoecastError(rule, field="time_limit", value=time_limit_s)
    budget = Budget(Limit(time_s=time_limit_s, work=work_limit), _told(progress, say))
    shape = PlanShape(
        ep=ep,
        tp=tp,
        degrees=degrees or Degrees(),
        slots_per_rank=slots_per_rank,
        slots=slots,
        dispatch=dispatch,
        replica_rule=replica_rule,
        schedule=schedule,
        sequence_parallel=sequence_parallel,
        context_exchange=context_exchange,
        context_split=context_split,
    )
    wanted = shape.contiguous(model.shape_LEK, model.moe_layer_ids, ranks=cluster.n_gpus)
    problem = PlacementProblem(
        cluster=cluster,
        model=model,
        trace=trace,
        workload=workload,
        wanted=wanted,
        seed=seed,
        trace_part=trace_part,
        robust=robust,
        network=network,
    )
    check_taken(chosen.name, chosen.supports(problem))
    objective = Objective(problem)
    known = _known_before(problem, objective, budget, prove_nodes, say)
    with stops_on_interrupt(budget):
        solved = chosen.solve(problem, objective, budget, seed=seed)
    if budget.stopped:
        solved = replace(solved, note=with_note(solved.note, "stopped by Ctrl-C with the best so far"))
    by_choice = mode_of(wanted.dispatch, workload.kernels).per_choice
    slots_LGP, note = finished(solved, problem, chosen.name, by_choice=by_choice, fill=fill)
    problem.plan(slots_LGP).check_legal()  # before it is judged: loops rely on it
    seconds = budget.seconds
    budget.tell("timing the plan that was found", 1.0)
    found = _judged(
        problem, objective, slots_LGP, known, solver=chosen.name, seconds=seconds, note=note, work=solved.work
    )
    replanned = None if replanning is None else replan(problem, replanning, solver=chosen, work_limit=work_limit)
    if not advise:
        return replace(found, replanned=replanned)
    budget.tell("timing experts in order, an oracle, and more slots", 1.0)
    rebalance = [] if replanned is None else replanned.words()
    advice = Advice.of(problem, objective, slots_LGP, rebalance=rebalance)
    return replace(found, advice=advice, replanned=replanned)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is true of every plan: the certificate, or why there is none."""

    bound_s: float | None
    note: str = ""


def _known_before(
    problem: PlacementProblem,
    objective: Objective,
    budget: Budget,
    prove_nodes: int,
    say: Callable[[str], None] | None,
) -> _Known:
    """Bound what any plan could take, before the search: so that a time limit knows what is still to be done after it.

    After it come the plan's routing, which is counted once here to see how long that takes, and
    writing the plan.
    """
    beside = beside_in(problem.wanted, problem.workload.kernels)
    known = _Known(bound_s=None, note=f"no certificate: it holds for tasks on one stream, not for {beside}")
    if beside is None:
        known = _Known(bound_s=certificate_s(problem, objective.judged, prove_nodes=prove_nodes, say=say))
    if budget.limit.time_s is not None:
        begin_s = budget.seconds
        _routing(problem, problem.any_plan())
        budget.keep(1.5 * (budget.seconds - begin_s) + WRITING_S)
    return known


def _judged(
    problem: PlacementProblem,
    objective: Objective,
    slots_LGP: Int32,
    known: _Known,
    *,
    solver: str,
    seconds: float,
    note: str,
    work: str,
) -> Placement:
    """Time the slots that were found, and write that and the certificate into the plan."""
    objective_s = objective.step_s(slots_LGP)
    bound_s, note = known.bound_s, with_note(note, known.note)
    made_by = MadeBy(
        solver=solver,
        seed=problem.seed,
        trace_hash=problem.trace.content_hash(),
        trace_part=problem.trace_part,
        objective_s=objective_s,
        bound_s=bound_s,
        note=note,
    )
    plan = problem.plan(slots_LGP, made_by=made_by)
    return Placement(
        plan=plan,
        objective_s=objective_s,
        bound_s=bound_s,
        gap=None if bound_s is None else (objective_s - bound_s) / objective_s,
        solver=solver,
        seconds=seconds,
        legal=True,
        wasted_slots=plan.wasted_slots(),
        note=note,
        work=work,
        advice=None,
        replanned=None,
        **_routing(problem, plan),
    )


def _routing(problem: PlacementProblem, plan: Plan) -> dict[str, float]:
    """Balance and fan-out of the planning steps."""
    placed = PlacedModel.of(problem.cluster, problem.model, plan, phase=problem.workload.kernels, seed=problem.seed)
    totals = RoutingTotals(placed)
    for step in problem.steps:
        totals.add(ForwardPass.of(placed, problem.trace, step))
    fields = totals.fields()
    return {name: float(fields[name]) for name in ("balance_pooled", "fan_out", "fan_out_domains")}


def _told(progress: Callable[[int, int], None] | None, say: Callable[[str], None] | None) -> Progress | None:
    if progress is None and say is None:
        return None

    def told(what: str, part: float) -> None:
        if say is not None:
            say(what)
        if progress is not None:
            progress(round(1000 * part), 1000)

    return told
