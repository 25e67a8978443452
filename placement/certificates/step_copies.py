"""Copies of the steps that a certificate is about, proved layer by layer over all of them together.

Axes: D EP group, L MoE layer, T token, K choice, E expert, G rank, W way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.fan_out import FanOutBound
from moecast.placement.certificates.remote import FewestCopies, Homes, choices_and_homes
from moecast.placement.certificates.tokens import LayerTokens
from moecast.sim.context.shared import home_ranks
from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.certificates.ways import Ways
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.collectives import Mode
    from moecast.sim.placed_model import PlacedModel
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]


def group_and_member(placed: PlacedModel, step: Step) -> tuple[Int32, Int32]:
    """The EP group of each of a step's tokens, and the member of it that they are at home on."""
    layout = placed.plan.layout
    home_T = home_ranks(placed.plan, step, placed.sites.domain_G)
    return np.asarray(layout.group_G[home_T]), np.asarray(layout.member_G[home_T])


def tokens_of(
    problem: PlacementProblem, placed: PlacedModel, steps: Sequence[Step], layer: int, group: int
) -> tuple[LayerTokens, Int32]:
    """One layer's tokens of one EP group, over some steps, and the members that they are at home on."""
    parts = []
    for step in steps:
        group_T, member_T = group_and_member(placed, step)
        of_group_T = group_T == group
        parts.append((problem.trace.experts_TLK[step.token_T[of_group_T], layer], member_T[of_group_T]))
    return choices_and_homes(parts, problem.wanted.experts)


def proved_copies(
    problem: PlacementProblem,
    placed: PlacedModel,
    ways: Ways,
    steps: Sequence[Step],
    *,
    most_nodes: int,
    time_limit_s: float,
    say: Callable[[str], None] | None = None,
) -> Float:
    """Copies that a rank takes in on average each way, over all steps: no placement has fewer.

    Float64 [D, L, W].

    `say` is told after each layer.
    """
    wanted = problem.wanted
    until_s, begin_s = time.process_time() + time_limit_s, time.monotonic()
    gaps: list[float] = []
    copies_DLW = np.zeros((wanted.groups, wanted.layers, len(ways.ways)))
    for group in range(wanted.groups):
        for layer in range(wanted.layers):
            tokens, member_T = tokens_of(problem, placed, steps, layer, group)
            homes = [way.homes(problem, placed, group, tokens, member_T) for way in ways.ways]
            fewest = _fewest(homes, placed.mode, most_nodes, until_s, problem.seed)
            copies_DLW[group, layer] = [max(each.copies, 0.0) / wanted.ep for each in fewest]
            gaps.append(fewest[0].gap)
            if say is not None:
                say(how_far(gaps, wanted.groups * wanted.layers, time.monotonic() - begin_s))
    return copies_DLW


def _fewest(homes: Sequence[Homes], mode: Mode, most_nodes: int, until_s: float, seed: int) -> list[FewestCopies]:
    """Fewest copies of the same tokens by each of several ways.

    Where tokens stay, each is at home on a rank that serves one of its choices from then on. Which
    that is, is not known: as many copies as there are holders near a home may not travel. Elsewhere
    as `Homes` proves it. Ways between ranks share the proof of their fan-out.
    """
    known: dict[int, FanOutBound] = {}
    fewest = []
    for each in homes:
        left_s = max(0.0, until_s - time.process_time())
        holders = len(each.size_G)
        if mode.per_choice and not mode.stay:
            fewest.append(FewestCopies(float(each.remote_choices()), 0.0))
            continue
        if holders not in known and (mode.stay or not each.is_large):
            known[holders] = each.fan_out(most_nodes=most_nodes, time_limit_s=left_s, seed=seed)
        if mode.stay:
            chosen, near = int((each.tokens.choices_T > 0).sum()), int(each.near_HG.sum(axis=1).max())
            fewest.append(FewestCopies(known[holders].copies - near * chosen, known[holders].gap))
        else:
            fewest.append(
                each.remote_copies(known=known.get(holders), most_nodes=most_nodes, time_limit_s=left_s, seed=seed)
            )
    return fewest


def how_far(gaps: Sequence[float], layers: int, seconds: float) -> str:
    """Say how many layers' copies are proved, how well, and how long the others will take at that pace.

    Parameters
    ----------
    gaps
        Of the layers that are proved: how far each proof is from the best placement that it met.
    layers
        How many there are, in all EP groups.
    seconds
        What those that are proved took.
    """
    done, left_s = len(gaps), seconds / len(gaps) * (layers - len(gaps))
    said = f"proved fewest copies of layer {done} of {layers}"
    known = [gap for gap in gaps if np.isfinite(gap)]
    if known:
        mean, worst = format_percent(float(np.mean(known))), format_percent(max(known))
        said += f", gaps to the best placement met: mean {mean}, worst {worst}"
    return said if done == layers else f"{said}, about {format_s(left_s)} left"
