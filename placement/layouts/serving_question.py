"""What a layout of a serving instance is asked: the model, the cluster, the routing, and the lengths of requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.drawn_steps import draw_steps
from moecast.sim.memory import MEMORY_FRACTION
from moecast.sim.question import Question
from moecast.sim.workload import Workload
from moecast.traces import PHASES

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingQuestion:
    """Whose steps are timed: everything but the layout.

    Parameters
    ----------
    trace
        How tokens choose. Where a step needs more tokens than it has, they are used again.
    isl, osl
        Tokens of a prompt, and tokens that are decoded behind it.
    from_phase
        Of the trace's rows that steps draw from; None: of the step's own where the trace has some.
    memory_fraction
        The part of a GPU's memory that an engine takes.

    Raises
    ------
    MoecastError
        A length below 1, or a trace of another shape than the model's.
    """

    cluster: Cluster
    model: ModelShape
    trace: RoutingTrace
    isl: int
    osl: int
    from_phase: str | None = None
    memory_fraction: float = MEMORY_FRACTION
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("isl", "osl"):
            if getattr(self, name) < 1:
                raise MoecastError("at least 1 token", field=name, value=getattr(self, name))
        if self.trace.meta.shape_LEK != self.model.shape_LEK:
            rule = f"its L, E, K are {self.trace.meta.shape_LEK}, the model's {self.model.shape_LEK}"
            raise MoecastError(rule, field="trace")

    @property
    def context(self) -> int:
        """Keys that a decoded token reads in the mean: the prompt and half of what is decoded."""
        return max(1, self.isl + self.osl // 2)

    def step(self, dp: int, batch: int, phase: str) -> Step:
        """Draw one step of so many data-parallel ranks; equal for all layouts that have as many.

        Prefill: of a prompt that is longer than the batch, a chunk in its middle, so that a prompt takes as many times
        as long as it has chunks.
        """
        step = draw_steps(self.trace, self.workload(batch, phase), ranks=dp)[0]
        if phase == "decode":
            return step
        length = min(batch, self.isl)
        place_T = np.arange(step.n_tokens) % batch % length  # every rank holds as many
        return replace(step, context_T=place_T + 1 + (self.isl - length) // 2, last_T=place_T == length - 1)

    def workload(self, batch: int, phase: str) -> Workload:
        """Which tokens are in flight together in one step: `batch` sequences or tokens of each data-parallel rank."""
        context = self.context if phase == "decode" else None
        return Workload(
            phase=phase,
            tokens_per_rank=batch,
            steps=1,
            context=context,
            reuse=True,
            seed=self.seed,
            from_phase=self._rows_of(phase),
        )

    def decoding(self, plan: Plan, batch: int) -> Question:
        """The decode steps of a plan, asked of the rung ``bound``; `batch` sequences on each data-parallel rank."""
        return Question(
            cluster=self.cluster,
            model=self.model,
            plan=plan,
            trace=self.trace,
            workload=self.workload(batch, "decode"),
            network="bound",
            seed=self.seed,
            memory_fraction=self.memory_fraction,
            gains=False,
        )

    def _rows_of(self, phase: str) -> str | None:
        """Whose rows a step draws: those of its phase where the trace has some, else what there is."""
        if self.from_phase is not None:
            return self.from_phase
        held = [name for i, name in enumerate(PHASES) if bool((self.trace.phase_T == i).any())]
        return None if phase in held or not held else held[0]
