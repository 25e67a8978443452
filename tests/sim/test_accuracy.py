"""Known errors, the intervals that they give, and differences of plans."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Plan, Prediction, Workload, kernels_on, load_model, simulate
from moecast.sim.accuracy import (
    JudgedRow,
    KnownErrors,
    difference_of,
    error_interval,
    interval_of,
    known_errors,
)
from moecast.sim.accuracy.grounds import NO_ROWS, check_rests_on, grounds_text
from moecast.sim.accuracy.known_errors import PROMPTS
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import load_cluster


def judged(error: float, *, configuration: str, source: str = "s") -> JudgedRow:
    return JudgedRow(
        id=configuration,
        family="f",
        source=source,
        configuration=configuration,
        setting="",
        predicted_s=1.0,
        error=error,
    )


def asked(*, preset: str = "dgx-h200", name: str | None = None, kernels: str = "fitted", **work: object) -> Prediction:
    cluster, model = load_cluster(preset), load_model("deepseek-v2-lite")
    cluster = kernels_on(cluster, kernels=kernels, engine="trtllm")
    if name is not None:
        cluster = cluster.with_hardware(replace(cluster.hardware, name=name))
    plan = Plan.contiguous(model, ep=8)
    workload = Workload(**{"phase": "decode", "tokens_per_rank": 4, "steps": 1, "context": 64, "reuse": True} | work)
    trace = routing_by_law(
        parse_law("uniform"), model, tokens=256, sequence=16, phase=workload.phase, position=0, seed=0
    )
    return simulate(cluster, model, plan, trace, workload, network="bound", gains=False)


def test_known_errors_are_read_as_they_were_written() -> None:
    known = known_errors()
    again = KnownErrors.from_json(known.to_json())
    assert again == known
    assert sum(family.rows for family in known.families) == len(known.rows)
    for family in known.families:
        rows = known.of(family.name)
        error_R = np.exp([-row.error for row in rows]) - 1
        assert family.rows == len(rows) <= family.answered
        if rows:
            assert family.median == pytest.approx(np.median(np.abs(error_R)), abs=3e-4)


def test_something_else_is_no_known_errors() -> None:
    with pytest.raises(MoecastError, match="known errors of schema 1"):
        KnownErrors.from_json({"schema": 2})


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 40), st.integers(1, 4), st.integers(0, 1000))
def test_interval_covers_a_new_configuration(configurations: int, rows: int, seed: int) -> None:
    """Between its ends lie about 80 % of exchangeable draws, and never fewer than 70 % of its own rows."""
    random = np.random.default_rng(seed)
    error_R = random.normal(size=configurations * rows)
    low, high = error_interval(error_R, [str(at // rows) for at in range(error_R.size)]) or (0.0, 0.0)
    assert error_R.min() <= low < high <= error_R.max()
    assert np.mean((error_R >= low) & (error_R <= high)) >= 0.7
    shifted = error_interval(error_R + 2, [str(at // rows) for at in range(error_R.size)])
    assert shifted == pytest.approx((low + 2, high + 2))


def test_coverage_of_many_draws_is_eighty_percent() -> None:
    random = np.random.default_rng(1)
    inside = []
    for _ in range(2000):
        *seen, new = random.normal(size=21)
        low, high = error_interval(seen, list(map(str, range(20)))) or (0.0, 0.0)
        inside.append(low <= new <= high)
    assert 0.78 < np.mean(inside) < 0.84


def test_a_source_stands_alone_from_fifteen_configurations_on() -> None:
    rows = [judged(0.1, configuration=f"a{at}", source="a") for at in range(15)]
    rows += [judged(-0.5, configuration=f"b{at}", source="b") for at in range(14)]
    own = interval_of(rows, source="a")
    assert own is not None
    assert (own.source, own.low) == ("a", pytest.approx(math.exp(0.1)))
    pooled = interval_of(rows, source="b")
    assert pooled is not None
    assert (pooled.source, pooled.low, len(pooled.rows)) == ("", pytest.approx(math.exp(-0.5)), 29)
    assert interval_of(rows[:15], source="a", without="a3") is not None
    assert interval_of(rows[:7]) is None


def test_a_decode_step_has_an_interval_and_says_what_it_rests_on() -> None:
    found = asked()
    assert found.step_time_s is not None
    assert found.interval_s is not None
    low_s, high_s = found.interval_s
    assert low_s < found.step_time_s * 1.1
    assert high_s > found.step_time_s
    assert found.rests_on["errors"] == "decode steps"
    assert "trtllm" in grounds_text(found.rests_on)
    assert ("80 % interval", f"{low_s * 1e3:.3g}"[:3]) <= ("80 % interval", dict(found.table_rows())["80 % interval"])
    assert grounds_text(found.rests_on) in str(found)
    assert grounds_text(found.rests_on)[:10] in found._repr_html_()


def test_a_prefill_step_rests_on_prompts_of_public_runs() -> None:
    found = asked(phase="prefill", tokens_per_rank=16, context=None)
    assert found.interval_s is not None
    assert found.rests_on["errors"] == PROMPTS
    assert found.rests_on["rows"] > found.rests_on["configurations"] - 1 > 7
    assert PROMPTS in grounds_text(found.rests_on)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"name": "T9000"}, "GPU T9000"),
        ({"kernels": "roofline"}, "kernels by roofline"),
        ({"speculate": 1, "acceptance": 0.5}, "speculative decoding"),
    ],
)
def test_what_nobody_measured_has_no_interval(changed: dict[str, object], why: str) -> None:
    found = asked(**changed)  # type: ignore[arg-type]
    assert found.interval_s is None
    assert why in found.rests_on["why_not"]
    assert grounds_text(found.rests_on).startswith(NO_ROWS)


def test_wrong_grounds_are_named() -> None:
    good = asked().rests_on
    check_rests_on(good)
    check_rests_on({})
    with pytest.raises(ValueError, match="rests_on: has exactly the parts"):
        check_rests_on({"errors": "x"})
    with pytest.raises(ValueError, match=r"rests_on.rows = 'many'"):
        check_rests_on({**good, "rows": "many"})


def plan_like(time_s: float, **changed: object) -> SimpleNamespace:
    plan = {"ranks": 8, "ep": 8, "tp": 1} | changed
    return SimpleNamespace(compared_s=time_s, interval_s=(1.0, 2.0), rests_on={"errors": "decode steps"}, plan=plan)


@pytest.mark.parametrize("changed", [{}, {"tp": 8}])
def test_a_gain_inside_its_interval_is_no_difference(changed: dict[str, object]) -> None:
    pairs = known_errors().pairs["layout" if changed else "batch"]
    base = plan_like(1.0)
    near = difference_of(plan_like(math.exp(-0.5 * pairs.floor), **changed), base)  # type: ignore[arg-type]
    assert near.shown is False
    assert near.text == "no difference shown"
    assert "placement alone" in near.why or "layout" in near.why
    far = difference_of(plan_like(math.exp(-5 * pairs.floor - 1e-9), **changed), base)  # type: ignore[arg-type]
    assert far.shown is True
    assert far.ratio == pytest.approx(math.exp(5 * pairs.floor))


def test_a_difference_without_pairs_says_so() -> None:
    prefill = plan_like(1.0)
    prefill.interval_s = None
    found = difference_of(prefill, prefill)  # type: ignore[arg-type]
    assert found.shown is None
    assert found.why.startswith(NO_ROWS)
