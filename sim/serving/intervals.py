"""The 80 % intervals of what a run shows: means of latencies, rates, and requests that keep a promise.

Rows that were measured have means only, so that percentiles get no interval. Rates of a closed loop
are off as the whole stay of a request is. Goodput's ends are those of all its parts at once: a
promise about a time is kept by as many requests as keep it when all times are as long, or as short,
as their intervals say.

Axes: Q request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moecast.sim.accuracy import Grounds
    from moecast.sim.serving.latency import Latency
    from moecast.sim.serving.slo import Slo

Float = npt.NDArray[np.float64]
Ends = tuple[float, float]

OF_LATENCY = {"ttft": "ttft", "tpot": "tpot", "itl": "tpot", "e2e": "throughput"}
"""Whose errors each latency has: gaps between tokens those of a time per token, a whole stay those of throughput."""
OF_THROUGHPUT = (
    "output_tokens_per_s",
    "input_tokens_per_s",
    "requests_per_s",
    "output_tokens_per_s_per_gpu",
    "output_tokens_per_dollar",
)


def intervals_of(
    grounds: Mapping[str, Grounds], latency: Mapping[str, Latency], rates: Mapping[str, Any]
) -> dict[str, Ends]:
    """Give ends of every mean and rate that has grounds, as "ttft_mean_s" or "output_tokens_per_s"."""
    found: dict[str, Ends] = {}
    for name, measure in OF_LATENCY.items():
        interval = grounds[measure].interval
        if interval is not None:
            found[f"{name}_mean_s"] = interval.of(latency[name].mean_s)
    interval = grounds["throughput"].interval
    for name in OF_THROUGHPUT:
        if interval is not None and rates[name] is not None:
            found[name] = (rates[name] / interval.high, rates[name] / interval.low)
    return found


def goodput_interval(
    grounds: Mapping[str, Grounds], slo: Slo | None, measured_Q: Mapping[str, Float], requests_per_s: float
) -> dict[str, Ends]:
    """Ends of the part of requests that keep the SLO, and of those a second; nothing without an SLO or grounds."""
    intervals = {name: grounds[OF_LATENCY[name]].interval for name in measured_Q}
    rate = grounds["throughput"].interval
    if slo is None or rate is None or any(interval is None for interval in intervals.values()):
        return {}
    kept: list[float] = []
    for end in ("high", "low"):
        longer_Q = {name: seconds_Q * getattr(intervals[name], end) for name, seconds_Q in measured_Q.items()}
        kept.append(float(slo.kept_Q(longer_Q).mean()))
    goodput = (kept[0] * requests_per_s / rate.high, kept[1] * requests_per_s / rate.low)
    return {"kept": (kept[0], kept[1]), "goodput_per_s": goodput}
