import numpy as np
import pytest
from hypothesis import given, settings

from moecast.traces import NO_CHOICE, dependence
from tests.statistics.made import by_id, trace_of, uniform
from tests.strategies import traces

PROPERTY = settings(deadline=None, max_examples=30)


def shared(trace, layer, one, two):
    sets = [set(trace.experts_TLK[t, layer].tolist()) - {NO_CHOICE} for t in (one, two)]
    return len(sets[0] & sets[1])


def explained(trace, layer, fine, coarse):
    """(fine − coarse) ÷ (choices − any) over tokens with a partner in the fine group, by comparing every pair."""
    tokens = range(trace.n_tokens)
    rows = []
    for one in tokens:
        others = [two for two in tokens if two != one]
        inside = [shared(trace, layer, one, two) for two in others if fine(one) is not None and fine(one) == fine(two)]
        around = [shared(trace, layer, one, two) for two in others if coarse(one) == coarse(two)]
        anyone = [shared(trace, layer, one, two) for two in others]
        if inside:
            made = int((trace.experts_TLK[one, layer] != NO_CHOICE).sum())
            rows.append((np.mean(inside) - np.mean(around), made - np.mean(anyone)))
    gain, room = np.mean(rows, axis=0) if rows else (np.nan, np.nan)
    return gain / room if room > 0 else np.nan


@PROPERTY
@given(traces(tokens=(2, 25), experts=(2, 6)))
def test_shares_equal_their_definition(trace):
    if trace.token_id_T is not None:
        trace = trace_like(trace, trace.token_id_T % 4)
    found = dependence(trace)
    first = trace.position_T == 0

    def pair(token):
        return None if first[token] else (int(trace.token_id_T[token]), int(trace.token_id_T[token - 1]))

    def constant(_):
        return 0

    for layer in range(trace.meta.layers):
        want = explained(trace, layer, lambda t: int(trace.position_T[t]), constant)
        assert found.position_L[layer] == pytest.approx(want, nan_ok=True)
        if (trace.topic_T >= 0).any():
            known = [int(topic) if topic >= 0 else None for topic in trace.topic_T]
            want = explained(trace, layer, known.__getitem__, constant)
            assert found.topic_L[layer] == pytest.approx(want, nan_ok=True)
        else:
            assert found.topic_L is None
        if trace.token_id_T is None:
            assert found.token_id_L is found.previous_L is found.sequence_L is found.information_L is None
            continue
        ids = trace.token_id_T.tolist()
        assert found.token_id_L[layer] == pytest.approx(explained(trace, layer, ids.__getitem__, constant), nan_ok=True)
        assert found.previous_L[layer] == pytest.approx(explained(trace, layer, pair, ids.__getitem__), nan_ok=True)
        here = list(zip(ids, trace.sequence_T.tolist(), strict=True))
        assert found.sequence_L[layer] == pytest.approx(
            explained(trace, layer, here.__getitem__, ids.__getitem__), nan_ok=True
        )


def trace_like(trace, ids_T):
    import dataclasses

    return dataclasses.replace(trace, token_id_T=ids_T.astype(np.int32))


def test_routing_by_token_id_is_explained_by_it():
    ids_T = np.random.default_rng(0).integers(0, 50, 4000)
    found = dependence(trace_of(by_id(ids_T, 2, 32, 4), experts=32, ids_T=ids_T, lengths=[100] * 40))
    np.testing.assert_allclose(found.token_id_L, 1)
    np.testing.assert_allclose(found.information_share_L, 1)
    np.testing.assert_allclose(found.previous_L, 0, atol=1e-9)
    np.testing.assert_allclose(found.sequence_L, 0, atol=1e-9)
    np.testing.assert_allclose(found.position_L, 0, atol=0.02)
    assert found.repeated == 1


def test_routing_by_the_token_before_is_added_by_it():
    ids_T = np.random.default_rng(0).integers(0, 8, 8000)
    routed = by_id(ids_T * 8 + np.roll(ids_T, 1), 1, 32, 2)
    found = dependence(trace_of(routed, experts=32, ids_T=ids_T, lengths=[200] * 40))
    assert found.token_id_L[0] + found.previous_L[0] == pytest.approx(1, abs=0.01)
    assert found.previous_L[0] > 0.6


def test_uniform_routing_depends_on_nothing():
    ids_T = np.random.default_rng(0).integers(0, 100, 6000)
    trace = trace_of(
        uniform(6000, 2, 32, 4), experts=32, ids_T=ids_T, lengths=[100] * 60, topics=("a", "b"), topic_Q=[0, 1] * 30
    )
    found = dependence(trace)
    for share_L in (found.token_id_L, found.previous_L, found.sequence_L, found.position_L, found.topic_L):
        np.testing.assert_allclose(share_L, 0, atol=0.03)
    np.testing.assert_allclose(found.chance_L, 4 / 32, atol=0.003)
    np.testing.assert_allclose(found.information_share_L, 0, atol=0.02)  # as counts stand it would be 0.05
    np.testing.assert_allclose(found.entropy_L, 5, atol=0.01)


def test_topics_and_positions_are_told_apart():
    lengths, topic_Q = [50] * 40, [0, 1] * 20
    topic_T, position_T = np.repeat(topic_Q, 50), np.tile(np.arange(50), 40)
    made = {"experts": 64, "lengths": lengths, "topics": ("a", "b"), "topic_Q": topic_Q}
    assert dependence(trace_of(by_id(topic_T, 1, 64, 4), **made)).topic_L[0] == pytest.approx(1)
    found = dependence(trace_of(by_id(position_T, 1, 64, 4), **made))
    assert found.position_L[0] == pytest.approx(1)
    assert found.topic_L[0] == pytest.approx(0, abs=0.01)


def test_a_constant_router_and_a_single_token_give_nothing_to_explain():
    found = dependence(trace_of(np.zeros((40, 1, 1)), experts=4, ids_T=np.arange(40) % 4))
    assert np.isnan(found.token_id_L[0])
    assert np.isnan(found.information_share_L[0])
    assert np.isnan(dependence(trace_of(np.zeros((1, 1, 1)), experts=4)).position_L[0])
