"""`serve`: from a question and requests to what their users see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.cost.gpus import gpu_key
from moecast.sim.engines import find_engine
from moecast.sim.serving.arrivals import ArrivalLaw, ClosedSource, OpenSource, Source
from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.cost.surrogate import SurrogateCost
from moecast.sim.serving.loop import EventLoop
from moecast.sim.serving.measures import Measures, latencies, limited_by, shares_of_time
from moecast.sim.serving.overload import check_drains
from moecast.sim.serving.pools_served import KvMoved, PoolServed, limited_apart
from moecast.sim.serving.prefill_pool import PrefillPool, moves_between, prompts_of
from moecast.sim.serving.records import Records
from moecast.sim.serving.request import Request
from moecast.sim.serving.served import Served, SurrogateError
from moecast.sim.serving.setup import Serving
from moecast.sim.serving.slo import Slo
from moecast.sim.serving.workers import Workers, workers_of

if TYPE_CHECKING:
    from moecast.sim.question import Question

Float = npt.NDArray[np.float64]

NO_INTERVAL = "no interval: docs/serving.md has the errors of such forecasts on public runs"


def serve(
    question: Question,
    requests: Sequence[Request],
    *,
    arrivals: ArrivalLaw | None = None,
    serving: Serving | None = None,
    slo: Slo | None = None,
    dollars_per_gpu_hour: float | None = None,
    cost: StepCost | None = None,
    prefill: PrefillPool | None = None,
    instances: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Served:
    """Run requests through an engine that batches as real ones do.

    Parameters
    ----------
    question
        Cluster, model, plan, routing and engine; its workload says nothing here, since requests make the steps.
    requests
        With ids from 0 on, in the order in which they come.
    arrivals
        How they come; of a closed loop their arrival times are not used. None: as their times say.
    serving
        Batcher, limits, dispatch and cost; None: the engine's own, and the surrogate.
    slo
        What is promised, for goodput.
    dollars_per_gpu_hour
        For tokens per dollar.
    cost
        What iterations cost, in the place of what `serving` says.
    prefill
        Computes prompts on GPUs of its own; the question's plan then answers only, and keys move between.
    instances
        Copies of the question's plan, each on the next GPUs; None: one for each of its EP groups.
    progress
        Called with (requests at an end, requests in all).

    Raises
    ------
    MoecastError
        The question has no answer, the cache holds not even one request, random arrivals come faster than they can
        be served, or pools share a GPU.
    """
    how = serving or Serving()
    _check_requests(requests)
    closed = arrivals.concurrency if arrivals is not None and arrivals.name == "closed" else None
    records = Records(len(requests), ramp=closed or 0)
    topic_Q = np.array([request.topic for request in requests], np.int64)
    mean = round(np.mean([request.tokens for request in requests]))
    workers = workers_of(
        question, how, records, topic_Q=topic_Q, tokens=mean, instances=instances, cost=cost,
        prefilled=prefill is not None,
    )  # fmt: skip
    first = None if prefill is None else prefill.workers(question, how, requests, topic_Q)
    for request in requests:
        workers.limits.check_holds(request)
    for request in prompts_of(requests):
        (workers if first is None else first).limits.check_holds(request)
    moves = None if first is None else moves_between(question, first, workers, requests)
    if arrivals is not None and closed is None and not how.overload:
        check_drains(workers, requests, arrivals, prefilled=first is not None)
        if first is not None:
            check_drains(first, prompts_of(requests), arrivals)
    away_s = how.think_s + float(seconds_outside(question, requests, apart=first is not None).mean())
    source: Source = OpenSource(requests) if closed is None else ClosedSource(requests, closed, away_s)
    pools = {"engine": workers} if first is None else {"prefill": first, "decode": workers}
    loop = EventLoop(source, [of.pool for of in pools.values()], records, moves=moves, progress=progress)
    duration_s = loop.run()
    moved = None if moves is None else KvMoved.of(moves, loop.held_s, workers.pool.times, duration_s)
    return summary(
        question, pools, records, requests, arrivals=arrivals, duration_s=duration_s, slo=slo,
        dollars_per_gpu_hour=dollars_per_gpu_hour, moved=moved,
    )  # fmt: skip


def seconds_outside(question: Question, requests: Sequence[Request], *, apart: bool) -> Float:
    """Seconds of each request outside the engine's iterations [Q]; `apart`: prompts on GPUs of their own."""
    hardware = question.cluster.hardware
    tokens_Q = np.array([request.prompt_tokens for request in requests], np.float64)
    return find_engine(hardware.engine).outside_s(tokens_Q, gpu=gpu_key(hardware), apart=apart)


def _check_requests(requests: Sequence[Request]) -> None:
    if not requests:
        raise MoecastError("there is none", field="requests")
    for place, request in enumerate(requests):
        if request.id != place:
            raise MoecastError(f"ids are 0, 1, 2, …: request {place} has another", field="id", value=request.id)


def summary(
    question: Question,
    workers: dict[str, Workers],
    records: Records,
    requests: Sequence[Request],
    *,
    arrivals: ArrivalLaw | None,
    duration_s: float,
    slo: Slo | None,
    dollars_per_gpu_hour: float | None,
    notes: tuple[str, ...] = (),
    moved: KvMoved | None = None,
) -> Served:
    """Sum up a run: of pools by name, the last of which answers."""
    closed = arrivals.concurrency if arrivals is not None and arrivals.name == "closed" else None
    outside_Q = seconds_outside(question, requests, apart=moved is not None)
    measures = Measures.of(records, requests, concurrency=closed, outside_Q=outside_Q)
    last = list(workers.values())[-1]
    gpus = sum(of.gpus for of in workers.values())
    steady_s, steady_tokens = records.steady_s[1], records.steady_tokens[1]
    inputs, outputs = (sum(getattr(r, f"{name}_tokens") for r in requests) for name in ("prompt", "output"))
    whole = closed is None or steady_s <= 0 or len(requests) <= 2 * closed
    output_per_s = outputs / duration_s if whole else steady_tokens / steady_s
    requests_per_s = output_per_s * len(requests) / outputs
    shares = shares_of_time(
        {name: of.pool.times for name, of in workers.items()}, duration_s,
        {name: of.count for name, of in workers.items()},
    )  # fmt: skip
    network = network_share(last.cost)
    if network is not None:
        shares["iterations' time in exchanges"] = network
    kept = None if slo is None else float(slo.kept_Q(measures.counted()).mean())
    said = [*notes, NO_INTERVAL]
    if closed is not None and len(requests) <= 2 * closed:
        said.append(f"note: {len(requests)} requests are too few to leave out ramp and drain of {closed} in flight")
    shortfalls = {} if slo is None else slo.shortfalls(measures.counted())
    if slo is not None and not kept:
        missed = ", ".join(
            f"{name} {format_times(times)} in the best request" for name, times in shortfalls.items()
        )  # fmt: skip
        said.append(f"note: no request keeps the SLO: {missed}")
    dollars_s = None if dollars_per_gpu_hour is None else dollars_per_gpu_hour * gpus / 3600
    return Served(
        cluster=question.cluster.name,
        model=question.model.name,
        engine=question.cluster.hardware.engine,
        batcher=last.policy.name,
        network=question.rung.name,
        arrivals="recorded times" if arrivals is None else str(arrivals),
        gpus=gpus,
        instances=sum(of.count for of in workers.values()),
        ranks=last.pool.ranks,
        requests=len(requests),
        counted=int(measures.counted_Q.sum()),
        duration_s=duration_s,
        latency=latencies(measures, records),
        input_tokens=inputs,
        output_tokens=outputs,
        output_tokens_per_s=output_per_s,
        input_tokens_per_s=requests_per_s * inputs / len(requests),
        requests_per_s=requests_per_s,
        output_tokens_per_s_per_gpu=output_per_s / gpus,
        output_tokens_per_dollar=None if not dollars_s else output_per_s / dollars_s,
        goodput_per_s=None if kept is None else kept * requests_per_s,
        kept=kept,
        shortfalls=shortfalls,
        concurrency=records.in_system_s / duration_s,
        limits=shares,
        limited_by=limits_in_a_word(shares, network, moved, duration_s),
        kv={
            "blocks": last.limits.kv_blocks, "block_tokens": last.limits.block_tokens,
            "peak": last.pool.times.kv_peak / last.limits.kv_blocks, "preemptions": last.pool.times.preemptions,
        },
        iterations=sum(of.pool.times.iterations for of in workers.values()),
        error=surrogate_error(last.cost),
        samples=tuple(last.pool.times.samples),
        notes=(*question.notes, *said),
        seed=question.seed,
        whole_run_s={"ttft": float(measures.ttft_Q.mean()), "tpot": float(measures.tpot_Q.mean())},
        pools=tuple(PoolServed.of(name, of) for name, of in workers.items()) if moved is not None else (),
        moved=moved,
    )  # fmt: skip


def limits_in_a_word(shares: dict[str, float], network: float | None, moved: KvMoved | None, duration_s: float) -> str:
    """What limits throughput, of one pool or of two."""
    if moved is None:
        return limited_by(shares, network)
    return limited_apart(shares, moved, moved.held_mean_s * moved.requests / duration_s)


def format_times(times: float) -> str:
    """How many times what is promised."""
    return "kept" if times <= 1 else f"is {times:.2f} times what is promised"


def network_share(cost: StepCost) -> float | None:
    """The part of iterations' time in exchanges, where the cost knows it."""
    return cost.network_s / cost.total_s if isinstance(cost, SurrogateCost) and cost.total_s else None


def surrogate_error(cost: StepCost) -> SurrogateError | None:
    """How far off the surrogate was, where one was tried."""
    if not isinstance(cost, SurrogateCost) or not cost.tried.errors:
        return None
    sizes = np.abs(cost.tried.errors)
    return SurrogateError(
        iterations=len(sizes), median=float(np.median(sizes)), worst=float(sizes.max()),
        bias=float(np.mean(cost.tried.errors)), simulated=cost.simulated,
    )  # fmt: skip
