"""The ways over which copies reach a rank, what they cost there, and which copies must take them.

Where copies go straight from rank to rank, all of them cross the rank's own links (`any`), and those
from another domain its NIC (`far`). Where relays pass them on, a copy for each domain that a token
has a choice in, but its own, crosses the NIC of a relay there (`domains`); and a rank's own links
inside its domain carry a copy for each token with a choice on it, unless that is at home there or
the rank is its relay (`near`). Of these, the ones for tokens at home in another domain (`passed`)
also make the way between relay and home: there before they begin, back after they end.

Axes: D EP group, M member, H home, A domain in which the group stands, G holder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.ports import End, Port, Reach
from moecast.placement.certificates.remote import Homes
from moecast.placement.certificates.tokens import LayerTokens
from moecast.sim.placed_model import PlacedModel

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem

Name = Literal["any", "far", "near", "passed", "domains"]

ENDS: dict[str, End] = {"in": "destination", "out": "source"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Links of a rank that some of its copies must cross: there and back, into it and out of it."""

    name: Name
    dispatch_in: Port
    dispatch_out: Port
    combine_in: Port
    combine_out: Port

    @classmethod
    def of(cls, placed: PlacedModel, name: Name) -> Way:
        """Price a copy."""
        there, back = placed.dispatch_flows, placed.combine_flows
        reach: Reach = "far" if name == "domains" else "near" if name == "passed" else name
        ports = {
            f"{phase}_{way}": Port.of(placed, flows, end, reach)
            for phase, flows in (("dispatch", there), ("combine", back))
            for way, end in ENDS.items()
        }
        if name == "passed":
            for phase, flows in (("dispatch", there), ("combine", back)):
                far_s = Port.of(placed, flows, "source", "far").latency_s
                for key in (f"{phase}_{way}" for way in ENDS):
                    ports[key] = replace(ports[key], latency_s=ports[key].latency_s + far_s)
        return cls(name=name, **ports)

    def homes(
        self,
        problem: PlacementProblem,
        placed: PlacedModel,
        group: int,
        tokens: LayerTokens,
        member_T: npt.NDArray[np.int32],
    ) -> Homes:
        """Say which copies of some tokens, at home on members of an EP group, must go this way."""
        sites, size_M = placed.sites, problem.slots_G.astype(np.int64)
        rank_M = sites.peer_SM[int(np.flatnonzero(sites.group_G == group)[0])]
        place_M = sites.own_place_G[rank_M]
        if self.name == "domains":
            size_A = np.bincount(place_M, size_M).astype(np.int64)
            near = np.eye(len(size_A), dtype=bool)
            return Homes(tokens=tokens, home_T=place_M[member_T].astype(np.int32), size_G=size_A, near_HG=near)
        near_MM = np.eye(len(rank_M), dtype=bool)
        if self.name in ("far", "passed"):
            near_MM = place_M[:, None] == place_M[None, :]
        if self.name in ("near", "passed"):
            near_MM |= sites.relay_SA[rank_M][:, place_M] == rank_M[None, :]
        return Homes(tokens=tokens, home_T=member_T, size_G=size_M, near_HG=near_MM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The ways of a plan's copies; none where nothing is sent, or more than experts' ranks need.

    `counted`: whether copies are what the placement decides, and each expert has one slot;
    `relayed`: whether relays pass copies on between domains.
    """

    ways: tuple[Way, ...]
    counted: bool
    relayed: bool

    @classmethod
    def of(cls, problem: PlacementProblem, placed: PlacedModel) -> Ways:
        """Find them."""
        mode, plan = placed.mode, problem.wanted
        sends = plan.ep > 1 and plan.etp == 1 and not mode.gathers and not placed.experts_are_summed
        crosses = placed.sites.crosses_domains
        relayed = mode.relayed and crosses
        names: tuple[Name, ...] = (
            ("near", "passed", "domains") if relayed else (("any", "far") if crosses else ("any",))
        )
        return cls(
            ways=tuple(Way.of(placed, name) for name in names) if sends else (),
            counted=sends and problem.spare_slots == 0 and len(set(problem.slots_G.tolist())) == 1,
            relayed=relayed,
        )
