"""The best few layouts once more, by requests: queues, batches that are not full, times to the first token with both.

Steps say what a layout serves with every batch full and nobody waiting. Here requests come by a law and are batched as
the question's engine does it (`moecast.sim.serving`), so that a time to the first token has its queue in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError
from moecast.sim.serving import Lengths, PrefillPool, Serving, make_requests, serve

if TYPE_CHECKING:
    from moecast.placement.layouts.found_serving import FoundServing
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.serving_question import ServingQuestion
    from moecast.placement.layouts.steady import Slo, Steady
    from moecast.sim.plan import Plan
    from moecast.sim.serving import ArrivalLaw, Served

LAYOUTS = 3
ROUNDS = 4
"""Requests of each user of a closed loop: the first and the last round are not counted."""
OPEN_REQUESTS, MOST_REQUESTS = 500, 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRequests:
    """A layout's run of requests, or why there is none."""

    steady: Steady
    served: Served | None
    why_not: str = ""

    def meets(self, slo: Slo) -> bool:
        """Whether the means of both times are within the limits."""
        if self.served is None:
            return False
        latency = self.served.latency
        return latency["ttft"].mean_s <= slo.ttft_s and latency["tpot"].mean_s <= slo.tpot_s

    def to_json(self, slo: Slo) -> dict[str, Any]:
        """As plain JSON values."""
        about = {"name": self.steady.name(), "why_not": self.why_not, "meets": self.meets(slo)}
        if self.served is None:
            return about
        times = {
            name: {"mean_s": found.mean_s, "p99_s": found.p99_s}
            for name in ("ttft", "tpot")
            for found in (self.served.latency[name],)
        }
        return {
            **about,
            **times,
            "tokens_per_s_per_gpu": self.served.output_tokens_per_s_per_gpu,
            "limited_by": self.served.limited_by,
            "requests": self.served.requests,
        }


def by_requests(
    question: ServingQuestion,
    found: FoundServing,
    law: ArrivalLaw,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[ByRequests, ...]:
    """Run requests through the best placed layouts that can be; those that keep the limits come first, then by rate.

    Parameters
    ----------
    law
        How they come, over all GPUs; lengths are the question's.
    """
    runs: list[ByRequests] = []
    for one in found.placed:
        done = sum(run.served is not None for run in runs)
        if done == LAYOUTS:
            break
        if progress is not None:
            progress("serving requests", done, LAYOUTS)
        plan = found.plan if one is found.winner else one.decode.plan(question.model)
        try:
            runs.append(ByRequests(steady=one, served=_served(question, one, plan, law, found.gpus)))
        except MoecastError as error:
            runs.append(ByRequests(steady=one, served=None, why_not=str(error)))
    return tuple(sorted(runs, key=lambda run: (not run.meets(found.slo), -_rate(run))))


def _rate(run: ByRequests) -> float:
    return 0.0 if run.served is None else run.served.output_tokens_per_s_per_gpu


def _served(question: ServingQuestion, one: Steady, plan: Plan, law: ArrivalLaw, gpus: int) -> Served:
    lengths = Lengths(prompt=question.isl, output=question.osl)
    number = ROUNDS * law.concurrency if law.name == "closed" else OPEN_REQUESTS
    made = make_requests(law, lengths, min(number, MOST_REQUESTS), seed=question.seed)
    asked = question.decoding(plan, one.decode.batch)
    prefill = None
    if one.split:
        whole = one.prefill_instances * one.prefill.gpus
        own = _on_last(one.prefill, question, whole, gpus)
        chunks = Serving(max_batched_tokens=one.prefill.batch)
        prefill = PrefillPool(plan=own, instances=one.prefill_instances, serving=chunks)
    serving = Serving(max_sequences=one.decode.batch)
    return serve(asked, made, arrivals=law, serving=serving, prefill=prefill, instances=one.decode_instances)


def _on_last(layout: ServingLayout, question: ServingQuestion, whole: int, gpus: int) -> Plan:
    """The plan of the first of some instances that stand on the last GPUs in use."""
    first = gpus - whole
    return layout.plan(question.model).with_(gpu_of_rank=tuple(first + gpu for gpu in layout.gpu_of_rank))


def requests_rows(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """TTFT and TPOT (mean, 99th percentile), rate, what limits, layout."""
    from moecast.units import format_s

    rows = []
    for run in runs:
        if run["why_not"]:
            rows.append(("", "", "", run["why_not"], run["name"]))
            continue
        times = [f"{format_s(run[name]['mean_s'])}, {format_s(run[name]['p99_s'])}" for name in ("ttft", "tpot")]
        kept = "kept" if run["meets"] else "missed"
        rows.append((*times, f"{run['tokens_per_s_per_gpu']:,.0f}", f"{kept}; {run['limited_by']}", run["name"]))
    return rows
