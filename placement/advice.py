"""Advice in words: is balance what limits this workload, what is the found plan worth, and what would more be worth.

The *per-step oracle* rearranges experts before every step and layer, for nothing. It is relaxed:
every rank's experts take their EP group's mean, as if slots were shared out perfectly, and copies
stay those of the found plan. Timed by the same rung on the same steps, so that differences are of
pairs.

Axes: S step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.placement.contiguous import Contiguous
from moecast.placement.limit import Budget, Limit
from moecast.placement.notes import copies_note
from moecast.placement.spare_slots import SpareSlots, try_spare_slots
from moecast.sim.collectives import mode_of
from moecast.sim.forward import ForwardPass
from moecast.sim.network import find_rung
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute
from moecast.sim.schedules import program_of
from moecast.units import format_bytes, format_percent, format_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moecast.placement.objective import Objective
    from moecast.placement.problem import PlacementProblem

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

NORMAL_80 = 1.2816  # an 80 % interval of a normal distribution
# Student's, by degrees of freedom
FEW_STEPS = {1: 3.078, 2: 1.886, 3: 1.638, 4: 1.533, 5: 1.476, 6: 1.440, 7: 1.415}
LITTLE = (
    0.03  # of the step: the estimate lies within so much of fluid, and uneven experts that cost less are no bottleneck
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do about a placement.

    Parameters
    ----------
    contiguous_S, plan_S, oracle_S
        Seconds of each judged step: experts in order, the found plan, and the relaxed per-step
        oracle on its copies.
    copies
        What a placement can change of what is sent, in words; empty where it changes copies.
    rebalance
        Whether and how often to make new plans, where that was tried (`moecast.placement.replan`);
        else the most that rebalancing may cost is said.
    spare
        What steps take with more slots on each rank, from none on
        (`moecast.placement.spare_slots`).
    """

    contiguous_S: Float
    plan_S: Float
    oracle_S: Float
    copies: str
    rebalance: tuple[str, ...] = ()
    spare: tuple[SpareSlots, ...] = ()

    @classmethod
    def of(
        cls, problem: PlacementProblem, objective: Objective, slots_LGP: Int32, *, rebalance: Sequence[str] = ()
    ) -> Advice:
        """Time the found plan, experts in order, and the oracle on the judged steps."""
        first = slots_LGP
        if Contiguous().supports(problem) is None:
            first = Contiguous().solve(problem, objective, Budget(Limit(time_s=None, work=None), None)).slots_LGP
        steps = range(len(objective.judged))
        by_choice = mode_of(problem.wanted.dispatch, problem.workload.kernels).per_choice
        return cls(
            contiguous_S=np.array([objective.one_step_s(first, step) for step in steps]),
            plan_S=np.array([objective.one_step_s(slots_LGP, step) for step in steps]),
            oracle_S=_oracle_S(problem, objective, slots_LGP),
            copies=copies_note(problem.wanted.replica_rule) if by_choice else "",
            rebalance=tuple(rebalance),
            spare=tuple(try_spare_slots(problem)),
        )

    @property
    def reached(self) -> float:
        """Part of the oracle's speed that the plan has, 1 being all."""
        return float(self.oracle_S.mean() / self.plan_S.mean())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the means, and the words."""
        means = {name: float(getattr(self, f"{name}_S").mean()) for name in ("contiguous", "plan", "oracle")}
        seconds = {f"{name}_s": value for name, value in means.items()}
        spare = [one.to_json() for one in self.spare]
        return {**seconds, "reached": self.reached, "spare_slots": spare, "words": self.words()}

    def words(self) -> list[str]:
        """One answer a line."""
        gain, gain_text = _gain(self.contiguous_S, self.plan_S)
        more, more_text = _gain(self.plan_S, self.oracle_S)
        oracle = "an oracle that makes loads even before every step, for nothing"
        limits = "yes" if more >= LITTLE else "no"
        words = [
            f"is balance your bottleneck? {limits}; perfectly even loads against this plan's: {more_text}",
            f"what is this plan worth? against experts in order: {gain_text}",
            f"how good can it get? this plan has {format_percent(self.reached)} of the speed of {oracle}",
            *spare_words(self.spare),
            *(self.rebalance or [_rebalance(more, float(self.plan_S.mean() - self.oracle_S.mean()))]),
        ]
        if gain < LITTLE and more < LITTLE and not any(word.startswith("rebalance every") for word in self.rebalance):
            words.append(
                "leave experts in order: what this plan and rebalancing could gain is within the forecast's error"
            )
        return [*words, *([self.copies] if self.copies else [])]


def spare_words(spare: Sequence[SpareSlots]) -> list[str]:
    """How many redundant slots are worth their memory: the fewest that no more are shown to beat; each in words."""
    if len(spare) < 2 or spare[0].step_S is None:
        return []
    tried, worth = [], spare[0]
    for one in spare[1:]:
        if one.step_S is None:
            tried.append(f"{one.spare} do not fit")
            continue
        tried.append(f"{one.spare}: {_gain(spare[0].step_S, one.step_S)[1]}")
        assert worth.step_S is not None
        if _is_shown(worth.step_S, one.step_S):
            worth = one
    size = f"each takes {format_bytes(spare[1].memory_bytes)} of a GPU"
    answer = "none" if worth.spare == 0 else f"{worth.spare} a rank"
    if len(spare[0].step_S) == 1:
        answer = "not to be told from one step (--steps)"
    return [f"how many redundant slots are worth their memory? {answer}; {size}; against none, {', '.join(tried)}"]


def _is_shown(before_S: Float, after_S: Float) -> bool:
    """Whether steps are shorter by more than the forecast's error: of one step alone nobody can tell."""
    gain_S = 1 - after_S / before_S
    return len(gain_S) > 1 and float(gain_S.mean()) > max(_half_width(gain_S), LITTLE)


def _rebalance(more: float, saved_s: float) -> str:
    """When moving experts at run time could pay."""
    if more < LITTLE or saved_s <= 0:
        return "rebalance: never, on this traffic: what it could still gain is within the forecast's error"
    return f"rebalance: only if it costs less than {format_s(saved_s)} a step, all in all: that is the most it can save"


def _gain(before_S: Float, after_S: Float) -> tuple[float, str]:
    """Part of the step that is saved, and it in words with an 80 % interval over the pairs of steps."""
    gain_S = 1 - after_S / before_S
    gain, n = float(gain_S.mean()), len(gain_S)
    if abs(gain) < 1e-12:
        return gain, "steps take as long"
    half = _half_width(gain_S)
    if abs(gain) <= max(half, LITTLE):
        return gain, f"no difference shown ({_changed(gain)}, within the forecast's error)"
    least, most = sorted((abs(gain - half), abs(gain + half)))
    between = f" ({100 * least:.1f} to {format_percent(most)})" if n > 1 else " (one step only)"
    return gain, f"{_changed(gain)}{between}"


def _half_width(gain_S: Float) -> float:
    """Half of the 80 % interval of a mean over steps; 0 of one step."""
    n = len(gain_S)
    return 0.0 if n < 2 else FEW_STEPS.get(n - 1, NORMAL_80) * float(gain_S.std(ddof=1)) / n**0.5


def _changed(gain: float) -> str:
    return f"steps {format_percent(abs(gain))} {'shorter' if gain > 0 else 'longer'}"


def _oracle_S(problem: PlacementProblem, objective: Objective, slots_LGP: Int32) -> Float:
    plan = problem.plan(slots_LGP)
    placed = PlacedModel.of(problem.cluster, problem.model, plan, phase=problem.workload.kernels, seed=problem.seed)
    seconds = []
    for step in objective.judged:
        program = program_of(ForwardPass.of(placed, problem.trace, step))
        group_G = placed.sites.group_G
        even = [_even(task, group_G) if isinstance(task, Compute) else task for task in program.tasks]
        seconds.append(find_rung(problem.network).run(replace(program, tasks=tuple(even))).step_time_s)
    return np.array(seconds)


def _even(task: Compute, group_G: Int32) -> Compute:
    """Experts take their EP group's mean."""
    if task.kind != "expert" or task.n_ranks != len(group_G):
        return task
    mean_D = np.bincount(group_G, task.seconds_R) / np.bincount(group_G)
    return replace(task, seconds_R=np.ascontiguousarray(mean_D[group_G]))
