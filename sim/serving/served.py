"""What users of a served model see: latencies, throughput, goodput, what limits; as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from moecast.files import write_text
from moecast.sim.accuracy.served import served_text
from moecast.sim.serving.cost.surrogate_error import SurrogateError
from moecast.sim.serving.history import OverTime
from moecast.sim.serving.iteration_log import IterationLog
from moecast.sim.serving.latency import Latency
from moecast.sim.serving.measures import Measures, limits_in_words
from moecast.sim.serving.pools_served import KvMoved, PoolServed
from moecast.sim.serving.request_times import RequestTimes
from moecast.sim.serving.step_times import StepTimes
from moecast.sim.shown import ShownAsTable
from moecast.units import format_count, format_percent, format_s

SCHEMA = 2
OF_REQUESTS = ("measures", "times", "logs")
MEASURES = {"ttft": "time to first token", "tpot": "time per output token", "itl": "inter-token latency",
            "e2e": "end to end"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Served(ShownAsTable):
    """A run of requests through an engine.

    Parameters
    ----------
    cluster, model, engine, batcher, network, arrivals
        What was asked.
    gpus, instances, ranks
        GPUs in all; instances that step by themselves; attention-DP ranks of each.
    requests, counted
        Requests in all, and those that latencies are of: without ramp and drain, where the loop is
        closed.
    duration_s
        Until the last token of the last request.
    latency
        By measure.
    input_tokens, output_tokens
        Of all requests.
    output_tokens_per_s, input_tokens_per_s, requests_per_s
        Of the cluster; in a closed loop while neither ramp nor drain.
    output_tokens_per_s_per_gpu, output_tokens_per_dollar
        The latter where a price is given.
    goodput_per_s, kept, shortfalls
        With an SLO: requests per second that keep it, their part of those counted, and by measure
        how many times what is promised the best request took.
    concurrency
        Requests in the system, mean over time.
    limits, limited_by
        Parts of the time (several at once may hold), and in a word what throughput is limited by.
    kv
        Blocks of a rank's cache, tokens of each, the most that were used, and how often a request
        was preempted.
    error
        Of the surrogate; None where every iteration was simulated or none was tried.
    quantiles_s
        By measure, the percentiles 0 to 100 of what `latency` sums up.
    over_time, step_times
        By pool: state over time, and how long iterations took by how many requests were in them.
    notes
        What is to be read with it.
    whole_run_s
        Mean TTFT and TPOT of all requests. In a closed loop those of ramp and drain are in it,
        which no latency counts: runs that were measured from an idle engine on have them in their
        means.
    pools, moved
        Where prompts are computed on GPUs of their own: both pools, and what moved between them.
    promised_s
        With an SLO: the most seconds by measure.
    intervals
        Ends of 80 % intervals, by what they are of: "ttft_mean_s", "tpot_mean_s", "itl_mean_s",
        "e2e_mean_s", rates and "kept" by their own names; empty where no measured rows speak for
        the run.
    rests_on
        By measure ("ttft", "tpot", "throughput") what the intervals rest on, as a Prediction's
        `rests_on`.
    measures, times, logs
        Of each request, and by pool the iterations that were kept for a timeline; not in the JSON.
    """

    cluster: str
    model: str
    engine: str
    batcher: str
    network: str
    arrivals: str
    gpus: int
    instances: int
    ranks: int
    requests: int
    counted: int
    duration_s: float
    latency: Mapping[str, Latency]
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    input_tokens_per_s: float
    requests_per_s: float
    output_tokens_per_s_per_gpu: float
    output_tokens_per_dollar: float | None
    goodput_per_s: float | None
    kept: float | None
    shortfalls: Mapping[str, float]
    concurrency: float
    limits: Mapping[str, float]
    limited_by: str
    kv: Mapping[str, float]
    iterations: int
    error: SurrogateError | None
    quantiles_s: Mapping[str, tuple[float, ...]]
    over_time: Mapping[str, OverTime]
    step_times: Mapping[str, tuple[StepTimes, ...]]
    notes: tuple[str, ...] = ()
    seed: int = 0
    whole_run_s: Mapping[str, float] = field(default_factory=dict)
    pools: tuple[PoolServed, ...] = ()
    moved: KvMoved | None = None
    promised_s: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rests_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measures: Measures = field(compare=False)
    times: RequestTimes = field(compare=False)
    logs: Mapping[str, IterationLog] = field(default_factory=dict, compare=False)

    @property
    def table_title(self) -> str:
        """Model, cluster, engine and arrivals."""
        return f"{self.model}: {self.arrivals} on {self.gpus} GPUs of {self.cluster}, batched as {self.batcher} does"

    def table_rows(self) -> list[tuple[str, str]]:
        """What `moecast serve` prints."""
        rows = [("requests", f"{self.requests:,}, {self.counted:,} of them counted")]
        rows += [(f"{words} ({name.upper()})", self._shown_latency(name)) for name, words in MEASURES.items()]
        rows += self._shown_rates()
        rows.append(("in the system", f"{self.concurrency:.4g} requests in the mean, ramp and drain included"))
        rows += [(f"{pool.name} pool", pool.shown) for pool in self.pools]
        if self.moved is not None:
            rows.append(("keys moved", self.moved.shown))
        rows.append(("KV cache", self._shown_kv()))
        rows.append(("limited by", limits_in_words(self.limited_by, self.limits)))
        rows += [(f"  {name}", format_percent(part)) for name, part in self.limits.items()]
        if self.error is not None:
            rows.append(("surrogate", self.error.shown))
        return rows

    def _shown_latency(self, name: str) -> str:
        found = self.latency[name]
        named = (("p50", found.p50_s), ("p90", found.p90_s), ("p99", found.p99_s))
        mean = f"{format_s(found.mean_s)} mean{self.between(f'{name}_mean_s', format_s)}"
        return f"{mean}; " + ", ".join(f"{name} {format_s(value)}" for name, value in named)

    def _shown_rates(self) -> list[tuple[str, str]]:
        per_gpu = format_count(self.output_tokens_per_s_per_gpu)
        rate = f"{format_count(self.output_tokens_per_s)}{self.between('output_tokens_per_s', format_count)}"
        rows = [
            ("output tokens/s", f"{rate}, {per_gpu} per GPU"),
            ("input tokens/s", format_count(self.input_tokens_per_s)),
            ("requests/s", f"{self.requests_per_s:.3g}{self.between('requests_per_s', '{:.3g}'.format)}"),
        ]
        if self.output_tokens_per_dollar is not None:
            rows.append(("output tokens per $", format_count(self.output_tokens_per_dollar)))
        if self.goodput_per_s is not None and self.kept is not None:
            goodput = f"{self.goodput_per_s:.3g} requests/s{self.between('goodput_per_s', '{:.3g}'.format)}"
            rows.append(("goodput", f"{goodput}, {format_percent(self.kept)} of them"))
        return rows

    def between(self, name: str, form: Callable[[float], str]) -> str:
        """The 80 % interval of a number, to stand behind it; empty where there is none."""
        if name not in self.intervals:
            return ""
        low, high = self.intervals[name]
        return f" (80 %: {form(low)} to {form(high)})"

    def _shown_kv(self) -> str:
        blocks, size, preemptions = (int(self.kv[name]) for name in ("blocks", "block_tokens", "preemptions"))
        used = format_percent(self.kv["peak"])
        return f"{blocks:,} blocks of {size} tokens a rank, at most {used} used, {preemptions:,} preemptions"

    def table_notes(self) -> list[str]:
        """What is to be read with it."""
        return [*self.notes, *filter(None, [served_text(self.rests_on)])]

    def to_json(self) -> dict[str, Any]:
        """Give it as plain JSON values: the keys of `vllm bench serve`, and ours under `moecast`."""
        names = [of.name for of in fields(self) if of.name not in OF_REQUESTS]
        own = {name: _plain(getattr(self, name)) for name in names}
        return {**self.as_bench(), "moecast": {"schema": SCHEMA, **own}}

    def as_bench(self) -> dict[str, Any]:
        """The fields of a result of `vllm bench serve`, in its units."""
        bench: dict[str, Any] = {
            "backend": self.engine,
            "model_id": self.model,
            "num_prompts": self.requests,
            "duration": self.duration_s,
            "completed": self.requests,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.requests_per_s,
            "request_goodput": self.goodput_per_s,
            "output_throughput": self.output_tokens_per_s,
            "total_token_throughput": self.output_tokens_per_s + self.input_tokens_per_s,
        }
        for name, key in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
            found = self.latency[name]
            parts = (("mean", found.mean_s), ("median", found.p50_s), ("std", found.std_s), ("p90", found.p90_s),
                     ("p99", found.p99_s))  # fmt: skip
            bench |= {f"{part}_{key}_ms": seconds * 1e3 for part, seconds in parts}
        return bench


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def write_served(served: Served, path: str | Path) -> None:
    """Write a run as JSON, whole or not at all."""
    write_text(path, json.dumps(served.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
