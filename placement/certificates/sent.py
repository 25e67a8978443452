"""What an EP group's ranks must send each other at one layer of one step, by counting choices.

Axes: T token, E expert, M member, H hot expert, W way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.remote import Homes
from moecast.placement.certificates.tokens import LayerTokens
from moecast.placement.certificates.ways import Ways
from moecast.sim.placed_model import PlacedModel

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

HOT = 3  # experts that are looked at one by one, and more where several are wanted alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Copies of one layer of one step in one EP group; nothing where the placement does not decide about them.

    Parameters
    ----------
    copies_W
        That a rank takes in, and sends back, on average.
    hears_W, sends_W
        Whether every rank takes copies in that way, and every rank's own tokens need one.
    missed
        Of copies by relays, those of a rank on average that it may not have to wait for: all, where
        homes move.
    hot_s_H, hot_copies_HW, hot_by_all_H
        Of the most wanted experts: seconds of each alone, copies for it each way, and whether the
        tokens of every rank choose it.
    """

    copies_W: Float
    hears_W: Bool
    sends_W: Bool
    missed: float
    hot_s_H: Float
    hot_copies_HW: Float
    hot_by_all_H: Bool

    @classmethod
    def nothing(cls, ways: int) -> Sent:
        """Know of no copies."""
        return cls(
            copies_W=np.zeros(ways),
            hears_W=np.zeros(ways, bool),
            sends_W=np.zeros(ways, bool),
            missed=float("inf"),
            hot_s_H=np.zeros(0),
            hot_copies_HW=np.zeros((0, ways)),
            hot_by_all_H=np.zeros(0, bool),
        )

    @classmethod
    def of(
        cls,
        problem: PlacementProblem,
        placed: PlacedModel,
        ways: Ways,
        group: int,
        tokens: LayerTokens,
        member_T: Int32,
        seconds_of: Callable[[int], float],
    ) -> Sent:
        """Count the copies of an EP group's tokens, at home on its members.

        `seconds_of`: that a rank's experts take for so many choices of one of them, at the least.
        """
        if not ways.counted or placed.mode.stay:  # homes move with the plan, and nobody knows who sends what
            return cls.nothing(len(ways.ways))
        homes = [way.homes(problem, placed, group, tokens, member_T) for way in ways.ways]
        counted = [each.remote_choices() if placed.mode.per_choice else each.counted_copies() for each in homes]
        # All that are as much wanted as the last of them: which is looked at must not depend on names.
        hot_H = np.flatnonzero(tokens.load_E >= np.sort(tokens.load_E)[-min(HOT, tokens.experts)])
        seconds = {load: seconds_of(load) for load in set(tokens.load_E[hot_H].tolist())}
        return cls(
            copies_W=np.array(counted, np.float64) / placed.plan.ep,
            hears_W=np.array([each.all_hear for each in homes]),
            sends_W=np.array([each.all_send for each in homes]),
            missed=_missed(problem, placed, tokens, member_T),
            hot_s_H=np.array([seconds[load] for load in tokens.load_E[hot_H].tolist()]),
            hot_copies_HW=_copies_for(ways, homes, hot_H),
            hot_by_all_H=homes[0].chosen_HE[:, hot_H].min(axis=0) > 0,
        )


def _copies_for(ways: Ways, homes: Sequence[Homes], expert_H: Int) -> Float:
    """Copies that whoever holds an expert takes in for it each way, at the least; of whole domains nothing is known."""
    copies_HW = np.zeros((len(expert_H), len(homes)))
    for index, (way, each) in enumerate(zip(ways.ways, homes, strict=True)):
        if way.name != "domains":
            chosen_HE = each.chosen_HE[:, expert_H]
            copies_HW[:, index] = chosen_HE.sum(axis=0) - (each.near_HG.T.astype(np.int64) @ chosen_HE).max(axis=0)
    return copies_HW


def _missed(problem: PlacementProblem, placed: PlacedModel, tokens: LayerTokens, member_T: Int32) -> float:
    """Copies to domains, of a rank on average, that it may not have to wait for.

    Of a member that leaves u experts unchosen at most ⌊u / P⌋ ranks hear nothing.
    """
    members, experts, slots = problem.wanted.ep, tokens.experts, int(problem.slots_G.min())
    sites = placed.sites
    valid_TK = tokens.expert_TK >= 0
    pair = (member_T[:, None].astype(np.int64) * experts + tokens.expert_TK)[valid_TK]
    unchosen_M = experts - (np.bincount(pair, minlength=members * experts).reshape(members, experts) > 0).sum(axis=1)
    tokens_M = np.bincount(member_T[valid_TK.any(axis=1)], minlength=members)
    in_domain = int(min(np.unique(row, return_counts=True)[1].min() for row in sites.place_SM))
    part_M = np.minimum(unchosen_M // slots / in_domain, sites.n_places - 1)
    return float((tokens_M * part_M).sum()) / members
