import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import NO_CHOICE, locality
from tests.statistics.made import trace_of, uniform
from tests.strategies import traces

PROPERTY = settings(deadline=None, max_examples=30)


def windows(trace, length):
    """Token numbers of every window of consecutive positions of one sequence."""
    place = {(int(s), int(p)): t for t, (s, p) in enumerate(zip(trace.sequence_T, trace.position_T, strict=True))}
    for sequence, position in place:
        tokens = [place.get((sequence, position + step)) for step in range(length)]
        if None not in tokens:
            yield tokens


def times_chosen(trace, layer, tokens):
    """f(e) of a window, by expert."""
    chosen = [int(e) for t in tokens for e in trace.experts_TLK[t, layer] if e != NO_CHOICE]
    return [chosen.count(expert) for expert in range(trace.meta.experts)]


def best_f1_by_hand(pairs, length):
    """Best F1 and the size of the router that reaches it, trying every threshold: `pairs` are f(e) of all windows."""
    best, size = float("nan"), float("nan")
    for least in range(1, length + 1):
        hits = sum(f for f in pairs if f >= least)
        wrong = sum(length - f for f in pairs if f >= least)
        missed = sum(f for f in pairs if f < least)
        if hits + missed and not (2 * hits / (2 * hits + wrong + missed) <= best):
            best = 2 * hits / (2 * hits + wrong + missed)
            size = (hits + wrong) / (hits + missed)
    return best, size


@PROPERTY
@given(traces(experts=(2, 7)), st.integers(1, 4), st.integers(0, 100))
def test_srp_sch_and_cls_equal_their_definitions(trace, length, seed):
    order = np.random.default_rng(seed).permutation(trace.n_tokens)  # a run interleaves sequences
    found = locality(trace.select(order), lengths=(length,), cache_ratios=(0.5, 1, 2))
    made = (trace.experts_TLK != NO_CHOICE).sum() / (trace.n_tokens * trace.meta.layers)
    every = list(windows(trace, length))
    assert found.windows_M[0] == len(every)
    pooled = []
    for layer in range(trace.meta.layers):
        f_WE = [times_chosen(trace, layer, tokens) for tokens in every]
        pairs = [f for f_E in f_WE for f in f_E]
        pooled += pairs
        srp, ratio = best_f1_by_hand(pairs, length)
        assert found.srp_LM[layer, 0] == pytest.approx(srp, nan_ok=True)
        assert found.size_ratio_LM[layer, 0] == pytest.approx(ratio, nan_ok=True)
        for s, wanted in enumerate((0.5, 1, 2)):
            size = min(max(int(wanted * made + 1e-9), 1), trace.meta.experts)
            assert found.cache_sizes[s] == size
            hits = sum(max(sum(cache) for cache in itertools.combinations(f_E, size)) for f_E in f_WE)
            total = sum(pairs)
            assert found.sch_LMS[layer, 0, s] == pytest.approx(hits / total if total else np.nan, nan_ok=True)
        if every:
            unused = np.mean([f == 0 for f in pairs])
            assert found.chunk_sparsity_LM[layer, 0] == pytest.approx(unused)
    # the model's router has one threshold for all layers: its score and its size belong together
    assert (found.srp_M[0], found.size_ratio_M[0]) == pytest.approx(best_f1_by_hand(pooled, length), nan_ok=True)


def rolling_by_hand(trace, layer, length, size):
    """Hits and choices of the oracle cache, run by run."""
    hits = total = 0
    for sequence in sorted(set(trace.sequence_T.tolist())):
        rows = [
            [int(e) for e in trace.experts_TLK[t, layer] if e != NO_CHOICE]
            for t in np.flatnonzero(trace.sequence_T == sequence)
        ]
        cache, used = set(), {}
        for i, row in enumerate(rows):
            coming = [expert for later in rows[i + 1 : i + 1 + length] for expert in later]
            hits += len(cache & set(row))
            total += len(row)
            used |= dict.fromkeys(row, i)
            for expert in row:
                if expert in cache:
                    continue
                if len(cache) == size:
                    spare = cache - set(row)
                    if not spare:
                        continue
                    cache.remove(min(spare, key=lambda e: (coming.count(e), used[e], e)))
                cache.add(expert)
    return hits, total


@PROPERTY
@given(traces(experts=(2, 9)), st.integers(1, 5))
def test_rolling_caches_equal_their_definition(trace, length):
    found = locality(trace, lengths=(length,), cache_ratios=(1, 2))
    assert found.rolling_tokens == trace.n_tokens
    for layer, s in itertools.product(range(trace.meta.layers), range(2)):
        hits, total = rolling_by_hand(trace, layer, length, found.cache_sizes[s])
        assert found.rolling_sch_LMS[layer, 0, s] == pytest.approx(hits / total if total else np.nan, nan_ok=True)


def test_rolling_caches_serve_a_part_of_a_large_sample(monkeypatch):
    monkeypatch.setattr("moecast.traces.statistics.locality._ROLLING_CHOICES", 600)
    found = locality(trace_of(uniform(3000, 1, 8, 1), experts=8, lengths=[30] * 100), lengths=(4,), cache_ratios=(2,))
    assert found.rolling_tokens == 600
    assert found.windows_M[0] == 100 * 27
    assert 1 / 8 < found.rolling_sch_MS[0, 0] < 0.6


def test_a_router_that_never_changes_is_its_own_segment_router():
    found = locality(trace_of(np.tile([[[0, 3]]], (50, 2, 1)), experts=8), lengths=(1, 4, 16), cache_ratios=(0.5, 1))
    np.testing.assert_allclose(found.srp_LM, 1)
    np.testing.assert_allclose(found.size_ratio_LM, 1)
    np.testing.assert_allclose(found.sch_LMS[..., 0], 0.5)
    np.testing.assert_allclose(found.sch_LMS[..., 1], 1)
    np.testing.assert_allclose(found.chunk_sparsity_LM, 0.75)


def test_uniform_routing_in_closed_form():
    experts, choices, length = 16, 4, 4
    found = locality(trace_of(uniform(60_000, 1, experts, choices), experts=experts), lengths=(1, length))
    assert found.srp_M[0] == 1  # a window of one token is the token
    assert found.chunk_sparsity_M[1] == pytest.approx((1 - choices / experts) ** length, rel=0.02)
    # f is binomial(4, 1/4): the F1 of each threshold follows from its tail
    p = np.array([81, 108, 54, 12, 1]) / 256
    f1 = [2 * (p[a:] * np.arange(a, 5)).sum() / (4 * p[a:].sum() + 1) for a in range(1, 5)]
    assert found.srp_M[1] == pytest.approx(max(f1), rel=0.01)


def test_choices_that_alternate_are_local_to_two_tokens_only():
    ids = np.tile(np.array([[[0]], [[1]]]), (20, 1, 1))
    found = locality(trace_of(ids, experts=4), lengths=(2, 4), cache_ratios=(1, 2))
    assert found.srp_M[1] == pytest.approx(2 / 3)  # both experts, each right half of the time
    assert found.sch_MS[1].tolist() == [0.5, 1]
    assert found.chunk_sparsity_M.tolist() == [0.5, 0.5]


def test_windows_stop_where_a_sequence_does():
    found = locality(trace_of(uniform(10, 2, 8, 2), experts=8, lengths=[3, 3, 4]), lengths=(1, 3, 4, 5))
    assert found.windows_M.tolist() == [10, 4, 1, 0]
    assert np.isnan(found.srp_M[3])
    assert np.isnan(found.sch_MS[3]).all()
    assert np.isnan(found.chunk_sparsity_M[3])


@pytest.mark.parametrize(("name", "value"), [("lengths", (0,)), ("lengths", (70_000,)), ("cache_ratios", (0,))])
def test_bad_questions_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        locality(trace_of(uniform(10, 1, 4, 1), experts=4), **{name: value})
