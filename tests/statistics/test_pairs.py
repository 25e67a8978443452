"""Co-activation and affinity."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import NO_CHOICE, affinity, coactivation, coactivation_LEE, transition_LEE
from tests.statistics.made import trace_of, uniform
from tests.strategies import traces

PROPERTY = settings(deadline=None, max_examples=30)


def chosen(trace, token, layer):
    return [int(e) for e in trace.experts_TLK[token, layer] if e != NO_CHOICE]


@PROPERTY
@given(traces())
def test_strength_of_coactivation_equals_its_definition(trace):
    found = coactivation(coactivation_LEE(trace), pairs=3)
    for layer in range(trace.meta.layers):
        rows = [chosen(trace, token, layer) for token in range(trace.n_tokens)]
        load = [sum(expert in row for row in rows) for expert in range(trace.meta.experts)]
        pairs = [(a, b) for b in range(trace.meta.experts) for a in range(b)]
        met = {(a, b): sum(a in row and b in row for row in rows) for a, b in pairs}
        products = sum(load[a] * load[b] for a, b in pairs)
        if not sum(met.values()):
            assert math.isnan(found.strength_L[layer])
            continue
        expected = {(a, b): load[a] * load[b] / products * sum(met.values()) for a, b in pairs}
        square = sum(expected[p] * (met[p] / expected[p] - 1) ** 2 for p in pairs if expected[p])
        assert found.strength_L[layer] == pytest.approx(math.sqrt(square / sum(expected.values())))
        best = max((met[p] / expected[p] for p in pairs if expected[p] >= 5), default=0)
        assert max((p.lift for p in found.top if p.layer == layer), default=0) in (pytest.approx(best), 0)


def test_pairs_that_always_meet_are_named_first():
    ids = uniform(4000, 2, 16, 2)
    ids[:400, 1] = [3, 9]
    found = coactivation(coactivation_LEE(trace_of(ids, experts=16)), pairs=2)
    assert (found.top[0].layer, found.top[0].experts) == (1, (3, 9))
    assert found.top[0].tokens >= 400
    assert found.strength_L[0] == pytest.approx(found.noise_L[0], rel=0.3)  # nothing but noise
    assert found.strength_L[1] > 3 * found.noise_L[1]
    assert found.strength == pytest.approx(found.strength_L.mean())


def test_one_choice_a_token_has_no_pairs():
    found = coactivation(coactivation_LEE(trace_of(uniform(10, 2, 4, 1), experts=4)))
    assert math.isnan(found.strength)
    assert found.top == ()


@PROPERTY
@given(traces(layers=(2, 4)), st.integers(0, 9))
def test_affinity_equals_its_definition(trace, seed):
    del seed
    found = affinity(transition_LEE(trace), choices=trace.meta.choices)
    for layer in range(trace.meta.layers - 1):
        pairs = [
            (a, b)
            for token in range(trace.n_tokens)
            for a in chosen(trace, token, layer)
            for b in chosen(trace, token, layer + 1)
        ]
        if not pairs:
            assert math.isnan(found.information_L[layer])
            continue
        n, cells = len(pairs), {p: pairs.count(p) for p in set(pairs)}
        rows = {a: sum(c for p, c in cells.items() if p[0] == a) for a, _ in cells}
        columns = {b: sum(c for p, c in cells.items() if p[1] == b) for _, b in cells}
        raw = sum(c / n * math.log2(c * n / rows[a] / columns[b]) for (a, b), c in cells.items())
        bias = (len(cells) - len(rows) - len(columns) + 1) / (2 * n * math.log(2))
        assert found.information_L[layer] == pytest.approx(raw - bias, abs=1e-9)
        k = trace.meta.choices
        likeliest = sum(sum(sorted((c for p, c in cells.items() if p[0] == a), reverse=True)[:k]) for a in rows) / n
        by_load = sum(sorted(columns.values(), reverse=True)[:k]) / n
        assert found.likeliest_L[layer] == pytest.approx(likeliest)
        assert found.by_load_L[layer] == pytest.approx(by_load)
        if by_load < 1:
            assert found.affinity_L[layer] == pytest.approx((likeliest - by_load) / (1 - by_load))


def test_layers_that_follow_each_other_tell_all_and_others_nothing():
    first = uniform(20_000, 1, 16, 1)
    ids = np.concatenate([first, (first + 3) % 16, uniform(20_000, 1, 16, 1, seed=1)], axis=1)
    found = affinity(transition_LEE(trace_of(ids, experts=16)), choices=1)
    assert found.information_L[0] == pytest.approx(4, abs=0.01)
    assert found.entropy_L[0] == pytest.approx(4, abs=0.01)
    assert found.affinity_L[0] == pytest.approx(1)
    assert found.information_L[1] == pytest.approx(0, abs=0.003)  # as counts stand it would be 0.008
    assert found.affinity_L[1] == pytest.approx(0, abs=0.03)


def test_one_layer_has_no_next():
    found = affinity(transition_LEE(trace_of(uniform(10, 1, 4, 1), experts=4)), choices=1)
    assert math.isnan(found.information)
    assert math.isnan(found.affinity)
