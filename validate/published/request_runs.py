"""Serving runs that others measured, asked request by request: rows of `serving.csv` as closed loops.

A row of one kind of worker is a closed loop at its concurrency through the batcher of its engine,
with prompts and answers of .8 to 1 of the nominal lengths; of a row with prefill on GPUs of its
own, both pools stand on one cluster, the one that answers first, each with as many workers as the
row says. Public runs send ten requests for each that is in flight, all first ones at once: their
mean TTFT has these in it, a tenth; times per token are of the steady part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from moecast.errors import MoecastError
from moecast.sim import Question, Workload
from moecast.sim.accuracy.known_errors import SERVED, served_family
from moecast.sim.engines import ENGINES, NEUTRAL
from moecast.sim.serving import Lengths, PrefillPool, Served, Serving, make_requests, parse_arrivals, serve
from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.records import Records
from moecast.sim.serving.workers import workers_of
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.decode import configuration_of
from moecast.validate.published.row import Use
from moecast.validate.published.run_seats import dealt_by, seats_of
from moecast.validate.published.run_settings import RunSettings, prompt_tokens_of, settings_of
from moecast.validate.published.serving import SEED, Fields, ServingRow, one_text_routing

ROUNDS = 10
"""Public runs send ten requests for each that is in flight."""
MANY_USERS, FEW_ROUNDS = 1024, 4
"""With more in flight so many rounds are run: those between the first and the last stand for eight."""
LEAST_LENGTH = 0.8
TRACE_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RunForecast:
    """What a row's run is forecast to show: milliseconds, and seconds of an output token on a GPU."""

    ttft_ms: float
    tpot_ms: float
    gpu_s_per_token: float

    def seconds(self, measure: str) -> float:
        """Of a measure, the time that it stands for."""
        return {"ttft": self.ttft_ms / 1e3, "tpot": self.tpot_ms / 1e3, "throughput": self.gpu_s_per_token}[measure]


def answer_requests(fields: Fields, measure: str, *, network: str = "bound") -> RowAnswer:
    """Forecast a measure of a row's run (`ttft`, `tpot` or `throughput`), or say why not."""
    try:
        row = ServingRow.of(fields)
        published = published_of(row, measure)
    except ValueError as error:
        return RowAnswer(
            id=f"{fields['id']}: {measure}",
            family=SERVED[measure],
            source=fields.get("engine") or "unknown",
            configuration=fields["id"],
            use="check",
            unit="ms",
            published=None,
            why=str(error),
        )
    use: Use = "fit" if row.use == "fit" else "check"
    about = {
        "id": f"{row.id}: {measure}",
        "family": served_family(measure, apart=row.mode == "disagg"),
        "source": f"{row.engine} on {row.gpu}",
        "use": use,
        "configuration": configuration_of(row),
        "unit": "tokens/s per GPU" if measure == "throughput" else "ms",
        "published": 1 / published if measure == "throughput" else published * 1e3,
    }
    known = row.engine in {engine.name for engine in ENGINES}
    try:
        found = forecast(row if known else replace(row, engine=NEUTRAL.name), network)
    except (MoecastError, ValueError) as error:
        return RowAnswer(why=str(error), **about)  # type: ignore[arg-type]
    predicted_s = found.seconds(measure)
    predicted = 1 / predicted_s if measure == "throughput" else predicted_s * 1e3
    return RowAnswer(published_s=published, predicted_s=predicted_s, predicted=predicted, **about)  # type: ignore[arg-type]


def published_of(row: ServingRow, measure: str) -> float:
    """Seconds that were measured.

    Of throughput, what TTFT, TPOT and concurrency say of a closed loop.

    Raises
    ------
    ValueError
        The row does not say it.
    """
    for name, value in (("tpot_mean_ms", row.tpot_ms), ("ttft_mean_ms", row.ttft_ms), ("osl", row.osl)):
        if not value > 0:
            raise ValueError(f"{name} = {value:g}: a positive number")
    if measure == "throughput":
        outputs = (1 + LEAST_LENGTH) / 2 * row.osl
        stay_s = (row.ttft_ms + (outputs - 1) * row.tpot_ms) / 1e3
        return stay_s * row.gpus / (row.concurrency * outputs)
    return (row.ttft_ms if measure == "ttft" else row.tpot_ms) / 1e3


@lru_cache(maxsize=512)
def forecast(row: ServingRow, network: str) -> RunForecast:
    """Run a row's requests.

    Raises
    ------
    MoecastError
        The question has no answer.
    """
    rounds = ROUNDS if row.concurrency <= MANY_USERS else FEW_ROUNDS
    mean_s, tpot_s = means_of(run_of(row, network, rounds=rounds), rounds)
    outputs = (1 + LEAST_LENGTH) / 2 * row.osl
    stay_s = mean_s + (outputs - 1) * tpot_s
    return RunForecast(
        ttft_ms=mean_s * 1e3, tpot_ms=tpot_s * 1e3, gpu_s_per_token=stay_s * row.gpus / (row.concurrency * outputs)
    )


def means_of(served: Served, rounds: int) -> tuple[float, float]:
    """Mean TTFT and time per token of a run of `ROUNDS` rounds, of which so many were run.

    Rounds are requests in the order in which they came. The first one, all at once, and the last
    one are as they are; each of the others counts as often as the whole run has it.
    """
    each = served.requests // rounds
    weight_Q = np.full(served.requests, (ROUNDS - 2) / (rounds - 2))
    weight_Q[:each] = weight_Q[-each:] = 1.0
    ttft_Q, tpot_Q = served.measures.ttft_Q, served.measures.tpot_Q
    return float(np.average(ttft_Q, weights=weight_Q)), float(np.average(tpot_Q, weights=weight_Q))


def run_of(row: ServingRow, network: str, *, rounds: int = ROUNDS) -> Served:
    """Run a row's requests through its engine, so many for each that is in flight."""
    users = max(1, round(row.concurrency))
    lengths = Lengths(prompt=row.isl, output=row.osl, least_part=LEAST_LENGTH)
    arrivals = parse_arrivals(f"closed:{users}")
    requests = make_requests(arrivals, lengths, rounds * users, seed=SEED)
    how = settings_of(row)
    question = question_of(row, network, how=how)
    cost = _cost_of(_alike(row.worker), network, kv_type=how.kv_type)
    serving = Serving(tries=0, max_batched_tokens=how.batched_tokens, receive_every=how.receive_every)
    if row.prefill is None:
        return serve(question, requests, arrivals=arrivals, serving=serving, cost=cost)
    serving = replace(serving, max_sequences=seats_of(row), dp_dispatch=dealt_by(row))
    return serve(
        question,
        requests,
        arrivals=arrivals,
        serving=serving,
        cost=cost,
        instances=row.workers,
        prefill=prefill_of(row, network),
    )


def prefill_of(row: ServingRow, network: str) -> PrefillPool:
    """Workers of a row that compute prompts, on the GPUs after those that answer."""
    assert row.prefill is not None
    worker = prefill_worker(row)
    how = RunSettings(kv_type=worker.shape().kv_type, batched_tokens=prompt_tokens_of(worker))
    plan = question_of(worker, network, how=how, prompts=True).plan
    first = row.workers * row.ranks
    serving = Serving(tries=0, max_batched_tokens=how.batched_tokens, dp_dispatch=dealt_by(row))
    return PrefillPool(
        plan=plan.with_(gpu_of_rank=tuple(range(first, first + plan.ranks))),
        instances=row.prefill.workers,
        serving=serving,
        cost=_cost_of(_alike(worker), network, kv_type=how.kv_type, prompts=True),
    )


def prefill_worker(row: ServingRow) -> ServingRow:
    """One worker of a row that computes prompts, as a row of its own."""
    pool = row.prefill
    assert pool is not None
    return replace(row, tp=pool.tp, dp=pool.dp, ep=pool.ep, etp=pool.etp, workers=1, prefill=None)


def _alike(row: ServingRow) -> ServingRow:
    """Rows that differ in lengths and concurrency alone have iterations of one engine: built once."""
    return replace(row, id="", isl=1024, osl=1024, batch=1, stated=1, concurrency=1, ttft_ms=1, tpot_ms=1, use="check")


def question_of(row: ServingRow, network: str, *, how: RunSettings, prompts: bool = False) -> Question:
    """Ask about a row's workers; `prompts`: which compute these only."""
    model = row.shape().with_types(kv_type=how.kv_type)
    work = Workload(phase="decode", tokens_per_rank=1)
    plan = row.plan(model)
    if prompts and plan.dispatch == "per_choice":
        # DeepEP's low-latency kernels keep a buffer for every choice: workers that prefill run its
        # others
        plan = plan.with_(dispatch="per_domain")
    return Question(
        cluster=row.cluster(),
        model=model,
        plan=plan,
        trace=one_text_routing(model, TRACE_TOKENS),
        workload=work,
        network=network,
        gains=False,
        memory_fraction=how.memory_fraction,
    )


@lru_cache(maxsize=64)
def _cost_of(row: ServingRow, network: str, *, kv_type: str, prompts: bool = False) -> StepCost:
    nobody, asked = np.full(1, -1), question_of(row, network, how=RunSettings(kv_type=kv_type), prompts=prompts)
    # where memory leaves no cache is asked with each row's own limits
    serving = Serving(tries=0, kv_blocks=1)
    return workers_of(asked, serving, Records(1), topic_Q=nobody, tokens=2048, prompts_only=prompts).cost
