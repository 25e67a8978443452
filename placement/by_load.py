"""`place_by_load`: a plan out of counts alone, for engines that record no more.

Axes: L MoE layer, E expert, G rank, P slot.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.certificates.fullest_rank import fullest_rank_bound_L, rank_load_LG
from moecast.placement.finish import check_taken, finished
from moecast.placement.limit import check_seed
from moecast.placement.plan_shape import PlanShape
from moecast.placement.problem import counted_from_0
from moecast.placement.solvers import find_load_solver
from moecast.sim.collectives import mode_of
from moecast.sim.made_by import MadeBy
from moecast.sim.plan import Plan
from moecast.sim.shown import ShownAsTable
from moecast.sim.slots import EMPTY
from moecast.units import format_s

if TYPE_CHECKING:
    from moecast.placement.solver import LoadSolver
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import DispatchMode, ReplicaRule
    from moecast.topology import Cluster
    from moecast.traces import LoadTable

Int32 = npt.NDArray[np.int32]

ROUNDING = 1e-12  # of sums of shares; a certificate must not exceed a plan that meets it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadProblem:
    """How often each expert is chosen, and the slots there are: all that some solvers look at.

    Parameters
    ----------
    table
        The counts.
    wanted
        Any plan with the wanted ranks and slots.
    domain_G, node_G
        Domain and host of each member of an EP group, counted from 0.
    expert_groups
        Groups of successive experts that the router limits a token to; 1 where it has none.
    slots_G
        Its slots.
    """

    table: LoadTable
    wanted: Plan
    domain_G: Int32
    node_G: Int32
    expert_groups: int = 1
    slots_G: Int32 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wanted = self.wanted
        counts = [wanted.max_slots] * wanted.ep if wanted.slots_per_rank is None else wanted.slots_per_rank
        object.__setattr__(self, "slots_G", np.array(counts, np.int32))

    @property
    def n_domains(self) -> int:
        """Domains that an EP group's ranks stand in."""
        return int(self.domain_G.max()) + 1

    @property
    def load_LE(self) -> npt.NDArray[np.int64]:
        """Choices of each expert."""
        return self.table.load_LE

    def empty_slots_LGP(self) -> Int32:
        """Make a table of empty slots to fill."""
        return np.full((self.wanted.layers, self.wanted.ep, self.wanted.max_slots), EMPTY, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadPlacement(ShownAsTable):
    """What `place_by_load` found.

    All numbers take all that was counted as one step, replicas sharing evenly.

    Parameters
    ----------
    plan
        The legal plan.
    fullest, fullest_bound, gap
        Load of the fullest rank over the mean, averaged over the layers with any; the certificate,
        which no legal plan with these slots can beat; (fullest - certificate) / fullest.
    balance_pooled, balance_bound
        Mean over the fullest rank's load, averaged over layers, and what no plan can exceed.
    solver, seconds
        Who found it, and how long that took on the clock.
    legal, wasted_slots
        Checked, not assumed; slots that repeat an expert of their own rank.
    note
        What a reader should know of how it was found.
    """

    plan: Plan
    fullest: float
    fullest_bound: float
    gap: float
    balance_pooled: float
    balance_bound: float
    solver: str
    seconds: float
    legal: bool
    wasted_slots: int
    note: str = ""

    @property
    def table_title(self) -> str:
        """Who found the plan, and from what."""
        return f"{self.solver}, by load alone"

    def table_rows(self) -> list[tuple[str, str]]:
        """What `moecast place --load` prints."""
        return [
            ("objective: fullest rank ÷ mean, all counts as one step", f"{self.fullest:.4f}"),
            ("certificate: no plan with these slots can beat", f"{self.fullest_bound:.4f}"),
            ("gap", f"{100 * self.gap:.2f} %"),
            ("balance pooled", f"{self.balance_pooled:.3f} (at most {self.balance_bound:.3f})"),
            ("fan-out, step time", "not known: counts say no co-activation"),
            ("wasted slots", str(self.wasted_slots)),
            ("solver's time", format_s(self.seconds)),
        ]

    def table_notes(self) -> list[str]:
        """How it was found."""
        return [f"note: {self.note}"] if self.note else []

    def to_json(self) -> dict[str, Any]:
        """Everything but the plan, as plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "plan"}


def place_by_load(
    table: LoadTable,
    *,
    cluster: Cluster | None = None,
    model: ModelShape | None = None,
    solver: str | LoadSolver = "balance",
    ep: int | None = None,
    slots_per_rank: int | None = None,
    slots: int | None = None,
    dispatch: DispatchMode | None = None,
    replica_rule: ReplicaRule = "round_robin",
    fill: bool = False,
    expert_groups: int | None = None,
    seed: int = 0,
) -> LoadPlacement:
    """Find which expert stands on which rank, for the most even load, from counts alone.

    Parameters
    ----------
    table
        Counts of choices per layer and expert.
    cluster
        Where; without one the ranks of the EP group stand in one domain.
    model
        Whose experts must fit the cluster's GPUs; None: not checked.
    solver
        A name of `moecast.placement.LOAD_SOLVERS`, or an object of your own that satisfies
        `moecast.placement.LoadSolver`.
    ep, slots_per_rank
        Ranks of an EP group (None: all GPUs) and slots of each rank (None: as few as hold the
        experts).
    slots
        Instead of `slots_per_rank`: slots of an EP group in each layer, dealt evenly.
    fill
        Fill slots that the solver leaves empty, since serving engines have none.
    expert_groups
        ``eplb`` only: groups of successive experts that the router limits a token to; None: the
        model's.

    Raises
    ------
    MoecastError
        The question has no answer: slots that cannot hold the experts or overfill the GPU, no
        ranks, no counts, or a solver that needs tokens.
    """
    check_seed(seed)
    chosen = find_load_solver(solver, {"expert_groups": expert_groups})
    shape = PlanShape(ep=ep, slots_per_rank=slots_per_rank, slots=slots, dispatch=dispatch, replica_rule=replica_rule)
    problem = _problem(table, cluster, model, shape)
    check_taken(chosen.name, chosen.supports(problem))
    start = time.monotonic()
    by_choice = dispatch is not None and mode_of(dispatch, "decode").per_choice
    slots_LGP, note = finished(chosen.spread(problem), problem, chosen.name, by_choice=by_choice, fill=fill)
    made_by = MadeBy(solver=chosen.name, seed=seed, trace_part="a load table: counts only", note=note)
    plan = _plan(problem, slots_LGP, made_by)
    plan.check_legal()
    return LoadPlacement(
        plan=plan,
        solver=chosen.name,
        seconds=time.monotonic() - start,
        legal=True,
        wasted_slots=plan.wasted_slots(),
        note=note,
        **_judged(problem, slots_LGP),
    )


def _problem(
    table: LoadTable,
    cluster: Cluster | None,
    model: ModelShape | None,
    shape: PlanShape,
) -> LoadProblem:
    if cluster is None and shape.ep is None:
        raise MoecastError("without a cluster, say how many ranks an EP group has", field="ep")
    if not table.load_LE.any():
        raise MoecastError("the load table holds no choice", field="load")
    meta = table.meta
    ids = meta.layer_ids or (model.moe_layer_ids if model else None)
    ranks = cluster.n_gpus if cluster is not None else shape.ep
    wanted = shape.contiguous(meta.shape_LEK, ids, ranks=ranks or 0)
    _check_weights(wanted, cluster, model)
    domain_G = node_G = np.zeros(wanted.ep, np.int32)
    if cluster is not None:
        of_gpu = (cluster.domain_of_gpu_G, cluster.node_of_gpu_G)
        domain_G, node_G = (counted_from_0(of_G[: wanted.ep]) for of_G in of_gpu)
    groups = 1 if model is None else model.expert_groups
    return LoadProblem(table=table, wanted=wanted, domain_G=domain_G, node_G=node_G, expert_groups=groups)


def _check_weights(wanted: Plan, cluster: Cluster | None, model: ModelShape | None) -> None:
    """The experts' weights must fit; how much else is in memory depends on a workload, which counts do not have."""
    if cluster is None or model is None:
        return
    needed, hardware = model.expert_bytes * wanted.layers * wanted.max_slots, cluster.hardware
    if needed > hardware.memory_bytes:
        raise MoecastError(
            f"experts of {needed / 2**30:.1f} GiB overfill the {hardware.memory_bytes / 2**30:.1f} "
            f"GiB of a {hardware.name}: use fewer slots or more ranks",
            field="slots_per_rank",
            value=wanted.max_slots,
        )


def _plan(problem: LoadProblem, slots_LGP: Int32, made_by: MadeBy) -> Plan:
    wanted = problem.wanted
    slots_DLGP = np.broadcast_to(slots_LGP, (wanted.groups, *slots_LGP.shape))
    return replace(wanted, slots_DLGP=slots_DLGP, made_by=made_by)


def _judged(problem: LoadProblem, slots_LGP: Int32) -> dict[str, float]:
    """The plan's evenness and its certificate, over the layers that were counted."""
    counted_L = problem.load_LE.any(axis=1)
    loads_LG = rank_load_LG(slots_LGP, problem.load_LE)[counted_L]
    mean_L = problem.load_LE[counted_L].sum(axis=1) / loads_LG.shape[1]
    # shares of replicas, summed, may round to less
    most_L = np.maximum(loads_LG.max(axis=1), mean_L)
    bound_L = fullest_rank_bound_L(problem.load_LE, problem.slots_G)[counted_L] * (1 - ROUNDING)
    fullest, fullest_bound = float((most_L / mean_L).mean()), float((bound_L / mean_L).mean())
    return {
        "fullest": fullest,
        "fullest_bound": fullest_bound,
        "gap": (fullest - fullest_bound) / fullest,
        "balance_pooled": float((mean_L / most_L).mean()),
        "balance_bound": min(float((mean_L / bound_L).mean()), 1.0),
    }
