"""Results of serving benchmarks: `vllm bench serve` (and what writes its fields), AIPerf and GuideLLM, as JSON.

Field names are those of vLLM's `vllm/benchmarks/serve.py`, of AIPerf's JSON export schema and of
GuideLLM's report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResult:
    """What a run measured, and the load it was under.

    Parameters
    ----------
    tpot_s, ttft_s
        Mean time per output token after the first, and to the first; the latter None where it was
        not measured.
    input_tokens, output_tokens
        Means over requests.
    concurrency
        Requests at a time, of the configuration; None where the load was no such limit.
    output_tokens_per_s
        Of the whole system.
    """

    format: str
    name: str
    tpot_s: float
    ttft_s: float | None
    input_tokens: float
    output_tokens: float
    concurrency: float | None
    output_tokens_per_s: float | None

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in ("tpot_s", "ttft_s", "input_tokens", "output_tokens", "concurrency", "output_tokens_per_s"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{field} = {value}: a positive number")

    @property
    def in_flight(self) -> float | None:
        """Requests that decode at a time: by throughput x time per token, else the limit; None where neither is."""
        if self.output_tokens_per_s is not None:
            return self.output_tokens_per_s * self.tpot_s
        return self.concurrency

    @property
    def context(self) -> int:
        """Keys that a decoded token reads in the mean."""
        return max(1, round(self.input_tokens + self.output_tokens / 2))


def read_serving(path: Path) -> list[ServingResult]:
    """Read a file of results: one of most tools, one for each load of GuideLLM.

    Raises
    ------
    MoecastError
        It is no such file, or says no time per output token, or no lengths.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise MoecastError("no results of a serving benchmark: a JSON object", file=path)
    for known, read in FORMATS:
        if known(value):
            try:
                return read(value)
            except ValueError as error:
                raise MoecastError(str(error), file=path) from None
    rule = "none of the fields mean_tpot_ms (vllm bench serve), inter_token_latency (AIPerf), benchmarks (GuideLLM)"
    raise MoecastError(rule, file=path)


def _number(value: Mapping[str, Any], *names: str, needed: bool = True) -> float | None:
    """The number at a path of names; None where it is not there and need not be."""
    found: Any = value
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    if found is None and not needed:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise ValueError(f"{'.'.join(names)} = {found!r}: a number")
    return float(found)


def _sure(value: Mapping[str, Any], *names: str) -> float:
    found = _number(value, *names)
    assert found is not None
    return found


def _scaled(value: float | None, scale: float) -> float | None:
    return value * scale if value else None


def _read_vllm(value: Mapping[str, Any]) -> list[ServingResult]:
    completed = _sure(value, "completed")
    if completed <= 0:
        raise ValueError("completed = 0: no request was answered")
    return [
        ServingResult(
            format="vllm bench serve",
            name=str(value.get("model_id", "")),
            tpot_s=_sure(value, "mean_tpot_ms") / 1e3,
            ttft_s=_scaled(_number(value, "mean_ttft_ms", needed=False), 1e-3),
            input_tokens=_sure(value, "total_input_tokens") / completed,
            output_tokens=_sure(value, "total_output_tokens") / completed,
            concurrency=_number(value, "max_concurrency", needed=False),
            output_tokens_per_s=_number(value, "output_throughput", needed=False),
        )
    ]


def _read_aiperf(value: Mapping[str, Any]) -> list[ServingResult]:
    return [
        ServingResult(
            format="AIPerf",
            name="",
            tpot_s=_milliseconds(value, "inter_token_latency"),
            ttft_s=_milliseconds(value, "time_to_first_token") if "time_to_first_token" in value else None,
            input_tokens=_sure(value, "input_sequence_length", "avg"),
            output_tokens=_sure(value, "output_sequence_length", "avg"),
            concurrency=_number(value, "input_config", "loadgen", "concurrency", needed=False),
            output_tokens_per_s=_number(value, "output_token_throughput", "avg", needed=False),
        )
    ]


def _milliseconds(value: Mapping[str, Any], name: str) -> float:
    unit = value[name].get("unit") if isinstance(value[name], Mapping) else None
    if unit != "ms":
        raise ValueError(f"{name}.unit = {unit!r}: ms")
    return _sure(value, name, "avg") / 1e3


def _read_guidellm(value: Mapping[str, Any]) -> list[ServingResult]:
    listed = value["benchmarks"]
    if not listed:
        raise ValueError("benchmarks: empty")
    return [_of_guidellm(number, one) for number, one in enumerate(listed, 1)]


def _of_guidellm(number: int, one: Any) -> ServingResult:
    metrics = one.get("metrics") if isinstance(one, Mapping) else None
    if not isinstance(metrics, Mapping):
        raise ValueError(f"benchmarks[{number - 1}].metrics: an object")

    def mean(name: str, *, needed: bool = True) -> float | None:
        return _number(metrics, name, "successful", "mean", needed=needed)

    needed = [mean(name) for name in ("inter_token_latency_ms", "prompt_token_count", "output_token_count")]
    tpot_ms, prompt, output = (value or 0.0 for value in needed)
    return ServingResult(
        format="GuideLLM",
        name=f"benchmark {number}",
        tpot_s=tpot_ms / 1e3,
        ttft_s=_scaled(mean("time_to_first_token_ms", needed=False), 1e-3),
        input_tokens=prompt,
        output_tokens=output,
        concurrency=mean("request_concurrency", needed=False),
        output_tokens_per_s=mean("output_tokens_per_second", needed=False),
    )


FORMATS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], list[ServingResult]]], ...] = (
    (lambda value: "mean_tpot_ms" in value, _read_vllm),
    (lambda value: "inter_token_latency" in value, _read_aiperf),
    (lambda value: isinstance(value.get("benchmarks"), list), _read_guidellm),
)
"""By what a format is known, and how it is read. To add one: a function, and a line here."""
