import dataclasses

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.traces import (
    NO_CHOICE,
    Shape,
    TraceWriter,
    affinity,
    concatenate,
    fit_trace,
    hash_trace,
    load_LE,
    locality,
    parse_shape,
    read_trace,
    shipped_trace_path,
    synthesise,
    transition_LEE,
)
from moecast.traces.checks import check_choices
from moecast.traces.synthesis.lift import source_layers
from moecast.traces.synthesis.sample import SequenceSample
from tests.synthesis.made import halves, paths, trace_of, uniform


def made(trace, tokens=3000, **more):
    return concatenate(list(synthesise(fit_trace(trace), tokens=tokens, **more)))


SHAPES = ("4x16x4", "4x16x2", "4x16x8", "4x40x4", "4x64x6", "4x10x3", "9x16x4", "2x32x4", "23x48x16", "1x4x4")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("empty", [0.0, 0.3])
def test_any_shape_is_a_legal_trace(shape, empty):
    trace = uniform(empty=empty)
    result = made(trace, 1000, shape=shape)
    assert result.meta.shape_LEK == dataclasses.astuple(parse_shape(shape))
    assert result.n_tokens == 1000
    check_choices(result.experts_TLK, result.meta.experts)  # no expert twice
    assert np.mean(result.experts_TLK == NO_CHOICE) == pytest.approx(empty, abs=0.03 if empty else 0)


@pytest.mark.parametrize("shape", [None, "6x32x5"])
def test_same_seed_same_tokens_for_any_batches_and_shards(tmp_path, shape):
    model = fit_trace(uniform(token_id_T=np.arange(2400, dtype=np.int32)))
    whole = concatenate(list(synthesise(model, shape=shape, tokens=5000, seed=7)))
    pieces = list(synthesise(model, shape=shape, tokens=5000, seed=7, batch_tokens=130))
    assert len(pieces) > 20
    with TraceWriter(tmp_path / "shards", pieces[0].meta, shard_tokens=999) as writer:
        for piece in pieces:
            writer.append(piece)
    assert hash_trace(tmp_path / "shards") == whole.content_hash()
    other = concatenate(list(synthesise(model, shape=shape, tokens=5000, seed=8)))
    assert other.content_hash() != whole.content_hash()


def test_a_fit_does_not_depend_on_batches():
    trace = uniform()
    cut = [trace.select(slice(start, start + 77)) for start in range(0, trace.n_tokens, 77)]
    one, other = fit_trace(trace), fit_trace(cut)
    assert one.content_hash == other.content_hash == trace.content_hash()
    assert np.array_equal(one.neighbours_TR, other.neighbours_TR)


@pytest.mark.parametrize("shape", [None, "4x64x4", "4x16x8", "10x16x4"])
def test_uniform_stays_uniform(shape):
    loads_LE = load_LE(made(uniform(), 6000, shape=shape))
    mean_L = loads_LE.mean(axis=1)
    # a resample varies about as much as its 2,400 donors did
    expected = np.sqrt(1 / 6000 + 1 / 2400) * np.sqrt(6000 * mean_L)
    assert np.all(np.abs(loads_LE - mean_L[:, None]) < 5 * expected[:, None])


def test_topics_keep_their_experts_and_their_shares():
    trace = halves(of_topics=True)
    result = made(trace)
    low_T = result.topic_T == result.topics.index("low")
    assert np.mean(low_T) == pytest.approx(0.5, abs=0.05)
    assert np.array_equal((result.experts_TLK < 8).all(axis=(1, 2)), low_T)
    lifted = made(trace, shape="3x64x4")
    found = [set(np.unique(lifted.experts_TLK[lifted.topic_T == topic, 0])) for topic in (0, 1)]
    assert not found[0] & found[1]
    assert found[0] | found[1] == set(range(64))


def test_topics_are_weighed_or_restricted():
    trace = halves(of_topics=True)
    weighed = made(trace, topics={"low": 3, "high": 1})
    assert np.mean(weighed.topic_T == 0) == pytest.approx(0.75, abs=0.05)
    assert set(made(trace, topics=("high",)).topic_T) == {1}


def test_early_and_late_stay_apart():
    result = made(halves(of_topics=False), 7000)
    late_T = (result.experts_TLK >= 8).all(axis=(1, 2))
    assert np.array_equal(late_T, np.sort(late_T))
    assert np.mean(late_T) == pytest.approx(0.5, abs=0.05)


def test_a_path_that_is_settled_stays_settled():
    trace = paths()
    before, after = transition_LEE(trace), transition_LEE(made(trace))
    assert np.array_equal(before > 0, after > 0)
    for table_EE in transition_LEE(made(trace, shape="9x8x1")):
        assert ((table_EE > 0).sum(axis=1) == 1).all()


def test_sequences_look_like_real_ones():
    lengths = np.array([20, 30, 50, 80] * 6)
    plain = uniform(tokens=lengths.sum(), token_id_T=np.arange(lengths.sum(), dtype=np.int32))
    trace = dataclasses.replace(
        plain,
        sequence_T=np.repeat(np.arange(24, dtype=np.uint32), lengths),
        position_T=np.concatenate([np.arange(n, dtype=np.uint32) + 5 for n in lengths]),
        phase_T=np.repeat(np.arange(24) // 12 + 1, lengths).astype(np.uint8),
    )
    result = made(trace, 20_000)
    _, first, count = np.unique(result.sequence_T, return_index=True, return_counts=True)
    assert set(count[:-1]) <= {20, 30, 50, 80}
    assert set(result.position_T[first]) == {5}
    assert np.array_equal(np.diff(result.position_T)[np.diff(result.sequence_T) == 0], np.ones(20_000 - len(first)))
    assert np.mean(result.phase_T == 1) == pytest.approx(0.5, abs=0.02)
    known = plain.experts_TLK[result.token_id_T]  # the id is that of a token with most of these choices
    assert np.mean(known == result.experts_TLK) > 0.5
    assert result.step_T is None
    assert result.source_rank_T is None


def test_rows_in_any_order_are_the_same_sequences():
    trace = uniform()
    by_step = trace.select(np.lexsort((trace.sequence_T, trace.position_T)))
    one, other = made(trace), made(by_step)
    assert np.array_equal(one.experts_TLK, other.experts_TLK)


def test_it_never_passes_as_the_source():
    trace = uniform()
    source = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, config={"a": 1}, layer_ids=(1, 2, 3, 4)))
    meta = made(source, seed=3).meta
    assert meta.model.startswith("synthetic")
    assert meta.config is None
    assert "no model made" in meta.notes
    record = meta.source["synthesis"]
    assert record["like"]["content_hash"] == source.content_hash()
    assert record["like"]["model"] == "made up"
    assert (record["seed"], record["shape"]) == (3, "4x16x4")


def test_statistics_carry_over_to_what_was_not_fitted():
    decode = read_trace(shipped_trace_path(), phase="decode")
    part = decode.select(np.flatnonzero(decode.sequence_T % 3 == 0))
    even_T = part.sequence_T % 2 == 0
    known, unknown = part.select(even_T), part.select(~even_T)
    like = made(known, unknown.n_tokens)
    for measure, tolerance in (
        (lambda t: affinity(transition_LEE(t), choices=6).information, 0.08),
        (lambda t: locality(t, lengths=(8,)).srp_M[0], 0.05),
        (lambda t: locality(t, lengths=(8,)).chunk_sparsity_M[0], 0.05),
        (lambda t: load_LE(t).std(axis=1).mean() / load_LE(t).mean(), 0.08),
    ):
        assert measure(like) == pytest.approx(measure(unknown), rel=tolerance)
    new = {row.tobytes() for row in like.experts_TLK} - {row.tobytes() for row in known.experts_TLK}
    assert len(new) > 0.3 * like.n_tokens


def test_more_layers_than_the_source_are_no_copies_of_their_neighbours():
    mapped = source_layers(26, 58)
    assert np.all(np.diff(mapped.layer_M) != 0)
    assert len(set(zip(mapped.layer_M.tolist(), mapped.copy_M.tolist(), strict=True))) == 58
    assert np.abs(mapped.layer_M / 26 - np.arange(58) / 58).max() < 0.16
    assert set(mapped.layer_M) == set(range(26))
    assert source_layers(26, 13).layer_M.tolist() == list(range(1, 26, 2))


def test_a_sample_is_of_whole_sequences_and_the_same_for_any_batches():
    trace = uniform(tokens=24_000, sequences=240)
    samples = []
    for batch in (24_000, 500):
        sample = SequenceSample(most=3000)
        for start in range(0, trace.n_tokens, batch):
            sample.add(trace.select(slice(start, start + batch)))
        samples.append(sample.trace())
        assert sample.content_hash == trace.content_hash()
        assert sample.seen_tokens == 24_000
    assert samples[0].content_hash() == samples[1].content_hash()
    assert 2500 < samples[0].n_tokens <= 3000
    assert set(np.bincount(samples[0].sequence_T)) == {0, 100}


def test_few_long_sequences_count_as_more():
    trace = uniform(tokens=100_000, layers=1, experts=4, choices=1, sequences=2)
    result = made(trace, 60_000)
    _, length = np.unique(result.sequence_T, return_counts=True)
    assert set(length[:-1]) <= {8192, 50_000 % 8192}
    assert set(result.position_T[np.flatnonzero(np.diff(result.sequence_T)) + 1] % 8192) == {0}


def test_progress_ends_at_the_end():
    seen = []
    model = fit_trace(uniform(), progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (2400, 2400)
    list(synthesise(model, tokens=999, batch_tokens=100, progress=lambda done, of: seen.append((done, of))))
    assert seen[-1] == (999, 999)


@pytest.mark.parametrize("text", ["", "58x256", "axbxc", "1x2x3x4", "-1x4x2", "58 256 8", "1e3x4x2", "٣x4x2"])
def test_a_shape_is_three_numbers(text):
    with pytest.raises(MoecastError, match="layers x experts x choices"):
        parse_shape(text)


@pytest.mark.parametrize("text", ["0x4x2", "4x0x0", "4x4x5", "4x70000x2", "9999x4x2", "4x4x0"])
def test_a_shape_is_one_that_a_trace_can_have(text):
    with pytest.raises(MoecastError, match="shape"):
        parse_shape(text)


def test_a_shape_prints_as_it_is_read():
    assert str(parse_shape(" 58×256x8 ")) == "58x256x8"
    assert Shape(layers=1, experts=2, choices=1) == parse_shape("1x2x1")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"tokens": 0}, "tokens"),
        ({"tokens": 2**40}, "tokens"),
        ({"tokens": 5, "seed": -1}, "seed"),
        ({"tokens": 5, "topics": ("law",)}, "topics"),
        ({"tokens": 5, "topics": {"low": -1.0}}, "topics.low"),
        ({"tokens": 5, "topics": {"low": 0.0}}, "topics"),
    ],
)
def test_what_cannot_be_made_is_refused(asked, field):
    model = fit_trace(halves(of_topics=True))
    with pytest.raises(MoecastError, match=field):
        list(synthesise(model, **asked))


def test_a_shape_that_does_not_fit_in_memory_is_refused(monkeypatch):
    monkeypatch.setattr("moecast.traces.limits.available_bytes", lambda: 1 << 20)
    with pytest.raises(MoecastError, match=r"shape 50x64x8: needs 1\.831 MiB"):
        synthesise(fit_trace(uniform()), tokens=5, shape="50x64x8")


def test_more_experts_than_tables_of_pairs_can_hold():
    assert made(uniform(), 100, shape="3x5000x4").experts_TLK.max() > 4000


def test_too_little_to_fit_is_refused():
    with pytest.raises(MoecastError, match="8 sequences, there are 7"):
        fit_trace(uniform(tokens=70, sequences=7))
    with pytest.raises(MoecastError, match="of phase decode, there are 0"):
        fit_trace(uniform(), phase="decode")
    with pytest.raises(MoecastError, match="phase"):
        fit_trace(uniform(), phase="decoding")
    with pytest.raises(MoecastError, match="there are 0"):
        fit_trace([])
    with pytest.raises(ValueError, match="batch_tokens"):
        synthesise(fit_trace(uniform()), tokens=5, batch_tokens=0)


@pytest.mark.parametrize("shape", [None, "3x8x2", "5x2x1"])
def test_a_layer_without_any_choice_stays_so(shape):
    rows = np.full((240, 2, 2), NO_CHOICE)
    assert (made(trace_of(rows, experts=4), 100, shape=shape).experts_TLK == NO_CHOICE).all()


def test_sequences_of_one_token_can_be_fitted():
    result = made(trace_of(np.zeros((24, 2, 1), np.uint16), experts=4), 100)
    assert result.n_tokens == 100
    assert set(result.position_T) == {0}
