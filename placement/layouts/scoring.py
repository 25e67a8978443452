"""What layouts score: the door through which every score of a search comes.

`StepScores` times single steps, without a queue. A simulation of requests re-scores the best by handing
`find_serving` another `Score`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from moecast.placement.layouts.serving_layout import SEQUENTIAL, ServingLayout
from moecast.placement.problem import PlacementProblem
from moecast.placement.solvers import find_load_solver
from moecast.sim.made_by import MadeBy
from moecast.sim.simulate import simulate_step

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim.plan import Plan

PREFILL_TOKENS = 16_384
"""Tokens of prompts in a step of an instance: what engines take at once (chunked prefill)."""
PREFILL_MODES = {"per_choice": "per_domain"}
"""Whose kernels dispatch prompts where these dispatch decoded tokens; others are the same."""


class Score(Protocol):
    """Seconds of a step of a layout."""

    def step_s(self, layout: ServingLayout, phase: str, plan: Plan | None = None) -> float:
        """Time one step, `plan` None: with experts in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScores:
    """Single steps by a rung; each layout is timed once."""

    question: ServingQuestion
    network: str = "bound"
    _known: dict[tuple[ServingLayout, str], float] = field(default_factory=dict, repr=False)

    def knows(self, layout: ServingLayout, phase: str) -> bool:
        """Whether the step with experts in order is timed."""
        return (layout, phase) in self._known

    def learn(self, layout: ServingLayout, phase: str, seconds: float) -> None:
        """Take what another process timed, with experts in order."""
        self._known[layout, phase] = seconds

    def step_s(self, layout: ServingLayout, phase: str, plan: Plan | None = None) -> float:
        """As of `Score`."""
        key = (layout, phase)
        if plan is None and key in self._known:
            return self._known[key]
        question = self.question
        step = question.step(layout.dp, layout.batch, phase)
        used = layout.plan(question.model) if plan is None else plan
        _, times = simulate_step(
            question.cluster, question.model, used, question.trace, step, network=self.network, seed=question.seed
        )
        if plan is None:
            self._known[key] = times.step_time_s
        return times.step_time_s


def prefill_of(decode: ServingLayout, isl: int) -> ServingLayout:
    """How an instance that decodes in a layout runs prompts: the same degrees, prompts cut into chunks."""
    dispatch = PREFILL_MODES.get(decode.dispatch or "", decode.dispatch)
    batch = max(min(isl, -(-PREFILL_TOKENS // decode.dp)), 1)
    microbatches = decode.pp if batch >= decode.pp * decode.cp else 1
    return replace(decode, dispatch=dispatch, batch=batch, microbatches=microbatches)  # type: ignore[arg-type]


def placed_plan(question: ServingQuestion, layout: ServingLayout, phase: str = "decode") -> Plan:
    """The layout's plan with a placement of its own: by EPLB, which is quick, and fills redundant slots.

    A solver wants whole experts on one rank and one stage; other layouts keep experts in order.
    """
    wanted = layout.plan(question.model)
    if layout.etp > 1 or layout.ep == 1 or layout.pp > 1:
        return wanted
    problem = PlacementProblem(
        cluster=question.cluster,
        model=question.model,
        trace=question.trace,
        workload=question.workload(layout.batch, phase),
        wanted=replace(wanted, schedule=SEQUENTIAL),
        network="bound",
        seed=question.seed,
    )
    solver = find_load_solver("eplb")
    if solver.supports(problem) is not None:
        return wanted
    made_by = MadeBy(solver="eplb", seed=question.seed, trace_hash=question.trace.content_hash())
    return replace(problem.plan(solver.spread(problem).slots_LGP, made_by=made_by), schedule=layout.schedule)


def placed_step(question: ServingQuestion, layout: ServingLayout, *, bound: Score, last: Score) -> tuple[Plan, float]:
    """A layout's plan and its decode step by the last score: placed by `placed_plan`, or with experts in order.

    Whichever is faster by the score `bound`.
    """
    own = placed_plan(question, layout)
    if bound.step_s(layout, "decode", own) >= bound.step_s(layout, "decode"):
        own = layout.plan(question.model)
    return own, last.step_s(layout, "decode", own)
