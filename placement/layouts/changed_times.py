"""Seconds of steps under changes, by ``bound`` with experts in order; changes that can share a program do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.network import find_rung
from moecast.sim.simulate import step_program

if TYPE_CHECKING:
    from moecast.placement.layouts.changes import Change
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.sim.program import StepProgram

MADE_TOKENS, MADE_SEQUENCE = 8192, 64
"""Of routing made for a change."""


class ChangedTimes:
    """Times of the steps of one question.

    Parameters
    ----------
    question
        Everything but the layout, as it is taken to be.
    """

    def __init__(self, question: ServingQuestion) -> None:
        self.question = question
        self._routed: dict[str, ServingQuestion] = {}

    def of(self, layout: ServingLayout, phase: str, changes: Sequence[Change]) -> list[float]:
        """Seconds of a layout's step under each of the changes."""
        as_it_is: StepProgram | None = None
        found = []
        for change in changes:
            if change.routing is None and change.fill == 1:
                as_it_is = as_it_is or self._program(self.question, layout, phase)
                program = as_it_is
            else:
                program = self._made_for(change, layout, phase)
            changed = change.of(program, self.question.cluster)
            found.append(float(find_rung("bound").run(changed).step_time_s))
        return found

    def _made_for(self, change: Change, layout: ServingLayout, phase: str) -> StepProgram:
        """The program of other routing, or of batches that are not full."""
        asked = self.question if change.routing is None else self._routed_by(change.routing)
        filled = replace(layout, batch=filled_batch(layout, change.fill)) if phase == "decode" else layout
        return self._program(asked, filled, phase)

    def _program(self, question: ServingQuestion, layout: ServingLayout, phase: str) -> StepProgram:
        step = question.step(layout.dp, layout.batch, phase)
        plan = layout.plan(question.model)
        return step_program(question.cluster, question.model, plan, question.trace, step, seed=question.seed)

    def _routed_by(self, law: str) -> ServingQuestion:
        if law not in self._routed:
            asked = self.question
            made = routing_by_law(
                parse_law(law),
                asked.model,
                tokens=MADE_TOKENS,
                sequence=MADE_SEQUENCE,
                phase="prefill",
                position=0,
                seed=asked.seed,
            )
            self._routed[law] = replace(asked, trace=made, from_phase=None)
        return self._routed[law]


def filled_batch(layout: ServingLayout, fill: float) -> int:
    """Sequences in flight of a batch that is not full."""
    return max(round(layout.batch * fill), layout.microbatches * layout.cp, 1)
