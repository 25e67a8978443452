"""From what a run wrote down to what it shows.

Axes: Q request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.serving.latency import Latency
from moecast.sim.serving.records import PoolTimes, Records
from moecast.sim.serving.request import Request
from moecast.units import format_percent

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

MUCH = 0.1
"""Part of the time from which a wait is called what limits."""
LITTLE = 0.005
"""Part of the time below which nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measures:
    """Measures of each request [Q], and which of them count.

    Parameters
    ----------
    tpot_Q
        0 where an answer has one token, which promises about times per token are kept by.
    counted_Q
        Of a closed loop not the first round nor the last, which meet more or fewer others than the
        rest.
    several_Q
        Answers of more than one token: only these have a time per token, as `vllm bench serve` has
        it.
    """

    ttft_Q: Float
    tpot_Q: Float
    e2e_Q: Float
    counted_Q: Bool
    several_Q: Bool

    @classmethod
    def of(
        cls, records: Records, requests: Sequence[Request], *, concurrency: int | None, outside_Q: Float | None = None
    ) -> Measures:
        """Measure every request; each takes so many seconds outside the engine's iterations."""
        outputs_Q = np.array([request.output_tokens for request in requests])
        outside_Q = np.zeros(len(requests)) if outside_Q is None else outside_Q
        ttft_Q = records.first_Q - records.arrival_Q + outside_Q
        tpot_Q = (records.end_Q - records.first_Q) / np.maximum(outputs_Q - 1, 1)
        counted_Q = np.ones(len(requests), bool)
        if concurrency is not None and len(requests) > 2 * concurrency:
            counted_Q[:concurrency] = counted_Q[-concurrency:] = False
        return cls(
            ttft_Q=ttft_Q,
            tpot_Q=tpot_Q,
            e2e_Q=records.end_Q - records.arrival_Q + outside_Q,
            counted_Q=counted_Q,
            several_Q=outputs_Q > 1,
        )

    def counted(self) -> dict[str, Float]:
        """Measures of the requests that count."""
        return {name: getattr(self, f"{name}_Q")[self.counted_Q] for name in ("ttft", "tpot", "e2e")}

    def timed(self) -> dict[str, Float]:
        """Measures of the requests that count and have them: a time per token only where an answer has two tokens."""
        return self.counted() | {"tpot": self.tpot_Q[self.counted_Q & self.several_Q]}


def latencies(measures: Measures, records: Records) -> dict[str, Latency]:
    """Summaries by measure."""
    found = {name: Latency.of(seconds_Q) for name, seconds_Q in measures.timed().items()}
    gaps = records.gaps
    found["itl"] = Latency(
        mean_s=gaps.mean_s,
        p50_s=gaps.quantile_s(0.5),
        p90_s=gaps.quantile_s(0.9),
        p99_s=gaps.quantile_s(0.99),
        std_s=gaps.std_s,
    )
    return found


def shares_of_time(times: Mapping[str, PoolTimes], duration_s: float, instances: Mapping[str, int]) -> dict[str, float]:
    """Parts of the time: with prompts, decode alone, idle; and while requests wait for blocks or for a seat."""
    shares: dict[str, float] = {}
    for pool, of in times.items():
        whole_s, seconds = max(duration_s * instances[pool], 1e-300), of.seconds()
        prefix = f"{pool}: " if len(times) > 1 else ""
        shares[f"{prefix}iterations with prompts"] = seconds["prompt_s"] / whole_s
        shares[f"{prefix}decode alone"] = seconds["decode_s"] / whole_s
        shares[f"{prefix}idle"] = max(0.0, 1 - (seconds["prompt_s"] + seconds["decode_s"]) / whole_s)
        shares[f"{prefix}requests wait for KV blocks"] = seconds["kv_wait_s"] / whole_s
        shares[f"{prefix}requests wait for a sequence's place"] = seconds["seat_wait_s"] / whole_s
        shares[f"{prefix}requests wait for prompts before theirs"] = seconds["prompt_wait_s"] / whole_s
    return shares


def limited_by(shares: Mapping[str, float], network: float | None) -> str:
    """In a word what limits throughput."""

    def most(text: str) -> float:
        return max((part for name, part in shares.items() if name.endswith(text)), default=0.0)

    if most("wait for KV blocks") > MUCH:
        return "KV cache"
    if most("wait for a sequence's place") > MUCH:
        return "sequences that may run"
    if min((part for name, part in shares.items() if name.endswith("idle")), default=0.0) > 0.5:
        return "arrivals: the engine idles most of the time"
    if network is not None and network > 0.5:
        return "network"
    return "prefill" if most("with prompts") > most("decode alone") else "decode"


def limits_in_words(limited: str, shares: Mapping[str, float]) -> str:
    """What limits, with the shares that say so."""
    said = [name for name, part in shares.items() if part > (MUCH if "wait for" in name else LITTLE)]
    return f"{limited} (of the time: {', '.join(f'{name} {format_percent(shares[name])}' for name in said)})"


def percentiles_s(measures: Measures, records: Records) -> dict[str, tuple[float, ...]]:
    """The percentiles 0 to 100 of each measure."""
    parts = np.linspace(0, 1, 101)
    found = {
        name: tuple(np.quantile(seconds_Q, parts).tolist())
        for name, seconds_Q in measures.timed().items()
        if len(seconds_Q)
    }
    return {**found, "itl": tuple(records.gaps.quantile_s(float(part)) for part in parts)}
