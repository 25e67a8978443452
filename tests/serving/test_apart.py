"""Prompts on GPUs of their own: what each pool does, what moves between them, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.serving import PrefillPool, Request, Serving, make_requests, parse_arrivals, serve
from moecast.sim.serving.arrivals import ClosedSource, OpenSource, Source
from moecast.sim.serving.batchers import find_batcher
from moecast.sim.serving.cost.step_cost import LinearCost
from moecast.sim.serving.dispatch import Dispatcher
from moecast.sim.serving.instance import Instance
from moecast.sim.serving.kv_moves import KvMoves
from moecast.sim.serving.loop import EventLoop, Pool
from moecast.sim.serving.made_requests import Lengths
from moecast.sim.serving.records import PoolTimes, Records
from moecast.topology import load_cluster
from tests.serving.runs import STEP, drawn, run
from tests.serving.test_serve import CLOSED, REQUESTS, question

CLUSTER = load_cluster("dgx-h200", nodes=2)
POLICIES = ("neutral", "vllm", "sglang", "trtllm", "static")
NOTHING = 1e-9
"""Bytes of a token that take no time."""


@dataclass(frozen=True, kw_only=True)
class Apart:
    records: Records
    prefill: PoolTimes
    decode: PoolTimes
    moves: KvMoves
    held_s: list[float]
    duration_s: float


def _pool(policy: str, gpus: int, records: Records, blocks: int, cost: LinearCost, seats: int | None) -> Pool:
    how, times = find_batcher(policy), PoolTimes()
    limits = how.limits(kv_blocks=blocks, block_tokens=16)
    limits = limits if seats is None else replace(limits, max_sequences=seats)
    instance = Instance(
        [how.start(limits) for _ in range(gpus)],
        cost,
        ahead=how.ahead,
        limits=limits,
        records=records,
        times=times,
    )
    return Pool(instances=(instance,), ranks=gpus, dispatcher=Dispatcher("round_robin", gpus), times=times)


def run_apart(
    requests: Sequence[Request],
    *,
    policy: str = "neutral",
    ratio: tuple[int, int] = (1, 1),
    token_bytes: float = NOTHING,
    blocks: int = 100_000,
    seats: int | None = None,
    concurrency: int | None = None,
    far: bool = False,
    cost: LinearCost = STEP,
) -> Apart:
    """Serve requests by so many GPUs that compute prompts and so many that answer, each a rank; `far`: over NICs."""
    records = Records(len(requests), ramp=concurrency or 0)
    first = _pool(policy, ratio[0], Records(len(requests)), 100_000, cost, None)
    second = _pool(policy, ratio[1], records, blocks, cost, seats)
    sources = [(gpu,) for gpu in range(ratio[0])]
    start = 8 if far else ratio[0]
    moves = KvMoves(
        CLUSTER, sources=sources, destinations=[(start + gpu,) for gpu in range(ratio[1])], token_bytes=token_bytes
    )
    source: Source = OpenSource(requests) if concurrency is None else ClosedSource(requests, concurrency)
    loop = EventLoop(source, [first, second], records, moves=moves)
    duration_s = loop.run()
    return Apart(
        records=records,
        prefill=first.times,
        decode=second.times,
        moves=moves,
        held_s=loop.held_s,
        duration_s=duration_s,
    )


def _one(prompt: int, output: int = 4) -> list[Request]:
    return [Request(id=0, arrival_s=0.0, prompt_tokens=prompt, output_tokens=output)]


def _latency_s(source: int, destination: int) -> float:
    return float(CLUSTER.routes([source], [destination]).latency_F[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_way_to_go_ttft_is_that_of_prefill_alone(policy):
    requests = drawn(3, 80)
    apart = run_apart(requests, policy=policy, ratio=(1, 4))
    alone = run([replace(request, output_tokens=1) for request in requests], policy=policy, block_tokens=16)
    ttft_Q = apart.records.first_Q - apart.records.arrival_Q
    wanted_Q = alone.records.first_Q - alone.records.arrival_Q
    away_Q = np.array([request.output_tokens > 1 for request in requests])
    longest_s = max(_latency_s(0, 1 + gpu) for gpu in range(4)) + 2e-9
    np.testing.assert_array_equal(ttft_Q[~away_Q], wanted_Q[~away_Q])
    assert (ttft_Q >= wanted_Q - 1e-12).all()
    assert (ttft_Q - wanted_Q).max() <= longest_s


@pytest.mark.parametrize(("far", "destination"), [(False, 1), (True, 8)])
def test_one_request_takes_its_bytes_over_the_slowest_link(far, destination):
    apart = run_apart(_one(1000), token_bytes=1e6, far=far)
    routes = CLUSTER.routes([0], [destination])
    slowest_Bps = float((CLUSTER.capacity_J[routes.link_X] / routes.share_X).min())
    wanted_s = 1000 * 1e6 / slowest_Bps + _latency_s(0, destination)
    assert apart.moves.times_s == [pytest.approx(wanted_s, rel=1e-6)]
    prompt_s = STEP.fixed_s + 1000 * STEP.prompt_token_s
    assert apart.records.first_Q[0] == pytest.approx(prompt_s + wanted_s, rel=1e-6)


def test_moves_share_what_they_have_in_common():
    requests = [Request(id=at, arrival_s=0.0, prompt_tokens=500, output_tokens=2) for at in range(3)]
    moves = KvMoves(CLUSTER, sources=[(0,), (1,)], destinations=[(8,), (9,)], token_bytes=1e6)
    alone_s = 500 * 1e6 / float(CLUSTER.capacity_J[CLUSTER.routes([0], [8]).link_X].min())
    moves.start(requests[0], 0, 0, 0.0)
    moves.start(requests[1], 0, 1, 0.0)
    moves.start(requests[2], 1, 1, 0.0)
    found = {}
    while (now_s := moves.next_s()) != np.inf:
        found.update({request.id: now_s for request, _ in moves.take(now_s)})
    # the first two leave by one NIC, the last two come by one: all have half of it until all are there
    assert found == {at: pytest.approx(2 * alone_s, rel=1e-3) for at in range(3)}


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(8, 40), closed=st.booleans())
def test_tokens_are_conserved_and_littles_law_holds(policy, seed, blocks, closed):
    requests = drawn(seed, 40)
    apart = run_apart(
        requests, policy=policy, ratio=(2, 2), token_bytes=1e6, blocks=blocks, concurrency=7 if closed else None
    )
    records = apart.records
    assert apart.prefill.prompt_tokens == sum(request.prompt_tokens for request in requests)
    assert apart.prefill.output_tokens == len(requests)
    again = apart.decode.prompt_tokens  # of whom lost their blocks
    assert again == 0 or apart.decode.preemptions
    assert apart.decode.output_tokens == sum(request.output_tokens - 1 for request in requests)
    stay_s = (records.end_Q - records.arrival_Q).sum()
    assert records.in_system_s == pytest.approx(stay_s, rel=1e-9)
    assert apart.decode.kv_peak <= blocks
    moved = sum(request.output_tokens > 1 for request in requests)
    assert len(apart.moves.times_s) == len(apart.held_s) == moved
    assert (records.first_Q <= records.end_Q).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_cache_holds_moves_back_and_one_with_room_does_not(policy):
    requests = [Request(id=at, arrival_s=0.0, prompt_tokens=64, output_tokens=40) for at in range(12)]
    full = run_apart(requests, policy=policy, blocks=14)
    free = run_apart(requests, policy=policy)
    assert max(free.held_s) == 0.0
    assert max(full.held_s) > 0.1
    assert full.decode.refused_for_blocks > 0
    assert full.decode.refused_for_seats == 0
    assert full.records.first_Q.max() > free.records.first_Q.max()
    assert full.decode.preemptions == 0 or policy in ("neutral", "vllm")


def test_seats_hold_moves_back_too():
    requests = [Request(id=at, arrival_s=0.0, prompt_tokens=64, output_tokens=40) for at in range(6)]
    apart = run_apart(requests, seats=2)
    assert apart.decode.refused_for_seats > 0
    assert max(apart.held_s) > 0.3


def test_who_comes_alone_waits_for_nobody():
    assert run_apart(_one(100)).held_s == [0.0]


def _apart(**changes: object) -> PrefillPool:
    plan = question(ep=4).plan
    return PrefillPool(plan=plan.with_(gpu_of_rank=(4, 5, 6, 7)), **changes)  # type: ignore[arg-type]


def test_serve_shows_both_pools():
    served = serve(question(ep=4), REQUESTS, arrivals=CLOSED, prefill=_apart())
    assert [(pool.name, pool.gpus, pool.ranks) for pool in served.pools] == [("prefill", 4, 4), ("decode", 4, 4)]
    assert served.gpus == 8
    assert served.moved is not None
    assert served.moved.requests == len(REQUESTS)
    value = served.to_json()["moecast"]
    assert value["moved"]["bytes"] > 0
    assert [pool["name"] for pool in value["pools"]] == ["prefill", "decode"]
    assert {"prefill pool", "decode pool", "keys moved"} < {name for name, _ in served.table_rows()}


def test_prefill_limits_where_prompts_are_long_and_answers_short():
    requests = make_requests(CLOSED, Lengths(prompt=4000, output=2), 48)
    assert serve(question(ep=4), requests, arrivals=CLOSED, prefill=_apart()).limited_by == "prefill"
    assert serve(question(ep=4), REQUESTS, arrivals=CLOSED, prefill=_apart()).limited_by == "decode"


def test_copies_stand_on_the_next_gpus():
    plan = question(ep=2).plan
    prefill = PrefillPool(plan=plan.with_(gpu_of_rank=(4, 5)), instances=2)
    served = serve(question(ep=2), REQUESTS, arrivals=CLOSED, prefill=prefill, instances=2)
    assert (served.gpus, served.instances) == (8, 4)
    many = replace(prefill, instances=3)
    with pytest.raises(MoecastError, match="6 GPUs for prompts and 4 for answers: the cluster has 8"):
        serve(question(ep=2), REQUESTS, arrivals=CLOSED, prefill=many, instances=2)
    with pytest.raises(MoecastError, match="prefill GPU = 4: prompts are computed on GPUs that answer, too"):
        serve(question(ep=2), REQUESTS, arrivals=CLOSED, prefill=prefill, instances=3)
    with pytest.raises(MoecastError, match="instances = 0: at least 1"):
        replace(prefill, instances=0)


def test_a_rate_that_one_pool_cannot_serve_is_refused():
    fast = parse_arrivals("poisson:20000000/s")
    requests = make_requests(fast, Lengths(prompt=400, output=1), 50)
    with pytest.raises(MoecastError, match="never drains"):
        serve(question(ep=4), requests, arrivals=fast, prefill=_apart())
    overload = Serving(overload=True)
    assert serve(question(ep=4), requests, arrivals=fast, prefill=_apart(), serving=overload).requests == 50
