"""What stands behind a run of requests: public runs, asked request by request, measure by measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moecast.sim.accuracy.grounds import NO_ROWS, Grounds, grounds_in, unmeasured
from moecast.sim.accuracy.known_errors import SERVED, request_errors, served_family
from moecast.units import format_percent

if TYPE_CHECKING:
    from moecast.sim.question import Question
    from moecast.sim.serving.request import Request


def served_grounds(
    asked: Question, requests: Sequence[Request], *, arrivals: str, batcher: str, apart: bool
) -> dict[str, Grounds]:
    """Find what stands behind a run, by measure of `SERVED`; factors are on times.

    Throughput's are on GPU seconds of an output token, and so on the whole stay of a request in a
    closed loop.

    Parameters
    ----------
    arrivals, batcher
        Names of the law of arrivals (empty: recorded times) and of the policy.
    apart
        Prompts are computed on GPUs of their own.
    """
    why = _unmeasured_run(asked, requests, arrivals, batcher) or unmeasured(asked)
    known = request_errors()
    return {measure: grounds_in(known, served_family(measure, apart=apart), asked, why) for measure in SERVED}


def _unmeasured_run(asked: Question, requests: Sequence[Request], arrivals: str, batcher: str) -> str:
    """What of a run no measured row has."""
    engine = asked.cluster.hardware.engine
    checks = (
        (arrivals != "closed", f"arrivals {arrivals or 'at recorded times'}: the rows are closed loops"),
        (batcher != engine, f"batcher {batcher} on the kernels of {engine}"),
        (any(request.prefix_group >= 0 for request in requests), "prefixes in common"),
    )
    return next((why for found, why in checks if found), "")


def served_text(rests_on: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in a sentence what the intervals of a run rest on, from its `rests_on`; empty where unknown."""
    if not rests_on:
        return ""
    first = next(iter(rests_on.values()))
    if first["why_not"]:
        return f"no interval: {NO_ROWS}: {first['why_not']}"
    errors = "; ".join(
        f"{name}: median {format_percent(found['median'])}, p90 {format_percent(found['p90'])}"
        for name, found in rests_on.items()
    )
    own = f"{first['own_rows']} of them of {first['source']}" if first["own_rows"] else f"none of {first['source']}"
    return (
        f"80 % intervals are of means, by {first['rows']} public closed-loop runs of "
        f"{first['configurations']} configurations that set nothing, {own}; their errors: {errors}"
    )
