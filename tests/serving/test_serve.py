"""`serve` on a small model: the surrogate beside the exact cost, tables of a rank's own work, bad input, goodput."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.sim import Plan, Question, Workload, kernels_on
from moecast.sim.engines import find_engine
from moecast.sim.serving import Lengths, Request, Serving, make_requests, parse_arrivals, parse_slo, serve, write_served
from moecast.sim.serving.batchers import Scheduled
from moecast.sim.serving.cost.step_load import StepLoad, numbers_of
from moecast.sim.serving.records import Records
from moecast.sim.serving.workers import plans_of_instances, workers_of
from moecast.topology import load_cluster
from tests.sim.plan_cases import small_trace, tiny_model

TRACE = small_trace(tokens=400)
MODEL = tiny_model(TRACE)
CLOSED = parse_arrivals("closed:12")
REQUESTS = make_requests(CLOSED, Lengths(prompt=60, output=20, least_part=0.5), 48, seed=2)


def question(*, ep: int = 8, groups: int = 1, **changes: object) -> Question:
    plan = Plan.contiguous(
        layers=TRACE.meta.layers, experts=TRACE.meta.experts, choices=TRACE.meta.choices, ep=ep, groups=groups
    )
    plan = plan.with_(gpu_of_rank=tuple(range(ep * groups)), **changes)
    return Question(
        cluster=load_cluster("dgx-h200"),
        model=MODEL,
        plan=plan,
        trace=TRACE,
        workload=Workload(phase="decode", tokens_per_rank=1),
        network="bound",
        gains=False,
    )


@pytest.mark.parametrize("engine", ["neutral", "vllm", "sglang", "trtllm", "static"])
def test_surrogate_is_near_the_exact_cost(engine):
    served = {
        cost: serve(question(), REQUESTS, arrivals=CLOSED, serving=Serving(batcher=engine, cost=cost))
        for cost in ("surrogate", "exact")
    }
    error = served["surrogate"].error
    assert error is not None
    assert error.median < 0.02
    for name in ("ttft", "tpot", "e2e"):
        near, exact = (served[cost].latency[name].mean_s for cost in ("surrogate", "exact"))
        assert near == pytest.approx(exact, rel=0.02), name


@pytest.mark.parametrize("changes", [{"tp": 4}, {"tp": 4, "sequence_parallel": False}, {"dispatch": "all_gather"}])
def test_layouts_have_surrogates_too(changes):
    error = serve(question(**changes), REQUESTS, arrivals=CLOSED).error
    assert error is not None
    assert error.median < 0.02


@pytest.mark.parametrize("cost", ["surrogate", "exact"])
def test_sglangs_workers_for_prompts_take_as_much_longer_as_the_engine_says(cost):
    asked = replace(question(), cluster=kernels_on(load_cluster("dgx-h200"), engine="sglang"))
    nobody, how = np.full(1, -1), Serving(cost=cost, kv_blocks=100, tries=0)
    one = np.ones(1, bool)
    prompt = Scheduled(request=~one * 0, tokens=one * 60, context=~one * 0, finishes_prompt=one, samples=one)
    batch = StepLoad.of(np.array([numbers_of(prompt)] * 8).T, scheduled_G=(prompt,) * 8)
    usual_s, apart_s = (
        workers_of(asked, how, Records(1), topic_Q=nobody, tokens=80, prompts_only=only).cost.seconds(batch)
        for only in (False, True)
    )
    assert apart_s == pytest.approx(usual_s + find_engine("sglang").prompts_apart_s)


def test_groups_of_experts_are_instances():
    served = serve(question(ep=4, groups=2), REQUESTS, arrivals=CLOSED)
    assert (served.instances, served.ranks, served.gpus) == (2, 4, 8)
    plan, count = plans_of_instances(question(ep=4, groups=2).plan)
    assert (plan.ranks, count) == (4, 2)


def test_same_seed_same_bytes(tmp_path):
    for name in ("a.json", "b.json"):
        write_served(serve(question(), REQUESTS, arrivals=CLOSED), tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    value = json.loads((tmp_path / "a.json").read_text())
    assert {"mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "output_throughput", "completed"} < set(value)
    assert value["moecast"]["concurrency"] <= 12


def test_an_answer_of_one_token_has_no_time_per_token():
    """As `vllm bench serve` counts: it is in the mean of no time per token, and keeps every promise about one."""
    slo = parse_slo("tpot=10s")
    both, alone, ones = (
        serve(
            question(),
            [Request(id=i, prompt_tokens=40, output_tokens=n, arrival_s=0.0) for i, n in enumerate(tokens)],
            slo=slo,
        )
        for tokens in ((1, 10) * 4, (10,) * 4, (1,) * 4)
    )
    assert both.latency["tpot"].mean_s == pytest.approx(alone.latency["tpot"].mean_s, rel=0.2)
    assert both.shortfalls["tpot"] > 0
    assert (ones.kept, ones.shortfalls, ones.latency["tpot"].mean_s) == (1.0, {}, 0.0)


def test_goodput_and_a_promise_that_nothing_keeps():
    kept = serve(question(), REQUESTS, arrivals=CLOSED, slo=parse_slo("ttft=100s,tpot=10s"))
    assert kept.kept == 1.0
    assert kept.goodput_per_s == kept.requests_per_s
    missed = serve(question(), REQUESTS, arrivals=CLOSED, slo=parse_slo("ttft=100s,tpot=1ns"))
    assert missed.goodput_per_s == 0.0
    assert missed.shortfalls["tpot"] > 1
    assert any("no request keeps the SLO" in note and "times what is promised" in note for note in missed.notes)


@pytest.mark.parametrize("engine", ["neutral", "vllm", "sglang", "trtllm", "static"])
def test_a_cache_that_holds_no_request_is_refused(engine):
    with pytest.raises(MoecastError, match=r"kv_blocks = 2: the KV cache of a rank holds 32 tokens, request 0 alone"):
        serve(question(), REQUESTS, arrivals=CLOSED, serving=Serving(batcher=engine, kv_blocks=2, block_tokens=16))


def test_a_rate_that_never_drains_is_refused_before_it_is_run():
    fast = parse_arrivals("poisson:1000000/s")
    requests = make_requests(fast, Lengths(prompt=60, output=20), 50)
    with pytest.raises(MoecastError, match=r"poisson:1e\+06/s': never drains: at most .* requests/s"):
        serve(question(), requests, arrivals=fast)
    assert serve(question(), requests, arrivals=fast, serving=Serving(overload=True)).requests == 50


@pytest.mark.parametrize(
    ("change", "rule"),
    [({"cost": "guess"}, "cost"), ({"dp_dispatch": "best"}, "dp_dispatch"), ({"draws": 0}, "draws"),
     ({"think_s": -1.0}, "think_s")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(change, rule):
    with pytest.raises(MoecastError, match=rule):
        Serving(**change)


@pytest.mark.parametrize("text", ["closed", "closed:0", "poisson:0/s", "poisson:4/d", "gamma:4/s,0", "often:3"])
def test_arrivals_that_are_none(text):
    with pytest.raises(MoecastError, match="requests"):
        parse_arrivals(text)


def test_gamma_arrivals_have_their_rate_and_spread():
    times_s = parse_arrivals("gamma:4/s,2").times_s(40_000, np.random.default_rng(0))
    gaps_s = np.diff(times_s)
    assert gaps_s.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(2.0, rel=0.03)


def test_requests_are_numbered_in_order():
    with pytest.raises(MoecastError, match="request 0 has another"):
        serve(question(), [Request(id=3, arrival_s=0.0, prompt_tokens=1, output_tokens=1)])
