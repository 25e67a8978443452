"""What plans are judged by: mean step time over the planning steps.

Two judges. `Objective.step_s` asks a network rung of the simulator, by default ``fluid``. `Objective.estimate` lets every
rank wait for the last one at every stage; it costs a tenth, adds up over layers, and lies within 3 % of ``fluid`` on the
clusters tried. The ``bound`` rung is not used to compare plans where ``fluid`` can be had: what it leaves out grows with
the unevenness of a plan, so that it takes some uneven plans for the better ones.

Axes: L MoE layer, W step, G rank, P slot of a rank, J link, F flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.forward import Setting
from moecast.sim.program import Compute, StepProgram
from moecast.sim.schedules import find_schedule
from moecast.sim.simulate import find_rung, timed_steps

if TYPE_CHECKING:
    from moecast.placement.problem import PlacementProblem
    from moecast.sim.program import Exchange
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]


JUDGED_STEPS = 4
"""Planning steps that a network rung times, evenly spread."""
ESTIMATED_STEPS = 12
"""Of the steps that searches fit plans to, those that the estimate takes, evenly spread."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """How long a step takes if every rank waits for the last one at every stage.

    Parameters
    ----------
    slots_LGP
        The placement.
    layer_s_L
        Mean time of each MoE layer's dispatch, experts and combine.
    step_s
        Mean step time; what does not depend on the placement is the same for all.
    """

    slots_LGP: Int32
    layer_s_L: Float
    step_s: float


class Objective:
    """Judges placements of one problem; paths are found once, and a placement is never judged twice.

    Parameters
    ----------
    problem
        The problem; `judged` are those of its steps that are timed, and that the certificate is about.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.judged = tuple(problem.steps[index] for index in timed_steps(len(problem.steps), JUDGED_STEPS))
        more = problem.more_steps
        self._estimated = tuple(more[index] for index in timed_steps(len(more), ESTIMATED_STEPS))
        self._setting = Setting.of(
            problem.cluster, problem.model, problem.any_plan(), phase=problem.workload.phase, seed=problem.seed
        )
        self._estimates: dict[bytes, Estimate] = {}
        self._step_s: dict[bytes, float] = {}

    def estimate(self, slots_LGP: Int32) -> Estimate:
        """Estimate a placement on the steps that searches fit plans to."""
        key = np.ascontiguousarray(slots_LGP).tobytes()
        if key not in self._estimates:
            self._estimates[key] = self._estimate(slots_LGP, self._estimated)
        return self._estimates[key]

    def expected_s(self, slots_LGP: Int32) -> float:
        """Mean step time, by the rung on the judged steps and carried over to more steps by the estimate's ratio."""
        on_judged = self._estimate(slots_LGP, self.judged)
        return self.step_s(slots_LGP) * self.estimate(slots_LGP).step_s / on_judged.step_s

    def _estimate(self, slots_LGP: Int32, steps: Sequence[Step]) -> Estimate:
        layers = self.problem.layout.layers
        times = [_waiting_seconds(program, layers) for program in self._programs(slots_LGP, steps)]
        step_s, layer_s_L = (np.mean([time[part] for time in times], axis=0) for part in (0, 1))
        return Estimate(slots_LGP=slots_LGP, step_s=float(step_s), layer_s_L=layer_s_L)

    def step_s(self, slots_LGP: Int32) -> float:
        """Mean time of the judged steps under a placement, by the problem's network rung."""
        key = np.ascontiguousarray(slots_LGP).tobytes()
        if key not in self._step_s:
            rung = find_rung(self.problem.network)
            times = [rung.run(program).step_time_s for program in self._programs(slots_LGP, self.judged)]
            self._step_s[key] = float(np.mean(times))
        return self._step_s[key]

    def _programs(self, slots_LGP: Int32, steps: Sequence[Step]) -> Iterator[StepProgram]:
        setting = self._setting.with_slots(self.problem.plan(slots_LGP))
        schedule = find_schedule(self.problem.layout.schedule)
        for step in steps:
            forward = setting.forward(self.problem.trace, step)
            yield forward.program(schedule.stages(forward))


def _waiting_seconds(program: StepProgram, layers: int) -> tuple[float, Float]:
    """The step's seconds, and those of each MoE layer's dispatch, experts and combine."""
    total, layer_s_L = 0.0, np.zeros(layers)
    for stage in program.stages:
        if isinstance(stage, Compute):
            seconds = float(stage.seconds_G.max())
        else:
            seconds = _exchange_seconds(stage, program.capacity_J)
        total += seconds
        if stage.layer >= 0 and stage.kind in ("dispatch", "expert", "combine"):
            layer_s_L[stage.layer] += seconds
    return total, layer_s_L


def _exchange_seconds(stage: Exchange, capacity_J: Float) -> float:
    """The busiest link's seconds, and the longest way."""
    flows = stage.flows
    if not flows.n:
        return stage.setup_s
    load_X = np.repeat(flows.bytes_F, np.diff(flows.offsets_F1)) * flows.share_X
    load_J = np.bincount(flows.link_X, load_X, len(capacity_J)) / capacity_J
    return float(stage.setup_s + load_J.max() + flows.latency_F.max())
