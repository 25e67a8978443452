"""What statistics and synthesis take from callers is checked before it is counted or recombined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import (
    LoadTable,
    TokenSample,
    TraceCounter,
    TraceMeta,
    TraceModel,
    affinity,
    fit_trace,
    load_balance,
    locality,
    packed_ranks_LE,
    sample_of,
    transition_LEE,
)
from moecast.traces.checks import check_choices
from moecast.traces.statistics.parts import PartCounter
from moecast.traces.statistics.rows import RowScanner
from moecast.traces.statistics.sample import TokenSampler
from tests.hostile import bad_ids, bad_numbers
from tests.sim.plan_cases import small_trace

TRACE = small_trace(tokens=400)
ASKED = settings(max_examples=60, deadline=None)


@ASKED
@given(st.data())
def test_ranks_of_experts(data: st.DataObject) -> None:
    ranks_LE = data.draw(bad_ids(np.arange(48).reshape(3, 16) % 4))
    with pytest.raises((ValueError, TypeError), match="rank_of_expert_LE"):
        TraceCounter(TRACE.meta, rank_of_expert_LE=ranks_LE, n_ranks=4)


@pytest.mark.parametrize("n_ranks", [0, -1, 2**16, 2**40, 2.5, "4", True])
def test_numbers_of_ranks(n_ranks: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="n_ranks"):
        TraceCounter(TRACE.meta, rank_of_expert_LE=np.zeros((3, 16), np.int32), n_ranks=n_ranks)
    with pytest.raises((ValueError, TypeError), match="n_ranks"):
        packed_ranks_LE(np.ones((3, 16)), n_ranks)
    with pytest.raises((ValueError, TypeError), match="n_ranks"):
        load_balance(np.ones((3, 16), np.int64), np.zeros((3, 16), np.int32), n_ranks)


@ASKED
@given(st.data())
def test_packing(data: st.DataObject) -> None:
    with pytest.raises((ValueError, TypeError), match="load_LE"):
        packed_ranks_LE(data.draw(bad_numbers(np.ones((3, 16)), any_length=True)), 4)
    with pytest.raises((ValueError, TypeError), match="rank_LE"):
        load_balance(np.ones((3, 16), np.int64), data.draw(bad_ids(np.zeros((3, 16), np.int32))), 4)


@pytest.mark.parametrize("counter", [TraceCounter, PartCounter, RowScanner, TokenSampler])
@pytest.mark.parametrize("sizes", [{"layers": 5}, {"experts": 32}, {"choices": 3}])
def test_a_batch_of_another_shape_is_not_counted(counter: Any, sizes: dict[str, int]) -> None:
    counting = counter(TRACE.meta)
    counting.add(TRACE)
    with pytest.raises(ValueError, match="L, E, K"):
        counting.add(small_trace(tokens=40, **sizes))


@ASKED
@given(st.data(), st.sampled_from(["sequence_T", "position_T", "run_R1"]))
def test_samples(data: st.DataObject, name: str) -> None:
    good = sample_of(TRACE)
    bad = data.draw(bad_ids(getattr(good, name)))
    with pytest.raises((ValueError, TypeError), match=name):
        replace(good, **{name: bad})


def test_an_expert_chosen_twice_by_a_token_is_no_sample() -> None:
    """A window of m tokens has counters for at most m choices of an expert."""
    experts_TLK = TRACE.experts_TLK.copy()
    experts_TLK[7, 1] = 3
    with pytest.raises(ValueError, match="token 7, layer 1: expert 3 is chosen twice"):
        locality(replace(TRACE, experts_TLK=experts_TLK))


MODEL: TraceModel = fit_trace(TRACE)


@ASKED
@given(st.data())
def test_models(data: st.DataObject) -> None:
    with pytest.raises((ValueError, TypeError), match="neighbours_TR"):
        replace(MODEL, neighbours_TR=data.draw(bad_ids(MODEL.neighbours_TR, any_length=True)))
    for bad in (MODEL.sketch_TD[:-1], MODEL.sketch_TD[None], MODEL.sketch_TD.astype(np.float64)):
        with pytest.raises(ValueError, match="sketch_TD"):
            replace(MODEL, sketch_TD=bad)


@ASKED
@given(st.data(), st.sampled_from(["first_Q1", "sequence_T", "part_Q", "group_T"]))
def test_donors(data: st.DataObject, name: str) -> None:
    good = getattr(MODEL.donors, name)
    bad = data.draw(st.sampled_from([good - 10**8, good + 0.5, good[:-1], good[None], good.astype(str)]))
    with pytest.raises((ValueError, TypeError)):
        replace(MODEL.donors, **{name: bad})


@pytest.mark.parametrize(
    ("load_LE", "words"),
    [
        ([[2**53 - 1, 1]], r"fewer than 2\^53"),  # each one may be so large, not both
        ([[2**53, 0]], "load_LE"),
        ([[2**63, 2**63]], "load_LE"),
        ([[-1, 5]], "load_LE"),
        ([[0.5, 1.0]], "whole numbers"),
        ([[1, 2, 3]], "shape"),
        ([[float("nan"), 1.0]], "whole numbers"),
    ],
)
def test_load_tables(load_LE: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        LoadTable(load_LE=np.array(load_LE), meta=TraceMeta(model="m", layers=1, experts=2, choices=1))


@ASKED
@given(st.data(), st.sampled_from(list(TRACE.columns())))
def test_traces(data: st.DataObject, name: str) -> None:
    bad = data.draw(bad_ids(getattr(TRACE, name).astype(np.int64)))
    with pytest.raises((ValueError, TypeError), match=r"_TLK|_T"):
        replace(TRACE, **{name: bad})


def test_samples_of_good_traces_are_made() -> None:
    assert isinstance(sample_of(TRACE), TokenSample)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.float64, object])
def test_choices_of_another_type_are_not_looked_at(dtype: Any) -> None:
    """A negative id, which 16 bits without a sign cannot hold, would count from the table's end."""
    experts_TLK = np.full((1, 1, 1), -(10**8) if dtype is np.int64 else 1).astype(dtype)
    with pytest.raises(TypeError, match="uint16"):
        check_choices(experts_TLK, 16)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_cache_ratios(ratio: float) -> None:
    with pytest.raises(ValueError, match="cache_ratios"):
        locality(TRACE, cache_ratios=[1.0, ratio])


@pytest.mark.parametrize("choices", [0, 17, -1, 1.5])
def test_affinity_of_no_choices(choices: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="choices"):
        affinity(transition_LEE(TRACE), choices=choices)
    with pytest.raises(ValueError, match="transition_LEE"):
        affinity(transition_LEE(TRACE) - 1, choices=2)
