"""The 80 % interval of what a layout serves, and which measured rows it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecast.sim.accuracy import grounds_of, steady_grounds
from moecast.sim.accuracy.grounds import grounds_text

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.placement.layouts.steady import Steady
    from moecast.sim.accuracy import Grounds
    from moecast.sim.plan import Plan

Ends = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedInterval:
    """Between what ends four of five measurements of such a forecast lie.

    Parameters
    ----------
    tokens_per_s_per_gpu, tpot_s
        None where no measured rows speak for it. The time to the first token never has one: too few rows of prompts
        alone were measured.
    rests_on
        As of a `Prediction`.
    """

    tokens_per_s_per_gpu: Ends | None
    tpot_s: Ends | None
    rests_on: dict[str, Any]

    @property
    def told(self) -> str:
        """What it rests on, or why there is none."""
        only = "" if self.tokens_per_s_per_gpu or not self.tpot_s else "of the time per token alone: prompts limit. "
        return only + grounds_text(self.rests_on)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        ends = {name: getattr(self, name) for name in ("tokens_per_s_per_gpu", "tpot_s")}
        listed = {name: None if value is None else list(value) for name, value in ends.items()}
        return {**listed, "rests_on": self.rests_on, "told": self.told}


def interval_of_serving(question: ServingQuestion, steady: Steady, plan: Plan) -> ServedInterval:
    """Find what is known of such forecasts: of steady states where prompts and decode share GPUs, else of decode steps.

    Parameters
    ----------
    plan
        Of the decode step.
    """
    asked = question.decoding(plan, steady.decode.batch)
    grounds: Grounds = grounds_of(asked) if steady.split else steady_grounds(asked)
    found, rate = grounds.interval, steady.tokens_per_s_per_gpu
    of_rate = None if found is None or _prompts_limit(question, steady) else (rate / found.high, rate / found.low)
    return ServedInterval(
        tokens_per_s_per_gpu=of_rate,
        tpot_s=None if found is None else found.of(steady.tpot_s),
        rests_on=grounds.to_json(),
    )


def _prompts_limit(question: ServingQuestion, steady: Steady) -> bool:
    """Whether instances for prompts serve less than those that decode: errors of decode steps say nothing of that."""
    if not steady.split:
        return False
    _, prefill_s = steady.step_seconds(isl=question.isl, osl=question.osl)
    prompts = steady.prefill_instances * steady.prefill.sequences / prefill_s / question.isl
    return prompts < steady.decode_instances * steady.decode.sequences / steady.tpot_s / question.osl
