import dataclasses
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.traces import (
    PHASES,
    RoutingTrace,
    TraceMeta,
    TraceWriter,
    concatenate,
    count_tokens,
    hash_trace,
    iter_trace,
    read_meta,
    read_trace,
    write_trace,
)
from tests.strategies import traces
from tests.traces.small import small

PROPERTY = settings(deadline=None, max_examples=25)


def same(one: RoutingTrace, two: RoutingTrace) -> bool:
    if one.columns().keys() != two.columns().keys():
        return False
    equal = all(np.array_equal(array, getattr(two, name)) for name, array in one.columns().items() if name != "topic_T")
    return equal and topic_names(one) == topic_names(two)


def topic_names(trace):
    return [trace.topics[i] if i >= 0 else None for i in trace.topic_T]


@PROPERTY
@given(traces(tokens=(0, 40)))
def test_a_file_gives_back_what_was_written(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    write_trace(trace, path)
    back = read_trace(path, weights=trace.weights_TLK is not None)
    if trace.n_tokens:
        assert same(back, trace)
    assert back.meta == trace.meta
    assert count_tokens(path) == trace.n_tokens


def test_metadata_survives(tmp_path):
    meta = TraceMeta(
        model="möe",
        layers=2,
        experts=4,
        choices=2,
        config={"num_experts": 4, "nested": {"a": [1, None]}},
        layer_ids=(1, 3),
        source={"hardware": "H200", "commit": "abc"},
        notes="two\nlines",
    )
    write_trace(dataclasses.replace(small(), meta=meta), tmp_path / "t.parquet")
    assert read_meta(tmp_path / "t.parquet") == meta


@PROPERTY
@given(traces(), st.data())
def test_shards_and_batches_do_not_change_the_trace(tmp_path_factory, trace, data):
    folder = tmp_path_factory.mktemp("t") / "shards"
    weights = trace.weights_TLK is not None
    shard_tokens = data.draw(st.integers(trace.n_tokens // 5 + 1, trace.n_tokens + 1))
    step, batch = (data.draw(st.integers(1, trace.n_tokens + 1)) for _ in range(2))
    with TraceWriter(folder, trace.meta, shard_tokens=shard_tokens) as writer:
        for start in range(0, trace.n_tokens, step):
            writer.append(trace.select(slice(start, start + step)))
    shards = sorted(folder.iterdir())
    assert len(shards) == -(-trace.n_tokens // shard_tokens)
    assert all(pq.ParquetFile(shard).metadata.num_rows <= shard_tokens for shard in shards)
    streamed = list(iter_trace(folder, weights=weights, batch_tokens=batch))
    assert max(part.n_tokens for part in streamed) <= batch
    assert same(concatenate(streamed), trace)
    assert same(read_trace(folder, weights=weights), trace)
    assert hash_trace(folder) == trace.content_hash()
    assert all(streamed[-1].topics[: len(part.topics)] == part.topics for part in streamed)


@PROPERTY
@given(traces(), st.data())
def test_filters_select_phases_and_topics(tmp_path_factory, trace, data):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    write_trace(trace, path)
    phase = data.draw(st.sampled_from([None, *sorted({PHASES[i] for i in trace.phase_T})]))
    present = sorted({trace.topics[i] for i in trace.topic_T if i >= 0})
    topics = data.draw(st.one_of(st.none(), st.sets(st.sampled_from(present), min_size=1))) if present else None
    keep_T = np.ones(trace.n_tokens, bool)
    if phase is not None:
        keep_T &= trace.phase_T == PHASES.index(phase)
    if topics is not None:
        keep_T &= np.array([name in topics for name in topic_names(trace)])
    if not keep_T.any():
        with pytest.raises(MoecastError, match="the trace has"):
            read_trace(path, phase=phase, topics=topics)
        return
    try:
        filtered = read_trace(path, phase=phase, topics=topics)
    except MoecastError as error:  # a topic that this phase does not have
        assert "topic" in str(error)  # noqa: PT017
        return
    assert filtered.content_hash() == trace.select(keep_T).content_hash()


def test_unknown_phases_and_topics_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(small(topics=("law",), topic_T=np.zeros(4, np.int16)), path)
    with pytest.raises(MoecastError, match="'code': the trace has law"):
        read_trace(path, topics=["code"])
    with pytest.raises(MoecastError, match="'decode': the trace has prefill"):
        read_trace(path, phase="decode")
    with pytest.raises(MoecastError, match="must be one of train, prefill, decode"):
        read_trace(path, phase="warmup")
    with pytest.raises(MoecastError, match="no gate weights"):
        read_trace(path, weights=True)


def test_streaming_holds_one_batch(tmp_path):
    tokens, layers, choices = 40_000, 16, 8  # 10 MB of choices in one row group
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((tokens, layers, 16), np.float32), axis=2)[:, :, :choices].astype(np.uint16)
    trace = small(tokens, layers, 16, choices, experts_TLK=experts)
    path = tmp_path / "t.parquet"
    write_trace(trace, path)
    held = [pa.total_allocated_bytes() for _ in iter_trace(path, batch_tokens=1000)]
    assert len(held) >= 40
    assert max(held) < trace.experts_TLK.nbytes / 2


def test_reader_copies_nothing_in_a_batch(tmp_path):
    write_trace(small(1000), tmp_path / "t.parquet")
    (batch,) = iter_trace(tmp_path / "t.parquet")
    assert not batch.experts_TLK.flags.owndata


def test_reading_does_not_import_pandas():
    """Half a second that every command would pay: pyarrow imports it where it can."""
    code = (
        "import sys\n"
        "from moecast.traces import read_trace, shipped_trace_path\n"
        "assert read_trace(shipped_trace_path('none')).n_tokens\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
