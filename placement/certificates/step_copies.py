"""Copies of the steps that a certificate is about, proved layer by layer over all of them together.

Axes: D EP group, L MoE layer, T token, K choice, E expert, G rank.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.remote import Homes, pooled
from moecast.sim.context.shared import home_ranks

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.placed_model import PlacedModel
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]


def group_and_member(placed: PlacedModel, step: Step) -> tuple[Int32, Int32]:
    """The EP group of each of a step's tokens, and the member of it that they are at home on."""
    layout = placed.plan.layout
    home_T = home_ranks(placed.plan, step, placed.sites.domain_G)
    return np.asarray(layout.group_G[home_T]), np.asarray(layout.member_G[home_T])


def homes_of(problem: PlacementProblem, placed: PlacedModel, steps: Sequence[Step], layer: int, group: int) -> Homes:
    """One layer's tokens of one EP group, over some steps."""
    parts = []
    for step in steps:
        group_T, member_T = group_and_member(placed, step)
        of_group_T = group_T == group
        parts.append((problem.trace.experts_TLK[step.token_T[of_group_T], layer], member_T[of_group_T]))
    return pooled(parts, problem.wanted.experts, problem.slots_G.astype(np.int64))


def proved_copies(
    problem: PlacementProblem, placed: PlacedModel, steps: Sequence[Step], *, most_nodes: int, time_limit_s: float
) -> Float:
    """Copies that a rank takes in on average, over all steps: no placement has fewer; float64 [D, L].

    Where tokens stay, each is at home on a rank that serves one of its choices from then on, and at most one copy of it
    does not travel: its fan-out less one. Elsewhere as `Homes` proves it.
    """
    mode, wanted = placed.mode, problem.wanted
    until_s = time.process_time() + time_limit_s
    copies_DL = np.zeros((wanted.groups, wanted.layers))
    for group in range(wanted.groups):
        for layer in range(wanted.layers):
            homes = homes_of(problem, placed, steps, layer, group)
            left_s = max(0.0, until_s - time.process_time())
            if mode.per_choice and not mode.stay:
                copies = float(homes.remote_choices())
            elif mode.stay:
                chosen = int((homes.tokens.choices_T > 0).sum())
                copies = homes.fan_out(most_nodes=most_nodes, time_limit_s=left_s, seed=problem.seed) - chosen
            else:
                copies = homes.remote_copies(most_nodes=most_nodes, time_limit_s=left_s, seed=problem.seed)
            copies_DL[group, layer] = max(copies, 0.0) / wanted.ep
    return copies_DL
