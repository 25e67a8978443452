import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from moecast.errors import MoecastError
from moecast.traces import (
    NO_CHOICE,
    PHASES,
    TraceWriter,
    describe_trace,
    export_lists,
    iter_trace,
    read_trace,
    shipped_trace_path,
    write_trace,
)
from tests.strategies import traces
from tests.traces.small import small


@settings(deadline=None, max_examples=20)
@given(traces())
def test_counts_by_phase_and_topic(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    write_trace(trace, path)
    info = describe_trace(path)
    assert info.tokens == sum(part.tokens for part in info.parts) == trace.n_tokens
    assert info.sequences == len(np.unique(trace.sequence_T))
    for part in info.parts:
        topic = -1 if part.topic is None else trace.topics.index(part.topic)
        members = (trace.phase_T == PHASES.index(part.phase)) & (trace.topic_T == topic)
        assert part.tokens == members.sum()
        assert part.sequences == len(np.unique(trace.sequence_T[members]))
    assert info.steps == (None if trace.step_T is None else len(np.unique(trace.step_T)))
    assert info.source_ranks == (None if trace.source_rank_T is None else len(np.unique(trace.source_rank_T)))
    recorded = {"step": trace.step_T, "source_rank": trace.source_rank_T, "token_id": trace.token_id_T}
    recorded["weights"] = trace.weights_TLK
    assert set(info.columns) == {name for name, array in recorded.items() if array is not None}
    assert info.meta == trace.meta
    assert info.file_bytes == path.stat().st_size
    assert info.choice_bytes == trace.experts_TLK.nbytes


def test_unfinished_shards_are_counted_and_not_read(tmp_path):
    folder = tmp_path / "shards"
    with TraceWriter(folder, small().meta, shard_tokens=2) as writer:
        writer.append(small())
    (folder / ".part-00002.parquet.x.part").write_bytes(b"PAR1 and half of something")
    info = describe_trace(folder)
    assert (info.shards, info.unfinished_shards, info.tokens) == (2, 1, 4)


def test_progress_reaches_the_end(tmp_path):
    folder, seen = tmp_path / "shards", []
    with TraceWriter(folder, small().meta, shard_tokens=3) as writer:
        writer.append(small())
    describe_trace(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]
    seen.clear()
    list(iter_trace(folder, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(3, 4), (4, 4)]


@settings(deadline=None, max_examples=20)
@given(traces(tokens=(0, 30)))
def test_lists_hold_the_same_choices(tmp_path_factory, trace):
    folder = tmp_path_factory.mktemp("t")
    write_trace(trace, folder / "t.parquet")
    assert export_lists(folder / "t.parquet", folder / "lists.parquet") == trace.n_tokens
    table = pq.read_table(folder / "lists.parquet")
    assert table.schema.field("experts").type == pa.list_(pa.list_(pa.uint16()))
    lists = [[[NO_CHOICE if e is None else e for e in layer] for layer in row] for row in table["experts"].to_pylist()]
    assert lists == trace.experts_TLK.tolist()
    assert table["sequence"].to_pylist() == trace.sequence_T.tolist()
    if trace.weights_TLK is not None and trace.n_tokens:
        kept = np.array(table["weights"].to_pylist(), float)
        chosen = trace.experts_TLK != NO_CHOICE
        np.testing.assert_array_equal(kept[chosen], trace.weights_TLK[chosen].astype(float))
        assert np.isnan(kept[~chosen]).all()
    with pytest.raises(MoecastError, match="not a moecast routing trace"):
        read_trace(folder / "lists.parquet")


def test_export_needs_a_trace_and_a_place(tmp_path):
    write_trace(small(), tmp_path / "t.parquet")
    with pytest.raises(MoecastError, match="does not exist"):
        export_lists(tmp_path / "t.parquet", tmp_path / "none" / "lists.parquet")
    with pytest.raises(MoecastError, match="no such file"):
        export_lists(tmp_path / "none.parquet", tmp_path / "lists.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_trace_that_is_not_shipped():
    with pytest.raises(MoecastError, match="'nothing'"):
        shipped_trace_path("nothing")


def test_replacing_the_metadata_keeps_the_tokens():
    trace = small()
    named = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, model="other"))
    assert named.content_hash() == trace.content_hash()
