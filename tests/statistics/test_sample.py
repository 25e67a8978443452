import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import sample_of
from tests.statistics.made import batches, trace_of, uniform
from tests.strategies import traces

PROPERTY = settings(deadline=None, max_examples=40)


def columns(sample):
    return {
        name: getattr(sample, name)
        for name in ("experts_TLK", "sequence_T", "position_T", "token_id_T", "topic_T", "run_R1", "share", "of_tokens")
    }


def assert_same(one, two):
    for name, value in columns(one).items():
        np.testing.assert_array_equal(value, columns(two)[name], err_msg=name)


@PROPERTY
@given(traces(), st.data())
def test_a_sample_does_not_depend_on_batches(trace, data):
    most = data.draw(st.integers(1, trace.n_tokens * trace.meta.layers * trace.meta.choices))
    seed = data.draw(st.integers(0, 5))
    order = np.random.default_rng(seed).permutation(trace.n_tokens)
    mixed = trace.select(order)
    whole = sample_of(mixed, most_choices=most, seed=seed)
    parts = sample_of(batches(mixed, data.draw(st.integers(1, trace.n_tokens))), most_choices=most, seed=seed)
    assert_same(whole, parts)
    assert whole.experts_TLK.size <= most


@PROPERTY
@given(traces(), st.integers(0, 9))
def test_tokens_come_back_in_order_of_their_sequences(trace, seed):
    order = np.random.default_rng(seed).permutation(trace.n_tokens)
    sample = sample_of(trace.select(order))
    assert sample.whole
    assert sample.share == 1
    np.testing.assert_array_equal(sample.experts_TLK, trace.experts_TLK)
    np.testing.assert_array_equal(sample.sequence_T, trace.sequence_T)
    starts = [0, *(np.flatnonzero(np.diff(trace.sequence_T)) + 1), trace.n_tokens]
    np.testing.assert_array_equal(sample.run_R1, starts)


def test_whole_pieces_are_kept():
    lengths = [10_000] * 20
    trace = trace_of(uniform(200_000, 1, 8, 1), experts=8, lengths=lengths)
    sample = sample_of(trace, most_choices=60_000)
    assert 10_000 < sample.tokens <= 60_000
    assert sample.share in (0.25, 0.125)
    assert not sample.whole
    whole, _ = divmod(sample.position_T[sample.run_R1[:-1]], 4096)
    np.testing.assert_array_equal(sample.position_T[sample.run_R1[:-1]], whole * 4096)
    sizes = np.diff(sample.run_R1)
    ends = sample.position_T[sample.run_R1[1:] - 1]
    assert all(end == 9999 or (end + 1) % 4096 == 0 for end in ends)
    assert sizes.sum() == sample.tokens
    other = sample_of(trace, most_choices=60_000, seed=1)
    assert other.tokens != sample.tokens or (other.sequence_T != sample.sequence_T).any()


def test_positions_that_are_missing_or_repeated_end_a_run():
    trace = trace_of(uniform(6, 1, 4, 1), experts=4, position_T=np.array([0, 1, 3, 3, 4, 2**32 - 1], np.uint32))
    assert sample_of(trace).run_R1.tolist() == [0, 2, 3, 5, 6]
    after = trace_of(
        uniform(2, 1, 4, 1),
        experts=4,
        sequence_T=np.array([0, 1], np.uint32),
        position_T=np.array([2**32 - 1, 0], np.uint32),
    )
    assert sample_of(after).run_R1.tolist() == [0, 1, 2]


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="no batches"):
        sample_of(iter(()))
    with pytest.raises(ValueError, match="most_choices"):
        sample_of(trace_of(uniform(2, 1, 4, 1), experts=4), most_choices=0)
    with_ids = trace_of(uniform(2, 1, 4, 1), experts=4, ids_T=[1, 2])
    without = trace_of(uniform(2, 1, 4, 1), experts=4)
    with pytest.raises(ValueError, match="token_id"):
        sample_of([with_ids, without])
