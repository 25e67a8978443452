"""The best layouts by requests: what is asked is what is served, and what cannot be served says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moecast.placement.layouts import FoundServing, Slo, Space, find_serving
from moecast.placement.layouts.by_requests import LAYOUTS, by_requests, requests_rows
from moecast.sim.serving import parse_arrivals
from tests.layouts.test_serving import MODEL, QUESTIONS

SLO = Slo(ttft_s=5, tpot_s=0.02)


@pytest.fixture(scope="module")
def found() -> FoundServing:
    space = Space(model=MODEL, gpus=2, batches=(4, 8), most_pp=1, most_cp=1, schedules=("sequential",))
    return find_serving(QUESTIONS[0], 2, SLO, space=space, scored=12, placed=4, network="bound")


def test_requests_see_no_more_than_full_batches_promise(found: FoundServing) -> None:
    runs = by_requests(QUESTIONS[0], found, parse_arrivals("closed:8"))
    assert 0 < len(runs) <= LAYOUTS
    assert all(run.served is not None for run in runs)
    for run in runs:
        assert run.served is not None
        assert run.served.requests == 32
        assert run.served.latency["ttft"].mean_s > 0
        assert run.served.gpus <= 2
    order = [(not run.meets(SLO), -run.served.output_tokens_per_s_per_gpu) for run in runs if run.served]
    assert order == sorted(order)
    assert len(requests_rows([run.to_json(SLO) for run in runs])) == len(runs)


def test_what_cannot_be_served_says_why(found: FoundServing) -> None:
    one = found.winner
    staged = replace(one.decode, tp=1, cp=1, dp=1, pp=2, etp=1, dispatch=None, sequence_parallel=True)
    other = replace(one, decode=staged, prefill=staged, decode_instances=1, prefill_instances=0)
    runs = by_requests(QUESTIONS[0], replace(found, placed=(other,)), parse_arrivals("closed:2"))
    assert [run.served for run in runs] == [None]
    assert "one pipeline stage" in runs[0].why_not
    assert not runs[0].meets(SLO)
