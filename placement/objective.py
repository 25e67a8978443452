"""What plans are judged by: mean step time over the planning steps.

`Objective.step_s` asks a network rung of the simulator, by default ``fluid``. `Objective.estimate`
is for a search that has many plans to compare (see `moecast.placement.estimate`).

Axes: L MoE layer, G rank, P slot of a rank.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.estimate import Estimate, Estimator
from moecast.sim.forward import ForwardPass
from moecast.sim.network import find_rung
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Exchange
from moecast.sim.schedules import program_of
from moecast.sim.simulate import timed_steps

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.program import StepProgram, StepTimes

Int32 = npt.NDArray[np.int32]

JUDGED_STEPS, FEW_RANKS = 4, 16
"""Planning steps that a network rung times, evenly spread; half as many with more ranks than a few."""
ESTIMATED_STEPS = 8
"""Steps that the estimate takes."""


class Objective:
    """Judges placements of one problem.

    Paths are found once, and a placement is never judged twice.

    Parameters
    ----------
    problem
        The problem; `judged` are those of its steps that are timed, and that the certificate is
        about.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        judged = JUDGED_STEPS if problem.wanted.ranks <= FEW_RANKS else JUDGED_STEPS // 2
        self.judged = tuple(problem.steps[index] for index in timed_steps(len(problem.steps), judged))
        self._placed = PlacedModel.of(
            problem.cluster, problem.model, problem.any_plan(), phase=problem.workload.kernels, seed=problem.seed
        )
        self._estimates: dict[bytes, Estimate] = {}
        self._step_s: dict[tuple[bytes, int], float] = {}

    @cached_property
    def _on_more(self) -> Estimator:
        steps, worst = self.problem.held_out, self.problem.robust is not None
        return Estimator(self._placed, self.problem.trace, steps if worst else steps[:ESTIMATED_STEPS], worst=worst)

    @cached_property
    def _on_judged(self) -> Estimator:
        return Estimator(self._placed, self.problem.trace, self.judged)

    def estimate(self, slots_LGP: Int32) -> Estimate:
        """Estimate a placement on steps that no search fits plans to, where the trace has them."""
        key = np.ascontiguousarray(slots_LGP).tobytes()
        if key not in self._estimates:
            self._estimates[key] = self._on_more.estimate(self._with(slots_LGP))
        return self._estimates[key]

    def step_s(self, slots_LGP: Int32) -> float:
        """Mean time of the judged steps under a placement, by the problem's network rung."""
        return float(np.mean([self.one_step_s(slots_LGP, index) for index in range(len(self.judged))]))

    def one_step_s(self, slots_LGP: Int32, index: int) -> float:
        """Time one of the judged steps."""
        key = (np.ascontiguousarray(slots_LGP).tobytes(), index)
        if key not in self._step_s:
            self._step_s[key] = self._times(self._program(slots_LGP, index)).step_time_s
        return self._step_s[key]

    def free_links_s(self, slots_LGP: Int32) -> float:
        """Seconds of a step in which the rank that exchanges most has no exchange running, mean of the judged steps."""
        free_s = []
        for index in range(len(self.judged)):
            program = self._program(slots_LGP, index)
            times, busy_G = self._times(program), np.zeros(program.n_ranks)
            for task, busy_R in zip(program.tasks, times.busy_S, strict=True):
                if isinstance(task, Exchange):
                    busy_G[program.ranks_of(task)] += busy_R
            free_s.append(max(0.0, times.step_time_s - float(busy_G.max())))
        return float(np.mean(free_s))

    def _program(self, slots_LGP: Int32, index: int) -> StepProgram:
        return program_of(ForwardPass.of(self._with(slots_LGP), self.problem.trace, self.judged[index]))

    def _times(self, program: StepProgram) -> StepTimes:
        return find_rung(self.problem.network).run(program)

    def expected_s(self, slots_LGP: Int32) -> float:
        """Mean step time by the rung on the judged steps, carried over to the estimated ones (robust: to the worst)."""
        on_judged = self._on_judged.estimate(self._with(slots_LGP))
        return self.step_s(slots_LGP) * self.estimate(slots_LGP).step_s / on_judged.step_s

    def _with(self, slots_LGP: Int32) -> PlacedModel:
        return self._placed.with_slots(self.problem.plan(slots_LGP))
