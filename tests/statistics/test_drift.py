"""Windows, topics, positions, plans packed on a part, and how many tokens make a stable plan."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import NO_CHOICE, load_balance, packed_ranks_LE, profile_trace, sample_of, stability
from moecast.traces.statistics.drift import drift
from moecast.traces.statistics.parts import PartCounter
from tests.statistics.made import batches, by_id, trace_of, uniform
from tests.strategies import traces

PROPERTY = settings(deadline=None, max_examples=30)


def counted(trace, step=None):
    counter = PartCounter(trace.meta)
    for batch in [trace] if step is None else batches(trace, step):
        counter.add(batch)
    return counter


def loads(trace, tokens):
    """[L][E] by hand."""
    table = np.zeros((trace.meta.layers, trace.meta.experts), int)
    for token, layer in itertools.product(tokens, range(trace.meta.layers)):
        for expert in trace.experts_TLK[token, layer]:
            if expert != NO_CHOICE:
                table[layer, expert] += 1
    return table


@PROPERTY
@given(traces(tokens=(1, 60)), st.integers(1, 60))
def test_load_by_part_is_counted_for_any_batches(trace, step):
    parts, positions = counted(trace, step).parts(), counted(trace, step).positions()
    assert parts.window_tokens == 256
    np.testing.assert_array_equal(parts.load_WLE, [loads(trace, range(trace.n_tokens))])
    for name, load_LE, tokens in zip(parts.topics, parts.load_CLE, parts.tokens_C, strict=True):
        members = np.flatnonzero(trace.topic_T == trace.topics.index(name))
        assert tokens == len(members)
        np.testing.assert_array_equal(load_LE, loads(trace, members))
    assert set(parts.topics) == {trace.topics[i] for i in set(trace.topic_T.tolist()) - {-1}}
    for first, last, tokens, empty_L in zip(
        positions.first_P, positions.last_P, positions.tokens_P, positions.empty_PL, strict=True
    ):
        members = (trace.position_T >= first) & (trace.position_T <= last)
        assert tokens == members.sum()
        empty = (trace.experts_TLK[members] == NO_CHOICE).mean(axis=(0, 2)) if members.any() else math.nan
        np.testing.assert_allclose(empty_L, empty)


def test_windows_join_as_a_trace_grows(monkeypatch):
    trace = trace_of(uniform(5000, 2, 8, 2), experts=8)
    monkeypatch.setattr("moecast.traces.statistics.parts.MOST_WINDOWS", 4)
    monkeypatch.setattr("moecast.traces.statistics.parts._BLOCK_TOKENS", 300)
    for step in (5000, 700, 256):
        parts = counted(trace, step).parts()
        assert parts.window_tokens == 2048
        assert parts.tokens_W.tolist() == [2048, 2048, 904]
        for window, load_LE in enumerate(parts.load_WLE):
            np.testing.assert_array_equal(load_LE, loads(trace, range(5000)[window * 2048 : window * 2048 + 2048]))


def test_more_topics_than_are_kept_are_counted_as_left_out(monkeypatch):
    monkeypatch.setattr("moecast.traces.statistics.parts.MOST_TOPICS", 2)
    trace = trace_of(uniform(9, 1, 4, 1), experts=4, lengths=[3, 3, 3], topics=("a", "b", "c"), topic_Q=[2, 0, 1])
    parts = counted(trace).parts()
    assert parts.topics == ("c", "a")
    assert parts.topics_left_out == 1
    np.testing.assert_array_equal(parts.load_CLE[0], loads(trace, range(3)))


@PROPERTY
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 4))
def test_distances_equal_their_definitions(seed, experts, ranks):
    rng = np.random.default_rng(seed)
    ranks = min(ranks, experts)
    ids = np.concatenate([uniform(256, 2, experts, 1), rng.integers(0, (experts + 1) // 2, (256, 2, 1))])
    found = drift(counted(trace_of(ids, experts=experts)).parts(), n_ranks=ranks)
    p, q = (loads(trace_of(half, experts=experts), range(256)) / 256 for half in (ids[:256], ids[256:]))
    assert found.windows.distance == pytest.approx(np.mean([abs(a - b).sum() / 2 for a, b in zip(p, q, strict=True)]))
    middle = (p + q) / 2
    divergence = 0.0
    for share in (p, q):
        divergence += sum(s * math.log2(s / m) for s, m in zip(share.ravel(), middle.ravel(), strict=True) if s) / 2
    assert found.windows.divergence_CC[0, 1] == pytest.approx(divergence / 2)
    assert found.neighbours == found.first_to_last == pytest.approx(found.windows.distance)
    plan = packed_ranks_LE(np.rint(p * 256), ranks)
    assert found.windows.balance_CC[0, 1] == pytest.approx(load_balance(np.rint(q * 256).astype(int), plan, ranks))
    assert found.windows.balance_CC[0, 1] <= 1


def test_topics_with_nothing_in_common():
    ids = np.concatenate([uniform(3000, 1, 8, 1), 8 + uniform(3000, 1, 8, 1)])
    trace = trace_of(ids, experts=16, lengths=[3000, 3000], topics=("a", "b"), topic_Q=[0, 1])
    found = profile_trace(trace, n_ranks=2).drift
    assert found.topics.names == ("a", "b")
    assert found.topics.distance == pytest.approx(1)
    assert found.topics.divergence_CC[0, 1] == pytest.approx(1)
    assert found.first_to_last == pytest.approx(1)
    assert found.topics.balance_own > 0.98


def test_a_layer_that_one_part_never_uses_is_left_out_of_the_means():
    chosen = uniform(80, 2, 4, 1)
    whole = trace_of(chosen, experts=4, lengths=[40, 40], topics=("a", "b"), topic_Q=[0, 1])
    chosen[40:, 1] = NO_CHOICE
    half = trace_of(chosen, experts=4, lengths=[40, 40], topics=("a", "b"), topic_Q=[0, 1])
    first = trace_of(chosen[:, :1], experts=4, lengths=[40, 40], topics=("a", "b"), topic_Q=[0, 1])
    found, want = (drift(counted(trace).parts(), n_ranks=2).topics for trace in (half, first))
    np.testing.assert_allclose(found.distance_CC, want.distance_CC)
    np.testing.assert_allclose(found.divergence_CC, want.divergence_CC)
    np.testing.assert_allclose(found.noise_CC, want.noise_CC)
    assert drift(counted(whole).parts(), n_ranks=2).topics.noise > 0
    chosen[:40, 0] = NO_CHOICE  # now no layer is used by both
    none = trace_of(chosen, experts=4, lengths=[40, 40], topics=("a", "b"), topic_Q=[0, 1])
    assert math.isnan(drift(counted(none).parts(), n_ranks=2).topics.distance)


def test_windows_of_one_load_differ_by_noise_alone():
    found = profile_trace(trace_of(uniform(40_000, 4, 32, 1), experts=32, lengths=[100] * 400)).drift.windows
    assert found.distance == pytest.approx(found.noise, rel=0.1)


@PROPERTY
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 6))
def test_packed_plans_fill_ranks_evenly(seed, experts, ranks):
    ranks = min(ranks, experts)
    load_LE = np.random.default_rng(seed).integers(0, 50, (2, experts))
    rank_LE = packed_ranks_LE(load_LE, ranks)
    slots = -(-experts // ranks)
    for load_E, rank_E in zip(load_LE, rank_LE, strict=True):
        assert np.bincount(rank_E, minlength=ranks).max() <= slots
        # by hand: heaviest first, to the least loaded rank with room
        load, filled = [0] * ranks, [0] * ranks
        for expert in sorted(range(experts), key=lambda e: (-load_E[e], e)):
            rank = min((r for r in range(ranks) if filled[r] < slots), key=lambda r: (load[r], r))
            assert rank_E[expert] == rank
            load[rank] += load_E[expert]
            filled[rank] += 1


def test_ranks_that_do_not_fit_are_refused():
    for ranks in (0, 5):
        with pytest.raises(ValueError, match="n_ranks"):
            packed_ranks_LE(np.ones((1, 4), int), ranks)


def test_a_load_that_few_tokens_show_makes_a_stable_plan_soon():
    ids_T = np.random.default_rng(0).integers(0, 4, 40_000)
    routed = by_id(ids_T, 1, 8, 2)
    found = stability(sample_of(trace_of(routed, experts=8, lengths=[50] * 800)), n_ranks=2)
    assert found.stable_tokens is not None
    assert found.stable_tokens < 3000
    assert found.distance_N[-1] < found.distance_N[0]
    assert found.balance_N[-1] == pytest.approx(1, abs=0.1)
    assert "about" in found.verdict


def test_a_plan_that_still_improves_is_said_to():
    kinds = np.random.default_rng(0).permutation(400)  # each sequence has an expert of its own: none says of another
    routed = np.repeat(kinds % 64, 20)[:, None, None]
    routed[:, 0, 0] = np.where(np.random.default_rng(1).random(len(routed)) < 0.5, routed[:, 0, 0] ** 2 % 64, 0)
    found = stability(sample_of(trace_of(routed, experts=64, lengths=[20] * 400)), n_ranks=2, within=1e-6)
    assert found.stable_tokens is None
    assert "more than half" in found.verdict
    routed = uniform(140, 1, 64, 2)
    assert stability(sample_of(trace_of(routed[:140], experts=64, lengths=[20] * 7)), n_ranks=4) is None


@PROPERTY
@given(st.integers(0, 100))
def test_the_last_planning_size_is_half_of_the_trace(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, 30)
    found = stability(
        sample_of(trace_of(uniform(lengths.sum(), 1, 8, 2), experts=8, lengths=lengths)), n_ranks=2, deals=3, seed=seed
    )
    assert abs(found.tokens_N[-1] - lengths.sum() / 2) <= lengths.max()
    assert (np.diff(found.tokens_N) > 0).all()
