import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import NO_CHOICE, PHASES, TraceMeta, concatenate
from tests.strategies import traces
from tests.traces.small import small

PROPERTY = settings(deadline=None, max_examples=50)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("layers", 10**6), ("experts", 65536), ("choices", True), ("choices", 5), ("layers", 2.0)],
)
def test_meta_refuses_sizes_out_of_range(field, value):
    sizes = {"layers": 2, "experts": 4, "choices": 2} | {field: value}
    with pytest.raises(ValueError, match=field):
        TraceMeta(model="m", **sizes)


@pytest.mark.parametrize("ids", [(1,), (1, 1), (2, 1), (-1, 0)])
def test_meta_refuses_layer_ids_that_do_not_rise(ids):
    with pytest.raises(ValueError, match="layer_ids"):
        TraceMeta(model="m", layers=2, experts=4, choices=2, layer_ids=ids)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="sequence_T"):
        small(sequence_T=np.zeros(3, np.uint32))
    with pytest.raises(TypeError, match="experts_TLK"):
        small(experts_TLK=np.zeros((4, 2, 2), np.int64))
    with pytest.raises(ValueError, match="experts_TLK"):
        small(experts_TLK=np.full((4, 2, 2), 4, np.uint16))
    with pytest.raises(ValueError, match="phase_T"):
        small(phase_T=np.full(4, len(PHASES), np.uint8))
    with pytest.raises(ValueError, match="topic_T"):
        small(topic_T=np.zeros(4, np.int16))
    with pytest.raises(ValueError, match="topics"):
        small(topics=("a", "a"))


def test_no_choice_is_a_valid_id_and_arrays_cannot_be_changed():
    trace = small(experts_TLK=np.full((4, 2, 2), NO_CHOICE, np.uint16))
    with pytest.raises(ValueError, match="read-only"):
        trace.experts_TLK[0, 0, 0] = 1


@PROPERTY
@given(traces(), st.data())
def test_select_takes_slices_masks_and_positions(trace, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=trace.n_tokens, max_size=trace.n_tokens)), bool)
    positions = np.flatnonzero(mask)
    by_mask, by_position = trace.select(mask), trace.select(positions)
    assert by_mask.n_tokens == mask.sum()
    for name, array in by_mask.columns().items():
        np.testing.assert_array_equal(array, getattr(trace, name)[mask])
        np.testing.assert_array_equal(array, getattr(by_position, name))
    assert trace.select([]).n_tokens == 0
    half = trace.select(slice(0, trace.n_tokens // 2))
    assert half.n_tokens == trace.n_tokens // 2
    assert np.shares_memory(half.experts_TLK, trace.experts_TLK) or not half.n_tokens


@PROPERTY
@given(traces(), st.fractions(0, 1, max_denominator=100))
def test_split_takes_the_first_part_of_every_phase_and_topic(trace, fraction):
    planning, measuring = trace.split(float(fraction))
    tagged = dataclasses.replace(trace, token_id_T=np.arange(trace.n_tokens, dtype=np.int32))
    first, rest = (part.token_id_T for part in tagged.split(float(fraction)))
    assert planning.n_tokens == len(first)
    assert measuring.n_tokens == len(rest)
    assert sorted([*first, *rest]) == list(range(trace.n_tokens))
    for key in set(zip(trace.phase_T.tolist(), trace.topic_T.tolist(), strict=True)):
        members = [t for t in range(trace.n_tokens) if (trace.phase_T[t], trace.topic_T[t]) == key]
        count = int(len(members) * fraction)  # exact: fraction is a rational number
        assert [t for t in first if t in set(members)] == members[:count]
        assert [t for t in rest if t in set(members)] == members[count:]


def test_split_is_exact_in_decimals():
    planning, _ = small(tokens=100).split(0.29)  # 0.29 * 100 is 28.999… in binary
    assert planning.n_tokens == 29


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_split_refuses_fractions_outside(fraction):
    with pytest.raises(ValueError, match="fraction"):
        small().split(fraction)


@PROPERTY
@given(traces(tokens=(2, 40)), st.data())
def test_concatenating_the_parts_gives_the_whole(trace, data):
    cut = data.draw(st.integers(0, trace.n_tokens))
    whole = concatenate([trace.select(slice(0, cut)), trace.select(slice(cut, None))])
    assert whole.content_hash() == trace.content_hash()


def test_concatenate_joins_topics_by_name():
    one = small(topics=("law", "code"), topic_T=np.array([0, 1, -1, 0], np.int16))
    two = small(topics=("code",), topic_T=np.zeros(4, np.int16))
    whole = concatenate([one, two])
    assert whole.topics == ("law", "code")
    assert whole.topic_T.tolist() == [0, 1, -1, 0, 1, 1, 1, 1]


def test_concatenate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="nothing"):
        concatenate([])
    with pytest.raises(ValueError, match="L, E, K"):
        concatenate([small(), small(layers=3)])
    with pytest.raises(ValueError, match="step_T"):
        concatenate([small(), small(step_T=np.zeros(4, np.uint32))])


@PROPERTY
@given(traces(tokens=(2, 30)), st.data())
def test_hash_sees_every_token_and_not_the_topics_order(trace, data):
    order = data.draw(st.permutations(range(len(trace.topics))))
    topics = tuple(trace.topics[i] for i in order)
    place = np.array([*(topics.index(name) for name in trace.topics), -1], np.int16)
    renamed = dataclasses.replace(trace, topics=topics, topic_T=place[trace.topic_T])
    assert renamed.content_hash() == trace.content_hash()
    assert dataclasses.replace(trace, weights_TLK=None).content_hash() == trace.content_hash()
    token = data.draw(st.integers(0, trace.n_tokens - 1))
    position_T = trace.position_T.copy()
    position_T[token] += 1
    assert dataclasses.replace(trace, position_T=position_T).content_hash() != trace.content_hash()
    assert trace.select(np.arange(trace.n_tokens) != token).content_hash() != trace.content_hash()
    other = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, experts=trace.meta.experts + 1))
    assert other.content_hash() != trace.content_hash()
