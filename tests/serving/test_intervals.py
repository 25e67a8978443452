"""The 80 % intervals of a run: which numbers have one, by whose errors, and what they say of promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.report.serve_page import render
from moecast.sim.accuracy import SERVED, Interval, served_text
from moecast.sim.accuracy.grounds import NO_ROWS, Grounds, check_rests_on
from moecast.sim.serving import Lengths, Served, Serving, Sharing, make_requests, parse_arrivals, parse_slo, serve
from moecast.sim.serving.intervals import goodput_interval, intervals_of
from moecast.sim.serving.latency import Latency
from tests.serving.test_serve import question

RATES = {
    "output_tokens_per_s": 100.0,
    "input_tokens_per_s": 10.0,
    "requests_per_s": 2.0,
    "output_tokens_per_s_per_gpu": 50.0,
    "output_tokens_per_dollar": None,
}


def grounds(low: float, high: float) -> Grounds:
    interval = Interval(low=low, high=high, rows=())
    return Grounds(family="f", why_not="", source="s", own_rows=0, interval=interval, about={})


def served(arrivals: str = "closed:4", *, groups: int = 0, **changes: object) -> Served:
    law, sharing = parse_arrivals(arrivals), Sharing(groups=groups, tokens=16 * bool(groups))
    requests = make_requests(law, Lengths(prompt=60, output=8), 12, sharing=sharing, seed=1)
    serving, slo = Serving(tries=0, overload=True, **changes), parse_slo("ttft=1s,tpot=1s")
    return serve(question(), requests, arrivals=law, slo=slo, serving=serving)


def test_every_mean_and_rate_of_a_closed_loop_has_an_interval() -> None:
    run = served()
    assert set(run.intervals) == {
        *(f"{name}_mean_s" for name in ("ttft", "tpot", "itl", "e2e")),
        *(name for name, value in RATES.items() if value is not None),
        "kept",
        "goodput_per_s",
    }
    for measure, found in run.rests_on.items():
        check_rests_on(found)
        assert found["errors"] == SERVED[measure]
        assert found["source"] == "neutral on h200_sxm"
    for name, (low, high) in run.intervals.items():
        assert low < high or name == "kept", name
    assert served_text(run.rests_on) in run.table_notes()
    assert "(80 %: " in dict(run.table_rows())["time to first token (TTFT)"]
    assert "80 %: " in render(run)
    assert run.to_json()["moecast"]["intervals"]["tpot_mean_s"] == list(run.intervals["tpot_mean_s"])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"arrivals": "poisson:5/s"}, "arrivals poisson: the rows are closed loops"),
        ({"batcher": "static"}, "batcher static on the kernels of neutral"),
        ({"groups": 2}, "prefixes in common"),
    ],
)
def test_what_no_public_run_did_has_none_and_says_so(changed: dict[str, object], why: str) -> None:
    run = served(**changed)  # type: ignore[arg-type]
    assert not run.intervals
    assert f"no interval: {NO_ROWS}: {why}" in run.table_notes()


def test_times_are_multiplied_and_rates_divided() -> None:
    latency = dict.fromkeys(
        ("ttft", "tpot", "itl", "e2e"), Latency(mean_s=1.0, p50_s=1.0, p90_s=1.0, p99_s=1.0, std_s=0.0)
    )
    found = intervals_of(
        {"ttft": grounds(0.5, 2), "tpot": grounds(0.9, 1.1), "throughput": grounds(0.8, 1.25)}, latency, RATES
    )
    assert found["ttft_mean_s"] == (0.5, 2)
    assert found["tpot_mean_s"] == found["itl_mean_s"] == (0.9, 1.1)
    assert found["e2e_mean_s"] == (0.8, 1.25)
    assert found["requests_per_s"] == pytest.approx((1.6, 2.5))
    assert "output_tokens_per_dollar" not in found


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=20),
    st.floats(0.1, 1),
    st.floats(1, 5),
    st.floats(0.01, 10),
)
def test_goodput_lies_between_its_ends(seconds: list[float], low: float, high: float, promised: float) -> None:
    """With an interval about 1, the forecast's own goodput is inside, and without width it is both ends."""
    slo, seconds_Q = parse_slo(f"ttft={promised}s"), np.array(seconds)
    measured = dict.fromkeys(("ttft", "tpot", "e2e"), seconds_Q)
    kept = float(slo.kept_Q(measured).mean())
    of = {measure: grounds(low, high) for measure in SERVED}
    found = goodput_interval(of, slo, measured, 3.0)
    assert found["kept"][0] <= kept <= found["kept"][1]
    assert found["goodput_per_s"][0] <= 3 * kept * (1 + 1e-12)
    assert found["goodput_per_s"][1] >= 3 * kept * (1 - 1e-12)
    sure = goodput_interval(dict.fromkeys(SERVED, grounds(1, 1)), slo, measured, 3.0)
    assert sure["kept"] == (kept, kept)
    assert goodput_interval(of, None, measured, 3.0) == {}
