"""From a run to what it shows: throughput, goodput, what limits, and notes to be read with the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.sim.accuracy import served_grounds
from moecast.sim.cost.gpus import gpu_key
from moecast.sim.engines import find_engine
from moecast.sim.serving.arrivals import ArrivalLaw
from moecast.sim.serving.cost.surrogate_error import network_share, surrogate_error
from moecast.sim.serving.intervals import goodput_interval, intervals_of
from moecast.sim.serving.latency import Latency
from moecast.sim.serving.measures import Measures, latencies, limited_by, percentiles_s, shares_of_time
from moecast.sim.serving.pools_served import KvMoved, PoolServed, limited_apart
from moecast.sim.serving.records import Records
from moecast.sim.serving.request import Request
from moecast.sim.serving.request_times import RequestTimes
from moecast.sim.serving.served import Served
from moecast.sim.serving.slo import Slo
from moecast.sim.serving.workers import Workers

if TYPE_CHECKING:
    from moecast.sim.question import Question

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is over.

    Parameters
    ----------
    pools
        By name, the last of which answers.
    records, prompts
        What the pool that answers wrote down, and another that computed prompts, if any.
    arrivals
        None: recorded times.
    duration_s
        Until the last token of the last request.
    moved
        Keys between pools.
    """

    pools: Mapping[str, Workers]
    records: Records
    prompts: Records | None
    requests: Sequence[Request]
    arrivals: ArrivalLaw | None
    duration_s: float
    moved: KvMoved | None

    @property
    def closed(self) -> int | None:
        """Users of a closed loop; None: there is none."""
        return self.arrivals.concurrency if self.arrivals is not None and self.arrivals.name == "closed" else None

    @property
    def too_few(self) -> bool:
        """Whether requests are too few to leave out ramp and drain."""
        return self.closed is not None and len(self.requests) <= 2 * self.closed


def summary(
    question: Question, run: Run, *, slo: Slo | None, dollars_per_gpu_hour: float | None, notes: tuple[str, ...] = ()
) -> Served:
    """Sum up a run."""
    records, requests = run.records, run.requests
    outside_Q = seconds_outside(question, requests, apart=run.moved is not None)
    measures = Measures.of(records, requests, concurrency=run.closed, outside_Q=outside_Q)
    last = list(run.pools.values())[-1]
    gpus = sum(of.gpus for of in run.pools.values())
    rates = _rates(run, gpus, dollars_per_gpu_hour)
    promised = _promised(slo, measures, rates["requests_per_s"])
    latency = latencies(measures, records)
    return Served(
        cluster=question.cluster.name,
        model=question.model.name,
        engine=question.cluster.hardware.engine,
        batcher=last.policy.name,
        network=question.rung.name,
        arrivals="recorded times" if run.arrivals is None else str(run.arrivals),
        gpus=gpus,
        instances=sum(of.count for of in run.pools.values()),
        ranks=last.pool.ranks,
        requests=len(requests),
        counted=int(measures.counted_Q.sum()),
        duration_s=run.duration_s,
        latency=latency,
        **rates,
        **promised,
        **_sure(question, run, slo, measures, latency, rates),
        concurrency=records.in_system_s / run.duration_s,
        **_limits(run),
        kv={
            "blocks": last.limits.kv_blocks,
            "block_tokens": last.limits.block_tokens,
            "peak": last.pool.times.kv_peak / last.limits.kv_blocks,
            "preemptions": last.pool.times.preemptions,
        },
        iterations=sum(of.pool.times.iterations for of in run.pools.values()),
        error=surrogate_error(last.cost),
        quantiles_s=percentiles_s(measures, records),
        over_time={name: of.pool.times.history.over_time(run.duration_s, of.count) for name, of in run.pools.items()},
        step_times={name: of.pool.times.steps.found() for name, of in run.pools.items()},
        notes=(*question.notes, *notes, *_notes(run, promised)),
        seed=question.seed,
        whole_run_s={"ttft": float(measures.ttft_Q.mean()), "tpot": float(measures.tpot_Q.mean())},
        pools=tuple(PoolServed.of(name, of) for name, of in run.pools.items()) if run.moved is not None else (),
        moved=run.moved,
        measures=measures,
        times=RequestTimes.of(records, run.prompts),
        logs={name: of.pool.times.log for name, of in run.pools.items() if of.pool.times.log is not None},
    )


def seconds_outside(question: Question, requests: Sequence[Request], *, apart: bool) -> Float:
    """Seconds of each request outside the engine's iterations [Q]; `apart`: prompts on GPUs of their own."""
    hardware = question.cluster.hardware
    tokens_Q = np.array([request.prompt_tokens for request in requests], np.float64)
    return find_engine(hardware.engine).outside_s(tokens_Q, gpu=gpu_key(hardware), apart=apart)


def _rates(run: Run, gpus: int, dollars_per_gpu_hour: float | None) -> dict[str, Any]:
    """Throughput: of a closed loop while neither ramp nor drain, unless requests are too few."""
    inputs, outputs = (sum(getattr(r, f"{name}_tokens") for r in run.requests) for name in ("prompt", "output"))
    steady_s, steady_tokens = run.records.steady_s[1], run.records.steady_tokens[1]
    whole = run.closed is None or steady_s <= 0 or run.too_few
    output_per_s = outputs / run.duration_s if whole else steady_tokens / steady_s
    requests_per_s = output_per_s * len(run.requests) / outputs
    dollars_s = None if dollars_per_gpu_hour is None else dollars_per_gpu_hour * gpus / 3600
    return {
        "input_tokens": inputs,
        "output_tokens": outputs,
        "output_tokens_per_s": output_per_s,
        "input_tokens_per_s": requests_per_s * inputs / len(run.requests),
        "requests_per_s": requests_per_s,
        "output_tokens_per_s_per_gpu": output_per_s / gpus,
        "output_tokens_per_dollar": None if not dollars_s else output_per_s / dollars_s,
    }


def _promised(slo: Slo | None, measures: Measures, requests_per_s: float) -> dict[str, Any]:
    """What of the SLO is kept."""
    if slo is None:
        return {"goodput_per_s": None, "kept": None, "shortfalls": {}}
    counted = measures.counted()
    kept = float(slo.kept_Q(counted).mean())
    return {
        "goodput_per_s": kept * requests_per_s,
        "kept": kept,
        "shortfalls": slo.shortfalls(measures.timed()),
        "promised_s": slo.given,
    }


def _sure(
    question: Question,
    run: Run,
    slo: Slo | None,
    measures: Measures,
    latency: Mapping[str, Latency],
    rates: Mapping[str, Any],
) -> dict[str, Any]:
    """Intervals, and what they rest on."""
    law = "" if run.arrivals is None else run.arrivals.name
    batcher, apart = list(run.pools.values())[-1].policy.name, run.moved is not None
    grounds = served_grounds(question, run.requests, arrivals=law, batcher=batcher, apart=apart)
    kept = goodput_interval(grounds, slo, measures.counted(), rates["requests_per_s"])
    return {
        "intervals": {**intervals_of(grounds, latency, rates), **kept},
        "rests_on": {measure: of.to_json() for measure, of in grounds.items()},
    }


def _limits(run: Run) -> dict[str, Any]:
    """Parts of the time, and in a word what limits throughput, of one pool or of two."""
    shares = shares_of_time(
        {name: of.pool.times for name, of in run.pools.items()},
        run.duration_s,
        {name: of.count for name, of in run.pools.items()},
    )
    network = network_share(list(run.pools.values())[-1].cost)
    if network is not None:
        shares["iterations' time in exchanges"] = network
    if run.moved is None:
        return {"limits": shares, "limited_by": limited_by(shares, network)}
    held = run.moved.held_mean_s * run.moved.requests / run.duration_s
    return {"limits": shares, "limited_by": limited_apart(shares, run.moved, held)}


def _notes(run: Run, promised: Mapping[str, Any]) -> list[str]:
    said = []
    if run.too_few:
        said.append(
            f"note: {len(run.requests)} requests are too few to leave out ramp and drain of {run.closed} in flight"
        )
    if promised["kept"] is not None and not promised["kept"]:
        missed = (f"{name} {format_times(times)} in the best request" for name, times in promised["shortfalls"].items())
        said.append(f"note: no request keeps the SLO: {', '.join(missed)}")
    return said


def format_times(times: float) -> str:
    """How many times what is promised."""
    return "kept" if times <= 1 else f"is {times:.2f} times what is promised"
