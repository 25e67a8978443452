"""Copies of the steps that a certificate is about, proved layer by layer over all of them together.

Axes: D EP group, L MoE layer, T token, K choice, E expert, G rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.certificates.remote import FewestCopies, Homes, pooled
from moecast.sim.context.shared import home_ranks
from moecast.units import format_percent, format_s

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
    problem: PlacementProblem,
    placed: PlacedModel,
    steps: Sequence[Step],
    *,
    most_nodes: int,
    time_limit_s: float,
    say: Callable[[str], None] | None = None,
) -> Float:
    """Copies that a rank takes in on average, over all steps: no placement has fewer.

    Float64 [D, L].

    Where tokens stay, each is at home on a rank that serves one of its choices from then on, and at
    most one copy of it does not travel: its fan-out less one. Elsewhere as `Homes` proves it. `say`
    is told after each layer.
    """
    mode, wanted = placed.mode, problem.wanted
    until_s, begin_s = time.process_time() + time_limit_s, time.monotonic()
    gaps: list[float] = []
    copies_DL = np.zeros((wanted.groups, wanted.layers))
    for group in range(wanted.groups):
        for layer in range(wanted.layers):
            homes = homes_of(problem, placed, steps, layer, group)
            left_s = max(0.0, until_s - time.process_time())
            if mode.per_choice and not mode.stay:
                fewest = FewestCopies(float(homes.remote_choices()), 0.0)
            elif mode.stay:
                chosen = int((homes.tokens.choices_T > 0).sum())
                fewest = homes.fan_out(most_nodes=most_nodes, time_limit_s=left_s, seed=problem.seed)
                fewest = fewest._replace(copies=fewest.copies - chosen)
            else:
                fewest = homes.remote_copies(most_nodes=most_nodes, time_limit_s=left_s, seed=problem.seed)
            copies_DL[group, layer] = max(fewest.copies, 0.0) / wanted.ep
            gaps.append(fewest.gap)
            if say is not None:
                say(how_far(gaps, copies_DL.size, time.monotonic() - begin_s))
    return copies_DL


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
