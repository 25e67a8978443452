import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import concatenate, fit_trace, load_LE, synthesise
from tests.synthesis.made import halves, trace_of, uniform


def numbered(trace):
    """Every token has an id of its own, so that one made says which donor it came from."""
    return dataclasses.replace(trace, token_id_T=np.arange(trace.n_tokens, dtype=np.int32))


def made(model, tokens, **more):
    return concatenate(list(synthesise(model, tokens=tokens, **more)))


@st.composite
def traces(draw):
    """A few sequences of two phases and two topics; tokens of three kinds, so that many are alike and some the same."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sequences, length = draw(st.integers(8, 40)), draw(st.integers(1, 12))
    layers, experts = draw(st.integers(1, 20)), draw(st.integers(2, 12))
    choices = draw(st.integers(1, min(experts, 3)))
    shape = (3, layers, experts)
    kind_X = rng.integers(3, size=sequences * length)
    score = rng.random(shape)[kind_X] + draw(st.sampled_from([0.05, 0.3])) * rng.random((len(kind_X), layers, experts))
    return numbered(
        trace_of(
            np.argsort(-score, axis=2)[:, :, :choices],
            experts=experts,
            sequences=sequences,
            topic_Q=rng.integers(2, size=sequences),
            topics=("a", "b"),
            phase_Q=rng.integers(1, 3, size=sequences),
        )
    )


@settings(max_examples=40, deadline=None)
@given(trace=traces(), seed=st.integers(0, 2**63 - 1), rounds=st.integers(1, 3))
def test_every_round_has_every_donor_once_and_its_load(trace, seed, rounds):
    model = fit_trace(trace)
    result = made(model, rounds * trace.n_tokens, seed=seed)
    assert np.array_equal(np.bincount(result.token_id_T), np.full(trace.n_tokens, rounds))
    assert np.array_equal(load_LE(result), rounds * load_LE(trace))
    for phase, topic in set(zip(trace.phase_T, trace.topic_T, strict=True)):
        of_kind = [t.select(np.flatnonzero((t.phase_T == phase) & (t.topic_T == topic))) for t in (trace, result)]
        assert np.array_equal(load_LE(of_kind[1]), rounds * load_LE(of_kind[0]))
        assert set(of_kind[1].token_id_T) == set(of_kind[0].token_id_T)


@settings(max_examples=40, deadline=None)
@given(trace=traces(), seed=st.integers(0, 2**63 - 1))
def test_choices_are_traded_pair_by_pair(trace, seed):
    model = fit_trace(trace)
    result = made(model, trace.n_tokens, seed=seed)
    result = result.select(np.argsort(result.token_id_T))  # as the source is
    row_of_id = np.argsort(model.donors.trace.token_id_T)  # the donors' order is their own
    like = [set(model.donors.trace.token_id_T[r[r >= 0]]) for r in model.neighbours_TR[row_of_id]]
    widest = max(trace.meta.layers // 8, 1)
    differs_TL = (result.experts_TLK != trace.experts_TLK).any(axis=2)
    for token in np.flatnonzero(differs_TL.any(axis=1)):
        layers = np.flatnonzero(differs_TL[token])
        assert layers[-1] - layers[0] < widest
        assert any(
            np.array_equal(result.experts_TLK[token, layers], trace.experts_TLK[other, layers])
            and np.array_equal(result.experts_TLK[other, layers], trace.experts_TLK[token, layers])
            for other in like[token]
        )


def test_stretches_begin_where_a_look_alike_stood():
    trace = numbered(uniform())
    model = fit_trace(trace)
    result = made(model, trace.n_tokens)
    donor_QP = result.token_id_T.reshape(24, 100)
    home_Q = np.array([np.bincount(donor_P // 100).argmax() for donor_P in donor_QP])
    assert set(home_Q) == set(range(24))
    home_QP = 100 * home_Q[:, None] + np.arange(100)
    begins_QP = donor_QP != home_QP
    assert 0.08 < np.mean(begins_QP) < 0.15
    begins_QP[:, 1:] &= np.diff(donor_QP, axis=1) != 1
    assert begins_QP.sum() > 10
    for home, donor in zip(home_QP[begins_QP], donor_QP[begins_QP], strict=True):
        assert donor in model.neighbours_TR[home]  # the trace's order is the donors'


def test_rounds_are_not_repeated():
    trace = numbered(halves(of_topics=True))
    result = made(fit_trace(trace), 2 * trace.n_tokens)
    rows = [result.experts_TLK[np.argsort(result.token_id_T, kind="stable")][which::2] for which in (0, 1)]
    assert np.mean(rows[0] != rows[1]) > 0.02
    assert result.content_hash() != made(fit_trace(trace), 2 * trace.n_tokens, seed=1).content_hash()


@pytest.mark.parametrize("topics", [{"low": 5.0, "high": 1.0}, ("high",)])
def test_weighed_topics_still_have_each_donor_as_often_as_its_like(topics):
    trace = numbered(halves(of_topics=True))
    result = made(fit_trace(trace), 5000, topics=topics)
    count_T = np.bincount(result.token_id_T, minlength=trace.n_tokens)
    for topic in (0, 1):
        of_topic_T = count_T[trace.topic_T == topic]
        assert of_topic_T.max() - of_topic_T.min() <= 2


def test_the_first_tokens_of_a_long_synthesis_do_not_depend_on_its_batches():
    model = fit_trace(numbered(uniform()))
    first = next(synthesise(model, tokens=20_000, batch_tokens=700))
    whole = made(model, 20_000)
    assert np.array_equal(first.experts_TLK, whole.experts_TLK[: first.n_tokens])
    assert np.array_equal(first.token_id_T, whole.token_id_T[: first.n_tokens])
