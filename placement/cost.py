"""The linear layer cost: what a search prices placements by before it asks the simulator.

A window (the tokens of a step) costs a layer

    max over ranks of (choice_s · choices served + replica_s · replicas held
                       + copy_s · copies in + domain_copy_s · copies into its domain),

with the part `MEAN_SHARE` of the copies' price moved out of the maximum and into the mean over
ranks. The cost is the mean over windows of that. It is a surrogate of the ``bound`` rung, which
makes the final choice: prices are those of the whole layer under even traffic, so that what they
leave out is who waits for whom, latencies, and whole tiles.

Axes: G rank, S source rank, N domain, P slot, J link, F flow, X (flow, link) pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.links import link_capacity
from moecast.sim.collectives.template import FlowTemplate
from moecast.sim.compute import expert_seconds
from moecast.sim.placed_model import PlacedModel

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem

MEAN_SHARE = 0.75
"""Of a copy's price, the part that all ranks share: senders are loaded evenly, whichever rank their copies go to, and a
search sees a gain also where the slowest rank has none. Of 0.25 to 1, the best by the ``bound`` rung's times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Prices in seconds, dispatch and combine together.

    Parameters
    ----------
    choice_s
        Of a choice served: its arithmetic, and where each choice travels by itself its way.
    replica_s
        Of a replica on a rank: where steps are short, reading its weights.
    copy_s
        Of a token's copy to a rank; 0 where choices travel by themselves.
    domain_copy_s
        Of a token's copy to a domain, for each of the domain's ranks; 0 where copies go straight to
        ranks.
    mean_share
        Part of the copies' price that all ranks share.
    """

    choice_s: float
    replica_s: float = 0.0
    copy_s: float = 0.0
    domain_copy_s: float = 0.0
    mean_share: float = MEAN_SHARE

    @classmethod
    def of(cls, problem: PlacementProblem) -> LayerCost:
        """Price a layer of a problem.

        A choice's arithmetic is the slope of the experts' roofline around the mean load. A copy
        costs what the busiest link needs when every rank sends every rank one, divided by the
        copies that each rank then takes in.
        """
        placed = PlacedModel.of(
            problem.cluster, problem.model, problem.any_plan(), phase=problem.workload.kernels, seed=problem.seed
        )
        choice_s, replica_s = _expert_slopes(problem)
        if placed.experts_are_summed or placed.mode.gathers:  # what travels does not depend on where experts stand
            return cls(choice_s=choice_s, replica_s=replica_s)
        copy_s, domain_copy_s = (
            sum(_even_traffic_seconds(flows, placed, domains=domains) for flows in _flows(placed))
            for domains in (False, True)
        )
        if placed.mode.per_choice:
            return cls(choice_s=choice_s + copy_s, replica_s=replica_s)
        return cls(choice_s=choice_s, replica_s=replica_s, copy_s=copy_s, domain_copy_s=domain_copy_s)

    def weighted(self, balance_weight: float, *, mean_share: float = MEAN_SHARE) -> LayerCost:
        """Count the experts' time `balance_weight` times: above 1, balance is worth more than copies are."""
        return replace(
            self,
            choice_s=self.choice_s * balance_weight,
            replica_s=self.replica_s * balance_weight,
            mean_share=mean_share,
        )


def _flows(placed: PlacedModel) -> tuple[FlowTemplate, FlowTemplate]:
    return placed.dispatch_flows, placed.combine_flows


def _expert_slopes(problem: PlacementProblem) -> tuple[float, float]:
    """Seconds of the experts' roofline per choice, and per replica that serves them, around the mean load of a rank."""
    wanted, hardware, phase = problem.wanted, problem.cluster.hardware, problem.workload.kernels
    choices = wanted.choices * float(np.mean([step.n_tokens for step in problem.steps])) / wanted.ranks
    fewest, most = -(-wanted.experts // wanted.ep), int(problem.slots_G.max())

    def seconds(load: float, replicas: int) -> float:
        load_GP = np.full((1, replicas), max(1, round(load / replicas)))
        return float(expert_seconds(problem.model, hardware, load_GP, phase=phase)[0])

    per_choice = (seconds(1.5 * choices, fewest) - seconds(0.5 * choices, fewest)) / choices
    if most == fewest:
        return max(per_choice, 0.0), 0.0
    per_replica = (seconds(choices, most) - seconds(choices, fewest)) / (most - fewest)
    return max(per_choice, 0.0), max(per_replica, 0.0)


def _even_traffic_seconds(flows: FlowTemplate, placed: PlacedModel, *, domains: bool) -> float:
    """Seconds of the busiest link for each copy that a rank (or domain) takes in, when all ranks send alike."""
    pairs = placed.sites.n_ranks**2
    count_F = flows.legs.count_F
    sent_F = (count_F >= pairs if domains else (count_F >= 0) & (count_F < pairs)).astype(np.float64)
    per_X = np.repeat(sent_F * flows.copy_bytes, np.diff(flows.offsets_F1)) * flows.share_X
    capacity_J = link_capacity(placed.sites)
    load_J: npt.NDArray[np.float64] = np.bincount(flows.link_X, per_X, len(capacity_J)) / capacity_J
    return float(load_J.max(initial=0.0)) / placed.plan.ep
