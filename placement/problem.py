"""What is to be placed: a model's experts, for a workload, on the ranks of a layout.

Axes: D EP group, L MoE layer, E expert, G rank of an EP group, P slot of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.placement.scenarios import SCENARIOS, by_topic, topic_steps
from moecast.placement.windows import Windows, draw_more
from moecast.sim.checks import check_question
from moecast.sim.drawn_steps import draw_steps
from moecast.sim.made_by import MadeBy
from moecast.sim.memory import memory_by_part
from moecast.sim.network import Rung, find_rung, usual_rung
from moecast.sim.plan import Plan
from moecast.sim.simulated import check_whole_experts
from moecast.sim.slots import EMPTY
from moecast.sim.workload import Workload
from moecast.traces.checks import check_choices

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.step import Step
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Int32 = npt.NDArray[np.int32]

MOST_PAIRS = 90_000  # of ranks, over all layers, for which plans are judged by the rung fluid


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlacementProblem:
    """The question that solvers answer.

    Parameters
    ----------
    cluster, model
        Where, and of what shape.
    trace
        The part of the trace to plan on.
    workload
        Which of its tokens are in flight together.
    wanted
        Any plan with the wanted ranks, slots, dispatch mode and replica rule; the experts in its
        slots do not count.
    network
        The rung that judges plans, or its name; empty: ``fluid`` where it takes seconds, else
        ``bound`` (`judging_rung`).
    seed
        Of the hash that picks paths.
    trace_part
        Which part of the trace this is, for the plan's record.
    robust
        ``topic``: plans must do well in steps of any one topic, so that searches look at the worst;
        None: in the Workload's steps.
    steps
        The planning steps.
    windows
        The tokens of steps like them, and of more, that searches fit plans to.
    held_out
        Steps drawn anew, to compare plans on; for a robust plan, one of each topic.
    slots_G, domain_G
        Slots and domain of each member of an EP group; domains that the group is not in are not
        counted.

    Raises
    ------
    MoecastError
        Sizes that do not match, slots that cannot hold the experts or overfill the GPU, a trace
        that is too small.
    """

    cluster: Cluster
    model: ModelShape
    trace: RoutingTrace
    workload: Workload
    wanted: Plan
    network: str | Rung = ""
    seed: int = 0
    trace_part: str | None = None
    robust: str | None = None
    steps: tuple[Step, ...] = field(init=False, repr=False)
    held_out: tuple[Step, ...] = field(init=False, repr=False)
    windows: Windows = field(init=False, repr=False)
    slots_G: Int32 = field(init=False, repr=False)
    domain_G: Int32 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wanted = self.wanted
        check_whole_experts(wanted)
        rung = find_rung(self.network) if self.network else judging_rung(wanted)
        object.__setattr__(self, "network", rung)
        slots_G = np.full(wanted.ep, wanted.max_slots, np.int32)
        if wanted.slots_per_rank is not None:
            slots_G = np.array(wanted.slots_per_rank[: wanted.ep], np.int32)
        if slots_G.sum() < wanted.experts:
            raise MoecastError(
                f"{wanted.ep} ranks with {slots_G.sum()} slots in all cannot hold {wanted.experts} experts",
                field="slots_per_rank",
                value=int(slots_G.max()),
            )
        if wanted.replica_rule == "weights":
            rule = "no solver makes replica weights: use one of the other rules"
            raise MoecastError(rule, field="replica_rule")
        object.__setattr__(self, "slots_G", slots_G)
        check_question(self.cluster, self.model, self.any_plan(), self.trace)
        try:
            # searches count a token's experts once each
            check_choices(self.trace.experts_TLK, wanted.experts)
        except ValueError as error:
            raise MoecastError(str(error), field="trace") from error
        domains_G = self.cluster.domain_of_gpu_G[list(wanted.gpu_of_rank)]
        object.__setattr__(self, "domain_G", counted_from_0(domains_G[: wanted.ep]))
        object.__setattr__(self, "steps", tuple(draw_steps(self.trace, self.workload, ranks=self.sources)))
        more_steps, held_out = draw_more(self.trace, self.workload, self.steps, ranks=self.sources)
        windows = Windows.of(self.trace, more_steps, wanted, domain_G=domains_G)
        if self.robust is not None:
            if self.robust not in SCENARIOS:
                rule = f"one of {', '.join(SCENARIOS)}"
                raise MoecastError(rule, field="robust", value=self.robust)
            windows = by_topic(windows, self.trace, wanted.experts)
            held_out = topic_steps(self.trace, self.workload, ranks=self.sources)
        object.__setattr__(self, "held_out", held_out)
        object.__setattr__(self, "windows", windows)
        self._check_memory()

    @property
    def sources(self) -> int:
        """DP ranks: ranks, or groups of `tp` of them, that hold tokens of their own."""
        return self.wanted.dp

    @property
    def spare_slots(self) -> int:
        """Slots of an EP group beyond one for each expert."""
        return int(self.slots_G.sum()) - self.wanted.experts

    @property
    def node_G(self) -> Int32:
        """Host of each member of an EP group, counted from 0 over those that the group stands on."""
        return counted_from_0(self.cluster.node_of_gpu_G[list(self.wanted.gpu_of_rank[: self.wanted.ep])])

    @property
    def expert_groups(self) -> int:
        """Groups of experts that the model's router limits a token to; 1 where it has none."""
        return self.model.expert_groups

    @property
    def load_LE(self) -> npt.NDArray[np.int64]:
        """Choices of each expert, over all windows."""
        return np.asarray(self.windows.load_LWE.sum(1))

    @property
    def n_domains(self) -> int:
        """Domains that an EP group's ranks stand in."""
        return int(self.domain_G.max()) + 1

    def empty_slots_LGP(self) -> Int32:
        """Make a table of empty slots to fill."""
        return np.full((self.wanted.layers, self.wanted.ep, self.wanted.max_slots), EMPTY, np.int32)

    def any_plan(self) -> Plan:
        """Make some legal plan of the layout: experts in order, as many as fit."""
        wanted, slots_LGP = self.wanted, self.empty_slots_LGP()
        rank_S = np.repeat(np.arange(wanted.ep), self.slots_G)
        slot_S = np.concatenate([np.arange(count) for count in self.slots_G])
        slots_LGP[:, rank_S[: wanted.experts], slot_S[: wanted.experts]] = np.arange(wanted.experts)
        return self.plan(slots_LGP)

    def plan(self, slots_LGP: Int32, *, made_by: MadeBy | None = None) -> Plan:
        """Make the plan that has these experts in the slots of every EP group."""
        slots_DLGP = np.broadcast_to(slots_LGP, (self.wanted.groups, *slots_LGP.shape))
        made_by = made_by or MadeBy(solver="unknown")
        return replace(self.wanted, slots_DLGP=slots_DLGP, replica_weights_DLGP=None, made_by=made_by)

    def _check_memory(self) -> None:
        hardware = self.cluster.hardware
        parts = memory_by_part(self.model, self.any_plan(), self.workload, hardware, steps=self.steps)
        if sum(parts.values()) > hardware.memory_bytes:
            held = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())
            raise MoecastError(
                f"{sum(parts.values()) / 2**30:.1f} GiB ({held}) overfill the "
                f"{hardware.memory_bytes / 2**30:.1f} GiB of a {hardware.name}: use fewer slots or "
                "more ranks",
                field="slots_per_rank",
                value=self.wanted.max_slots,
            )


def judging_rung(wanted: Plan) -> Rung:
    """Take ``fluid`` where it times a step in a second or two, else ``bound``.

    The time of ``fluid`` grows with the pairs of ranks that exchange tokens, layer by layer: 26
    layers on 32 ranks take .8 s of a core, 94 on 32 take 3 and 58 on 64 take 5: many times what a
    solver by load needs.
    """
    pairs = wanted.layers * wanted.ranks * wanted.ep
    return find_rung("bound") if pairs > MOST_PAIRS else usual_rung(wanted.ranks)


def counted_from_0(place_G: npt.NDArray[np.int32]) -> Int32:
    """Renumber domains or hosts, those that no rank is in left out."""
    return np.unique(place_G, return_inverse=True)[1].astype(np.int32)
