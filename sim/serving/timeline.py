"""A run of requests as a timeline that opens in ui.perfetto.dev: Chrome's trace-event JSON.

One process holds the requests: a track is a seat that one request takes after another, so that
there are no more tracks than requests in flight, and a request is a span with its queue, prefill,
way of its keys (where prompts are computed elsewhere) and decode inside. Each pool is a process
with a track for every attention-DP rank, a span for each of its iterations (those of the run's
beginning, as many as were kept), and counters of its state over the whole run.

Format: "Trace Event Format", Chromium project. Axes: G DP rank, W iteration, N number of a rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np

from moecast.sim.serving.history import OverTime
from moecast.sim.serving.iteration_log import IterationLog, Logged
from moecast.sim.serving.request_times import RequestTimes
from moecast.sim.serving.served import Served

Event = dict[str, Any]

REQUESTS = 0
"""The process of requests; pools are those after it."""
MOST_REQUESTS = 20_000
SPANS = 50_000
"""Iterations of ranks that a timeline has room for."""
_MICRO = 1e6


def serving_timeline(served: Served) -> dict[str, Any]:
    """Draw a run; iterations one by one where `serve` was asked to keep some (`log_spans`)."""
    events = list(_requests(served.times))
    for process, (name, over_time) in enumerate(served.over_time.items(), start=REQUESTS + 1):
        events.append(_name(process, 0, "process_name", f"{name}: {served.model}, batched as {served.batcher} does"))
        events += _counters(process, over_time, served.duration_s)
        log = served.logs.get(name)
        if log is not None:
            events += _ranks(process, log)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": _about(served)}


def _about(served: Served) -> dict[str, Any]:
    logs = served.logs.values()
    return {
        "cluster": served.cluster,
        "model": served.model,
        "arrivals": served.arrivals,
        "requests_drawn": min(served.requests, MOST_REQUESTS),
        "requests": served.requests,
        "iterations": served.iterations,
        "iterations_left_out": sum(log.left_out for log in logs) if served.logs else served.iterations,
        "duration_s": served.duration_s,
    }


def _requests(times: RequestTimes) -> Iterator[Event]:
    yield _name(REQUESTS, 0, "process_name", "requests")
    order = np.lexsort((np.arange(len(times.arrival_Q)), times.arrival_Q))[:MOST_REQUESTS]
    free: list[tuple[float, int]] = []  # seats, by when they were left
    seats = 0
    for request in order.tolist():
        arrival_s, end_s = float(times.arrival_Q[request]), float(times.end_Q[request])
        if free and free[0][0] <= arrival_s:
            _, seat = heapq.heappop(free)
        else:
            seat, seats = seats, seats + 1
            yield _name(REQUESTS, seat, "thread_name", f"seat {seat}")
        heapq.heappush(free, (end_s, seat))
        args = {"preempted": int(times.preempted_Q[request])}
        yield from _span(REQUESTS, seat, f"request {request}", "request", arrival_s, end_s, args)
        stations = (times.started_Q, times.prefilled_Q, times.first_Q, times.end_Q)
        begin_s = arrival_s
        for name, until_Q in zip(("queue", "prefill", "keys move", "decode"), stations, strict=True):
            until_s = float(until_Q[request])
            yield from _span(REQUESTS, seat, name, name, begin_s, until_s, {})
            begin_s = until_s


def _ranks(process: int, log: IterationLog) -> Iterator[Event]:
    ranks = log.kept[0].numbers_NG.shape[1] if log.kept else 0
    for instance in sorted({logged.instance for logged in log.kept}):
        for rank in range(ranks):
            name = f"instance {instance}, rank {rank}"
            yield _name(process, instance * ranks + rank, "thread_name", name)
    for logged in log.kept:
        yield from _iterations(process, logged)


def _iterations(process: int, logged: Logged) -> Iterator[Event]:
    begin_s, ranks = logged.start_s, logged.numbers_NG.shape[1]
    numbers_GN = logged.numbers_NG.T.tolist()
    for passed, end_s in enumerate(logged.ends_W.tolist()):
        for rank, (prompt_tokens, prompt_keys, _, decodes, decode_keys) in enumerate(numbers_GN):
            args = {
                "prompt tokens": prompt_tokens, "decode tokens": decodes,
                "keys": prompt_keys + decode_keys + passed * decodes,
            }  # fmt: skip
            category = "prefill" if prompt_tokens else "decode" if decodes else "idle"
            parts = [f"prefill {prompt_tokens}"] * (prompt_tokens > 0) + [f"decode {decodes}"] * (decodes > 0)
            name, track = " + ".join(parts) or "idle", logged.instance * ranks + rank
            yield from _span(process, track, name, category, begin_s, end_s, args)
        begin_s = end_s


def _counters(process: int, over_time: OverTime, duration_s: float) -> Iterator[Event]:
    values = zip(over_time.running, over_time.waiting, over_time.kv_used, strict=True)
    for at, (running, waiting, kv_used) in enumerate(values):
        ts = at * over_time.bin_s * _MICRO
        for name, args in (
            ("requests", {"running": running, "waiting": waiting}),
            ("KV blocks in use, %", {"%": 100 * kv_used}),
        ):
            yield {"ph": "C", "pid": process, "tid": 0, "ts": ts, "name": name, "args": args}
    for name, args in (("requests", {"running": 0.0, "waiting": 0.0}), ("KV blocks in use, %", {"%": 0.0})):
        yield {"ph": "C", "pid": process, "tid": 0, "ts": duration_s * _MICRO, "name": name, "args": args}


def _name(process: int, track: int, kind: str, name: str) -> Event:
    return {"ph": "M", "pid": process, "tid": track, "name": kind, "args": {"name": name}}


def _span(
    process: int, track: int, name: str, category: str, begin_s: float, end_s: float, args: dict[str, Any]
) -> Iterator[Event]:
    """Draw what takes any time at all."""
    if end_s > begin_s:
        yield {
            "ph": "X",
            "pid": process,
            "tid": track,
            "ts": begin_s * _MICRO,
            "dur": (end_s - begin_s) * _MICRO,
            "name": name,
            "cat": category,
            "args": args,
        }
