"""`serve`: from a question and requests to what their users see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.serving.arrivals import ArrivalLaw, ClosedSource, OpenSource, Source
from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.iteration_log import IterationLog
from moecast.sim.serving.loop import EventLoop
from moecast.sim.serving.overload import check_drains
from moecast.sim.serving.pools_served import KvMoved
from moecast.sim.serving.prefill_pool import PrefillPool, moves_between, prompts_of
from moecast.sim.serving.records import Records
from moecast.sim.serving.request import Request
from moecast.sim.serving.served import Served
from moecast.sim.serving.setup import Serving
from moecast.sim.serving.slo import Slo
from moecast.sim.serving.summary import Run, seconds_outside, summary
from moecast.sim.serving.workers import workers_of

if TYPE_CHECKING:
    from moecast.sim.question import Question


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
    log_spans: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Served:
    """Run requests through an engine that batches as real ones do.

    Parameters
    ----------
    question
        Cluster, model, plan, routing and engine; its workload says nothing here, since requests
        make the steps.
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
        Computes prompts on GPUs of its own; the question's plan then answers only, and keys move
        between.
    instances
        Copies of the question's plan, each on the next GPUs; None: one for each of its EP groups.
    log_spans
        Iterations of ranks to keep, from the beginning of the run, for `serving_timeline`.
    progress
        Called with (requests at an end, requests in all).

    Raises
    ------
    MoecastError
        The question has no answer, the cache holds not even one request, random arrivals come
        faster than they can be served, or pools share a GPU.
    """
    how = serving or Serving()
    _check_requests(requests)
    closed = arrivals.concurrency if arrivals is not None and arrivals.name == "closed" else None
    records = Records(len(requests), ramp=closed or 0)
    topic_Q = np.array([request.topic for request in requests], np.int64)
    mean = round(np.mean([request.tokens for request in requests]))
    workers = workers_of(
        question,
        how,
        records,
        topic_Q=topic_Q,
        tokens=mean,
        instances=instances,
        cost=cost,
        prefilled=prefill is not None,
    )
    prompts = Records(len(requests))
    first = None if prefill is None else prefill.workers(question, how, requests, topic_Q, prompts)
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
    for of in pools.values():
        of.pool.times.log = IterationLog(log_spans) if log_spans else None
    loop = EventLoop(source, [of.pool for of in pools.values()], records, moves=moves, progress=progress)
    duration_s = loop.run()
    moved = None if moves is None else KvMoved.of(moves, loop.held_s, workers.pool.times, duration_s)
    run = Run(
        pools=pools,
        records=records,
        prompts=None if first is None else prompts,
        requests=requests,
        arrivals=arrivals,
        duration_s=duration_s,
        moved=moved,
    )
    return summary(question, run, slo=slo, dollars_per_gpu_hour=dollars_per_gpu_hour)


def step_cost(question: Question, requests: Sequence[Request], *, serving: Serving | None = None) -> StepCost:
    """What iterations of a question's plan cost: for runs that share it (`cost` of `serve`), so that it is built once.

    Raises
    ------
    MoecastError
        The question has no answer.
    """
    topic_Q = np.array([request.topic for request in requests], np.int64)
    mean = round(np.mean([request.tokens for request in requests]))
    how = serving or Serving(tries=0)
    return workers_of(question, how, Records(len(requests)), topic_Q=topic_Q, tokens=mean).cost


def _check_requests(requests: Sequence[Request]) -> None:
    if not requests:
        raise MoecastError("there is none", field="requests")
    for place, request in enumerate(requests):
        if request.id != place:
            rule = f"ids are 0, 1, 2, …: request {place} has another"
            raise MoecastError(rule, field="id", value=request.id)
