"""A model under a plan on a cluster: what all steps of a workload share.

Axes: T token, L MoE layer, G rank, J link.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives import FlowTemplate, Mode, collective_for, mode_of
from moecast.sim.collectives.carriers import Carried
from moecast.sim.collectives.choice import Choice
from moecast.sim.collectives.legs import LegsOfTemplates
from moecast.sim.collectives.links import link_capacity, link_names
from moecast.sim.collectives.tensor_parallel import hidden_template, sum_choices
from moecast.sim.context.choices import context_choices
from moecast.sim.context.rules import check_context
from moecast.sim.dispatch_type import dispatch_type_of
from moecast.sim.model import ModelShape
from moecast.sim.network.links import Paths, narrowest_links
from moecast.sim.overlap import FUSED_SMS, beside_compute, with_fewer_sms
from moecast.sim.plan import Plan
from moecast.sim.replicas import ReplicaTable
from moecast.sim.simulated import check_simulated
from moecast.sim.sites import Sites
from moecast.topology import Cluster

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacedModel:
    """A model under a plan on a cluster, with everything laid out that no step changes.

    Parameters
    ----------
    dispatch_flows, combine_flows
        The possible flows of every layer's dispatch and combine.
    context_flows
        Mode ``stay``: those that bring new keys and values to every rank of the EP group; else
        None.
    hidden_flows
        Tensor parallelism: those that bring hidden vectors to the other ranks that share their
        tokens; else None.
    spread_flows, gather_flows
        Expert tensor parallelism: those that bring each rank's copies to the others that share its
        experts by width, and their partial results back; else None.
    context_pairs
        Context parallelism: those between any two ranks that share sequences, counts in bytes; else
        None.
    gather_choices, scatter_choices
        Context parallelism by all-gather: what may gather keys and values, and add up their
        gradients.
    sum_choices
        Tensor parallelism without sequence parallelism: what may add up partial sums at all ranks
        that share tokens.
    """

    model: ModelShape
    plan: Plan
    phase: str
    mode: Mode
    sites: Sites
    table: ReplicaTable
    dispatch_flows: FlowTemplate
    combine_flows: FlowTemplate
    context_flows: FlowTemplate | None
    hidden_flows: FlowTemplate | None
    spread_flows: FlowTemplate | None
    gather_flows: FlowTemplate | None
    context_pairs: FlowTemplate | None
    gather_choices: tuple[Choice, ...]
    scatter_choices: tuple[Choice, ...]
    sum_choices: tuple[Choice, ...]
    capacity_J: Float
    narrowest_J: Int
    link_names_J: tuple[str, ...]
    _beside: list[PlacedModel] = field(default_factory=list, repr=False)
    _fused: list[PlacedModel] = field(default_factory=list, repr=False)
    _legs: list[LegsOfTemplates] = field(default_factory=list, repr=False)

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        model: ModelShape,
        plan: Plan,
        *,
        phase: str,
        seed: int = 0,
        beside: bool = False,
        fused: bool = False,
        narrow: bool = True,
        sites: Sites | None = None,
    ) -> PlacedModel:
        """Lay a plan out on a cluster.

        `beside` as of `beside_compute`, `fused` as of `beside_sums`.

        Parameters
        ----------
        narrow
            Leave out of the paths the links that are not the narrowest of their row. Where other
            flows than these use the links, too, that is for whoever knows all of them:
            `on_narrowest`.
        sites
            Where the plan's ranks stand, from whoever knows it; paths are then found once for all
            that share it.

        Raises
        ------
        MoecastError
            The plan names GPUs that the cluster does not have, or says what is not simulated yet.
        ValueError
            An EP group has no slot for some expert.
        """
        check_simulated(plan)
        check_context(plan, model, phase)
        sites = Sites.of(cluster, plan, seed=seed) if sites is None else sites
        if beside or fused:
            sites = sites.on(with_fewer_sms(cluster.hardware, FUSED_SMS if fused else None))
        mode = mode_of(plan.dispatch, phase)
        collective = collective_for(mode, sites)
        copy_bytes = [model.copy_bytes(dispatch_type_of(plan, model, cluster.hardware))]
        copy_bytes += [model.copy_bytes(plan.combine_type or "bf16")]
        carried = Carried(
            # what is beside compute leaves it fewer SMs, and has its own
            hardware=cluster.hardware,
            mode=mode,
            ranks=sites.n_members,
            near_ranks=sites.near_members,
            choices=model.choices,
            experts=model.experts,
        )
        there, back = carried.carriers((copy_bytes[0], copy_bytes[1]))
        flows = [
            collective.dispatch(sites, mode, copy_bytes[0], there),
            collective.combine(sites, mode, copy_bytes[1], back),
            *(hidden_template(sites, plan.layout, size, axis="etp") for size in copy_bytes if plan.etp > 1),
        ]
        context_flows = collective.dispatch(sites, mode, model.kv_bytes_per_token) if mode.stay else None
        hidden_flows = hidden_template(sites, plan.layout, 2 * model.hidden) if plan.tp > 1 else None
        sums = () if plan.sequence_parallel else sum_choices(sites, plan.layout, 2 * model.hidden, fused=fused)
        context_pairs = hidden_template(sites, plan.layout, 1.0, axis="cp") if plan.cp > 1 else None
        gathers, scatters = (
            context_choices(sites, plan, operation, phase) for operation in ("all-gather", "reduce-scatter")
        )
        if beside:
            flows = [beside_compute(template, sites) for template in flows]
            context_flows = context_flows and beside_compute(context_flows, sites)
            hidden_flows = hidden_flows and beside_compute(hidden_flows, sites)
            context_pairs = context_pairs and beside_compute(context_pairs, sites)
            sums, gathers, scatters = (
                tuple(replace(each, template=beside_compute(each.template, sites)) for each in choices)
                for choices in (sums, gathers, scatters)
            )
        capacity_J = link_capacity(sites)
        placed = cls(
            model=model,
            plan=plan,
            phase=phase,
            mode=mode,
            sites=sites,
            table=ReplicaTable.of(plan, sites.domain_G, node_G=sites.node_G),
            dispatch_flows=flows[0],
            combine_flows=flows[1],
            context_flows=context_flows,
            hidden_flows=hidden_flows,
            spread_flows=flows[2] if plan.etp > 1 else None,
            gather_flows=flows[3] if plan.etp > 1 else None,
            context_pairs=context_pairs,
            gather_choices=gathers,
            scatter_choices=scatters,
            sum_choices=sums,
            capacity_J=capacity_J,
            narrowest_J=np.arange(len(capacity_J)),
            link_names_J=link_names(sites),
        )
        return placed.on_narrowest(narrowest_links(placed.paths, capacity_J)) if narrow else placed

    @property
    def paths(self) -> Iterator[Paths]:
        """The links of all possible flows."""
        choices = (choice for held in self._choices().values() for choice in held)
        templates = (*self._templates().values(), *(choice.template for choice in choices))
        return (template.paths for template in templates)

    @property
    def legs(self) -> LegsOfTemplates:
        """What cuts exchanges into legs."""
        if not self._legs:
            self._legs.append(LegsOfTemplates(self.sites.domain_G))
        return self._legs[0]

    @property
    def experts_are_summed(self) -> bool:
        """Whether the ranks that share tokens keep all of them and hold all experts between them, whole or by width.

        Then nothing is dispatched: each rank runs its experts over the tokens that it has, and the
        sums are all-reduced (vLLM, SGLang and TensorRT-LLM: attention by TP, experts by EP or TP).
        A plan that names a dispatch mode has its way all the same.
        """
        plan = self.plan
        dispatches = plan.ep > 1 and plan.dispatch is not None
        return bool(self.sum_choices) and plan.ep * plan.etp == plan.tp and not dispatches

    def _templates(self) -> dict[str, FlowTemplate]:
        names = (
            "dispatch_flows",
            "combine_flows",
            "context_flows",
            "hidden_flows",
            "spread_flows",
            "gather_flows",
            "context_pairs",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _choices(self) -> dict[str, tuple[Choice, ...]]:
        return {name: getattr(self, name) for name in ("gather_choices", "scatter_choices", "sum_choices")}

    def on_narrowest(self, narrowest_J: Int) -> PlacedModel:
        """Leave out of the paths the links that are not the narrowest of their row."""
        narrow: dict[str, Any] = {name: flows.on_narrowest(narrowest_J) for name, flows in self._templates().items()}
        for name, choices in self._choices().items():
            narrow[name] = tuple(replace(each, template=each.template.on_narrowest(narrowest_J)) for each in choices)
        return replace(self, narrowest_J=narrowest_J, _beside=[], _fused=[], _legs=[], **narrow)

    def beside_compute(self) -> PlacedModel:
        """Give the placed of work that runs beside communication: fewer SMs for the one, less speed for the other.

        The same where the kernels are low-latency ones, which take no SMs.
        """
        if self.mode.messages:
            return self
        if not self._beside:
            wide = PlacedModel.of(
                self.sites.cluster,
                self.model,
                self.plan,
                phase=self.phase,
                beside=True,
                narrow=False,
                sites=self.sites,
            )
            self._beside.append(wide.on_narrowest(self.narrowest_J))
        return self._beside[0]

    def beside_sums(self) -> PlacedModel:
        """Give the placed of work beside sums that are added up in the switch and normalised by a kernel on few SMs.

        Where ranks that share tokens have no switch that adds, NCCL adds them up, still on few SMs.
        """
        if not self._fused:
            wide = PlacedModel.of(
                self.sites.cluster,
                self.model,
                self.plan,
                phase=self.phase,
                fused=True,
                narrow=False,
                sites=self.sites,
            )
            self._fused.append(wide.on_narrowest(self.narrowest_J))
        return self._fused[0]

    def with_slots(self, plan: Plan) -> PlacedModel:
        """Give the placed of a plan that differs only in slots, replica rule or replica weights."""
        table = ReplicaTable.of(plan, self.sites.domain_G, node_G=self.sites.node_G)
        beside, fused = ([placed.with_slots(plan) for placed in held] for held in (self._beside, self._fused))
        return replace(self, plan=plan, table=table, _beside=beside, _fused=fused)
