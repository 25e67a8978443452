"""Files that are not what they claim to be: every one fails in one line."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moecast.errors import MoecastError
from moecast.traces import iter_trace, read_trace, write_trace
from tests.traces.small import small


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "t.parquet"
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(16, dtype=np.uint16), (500, 3, 1)), axis=2)[:, :, :4].copy()
    write_trace(
        small(500, 3, 16, 4, experts_TLK=ids, topics=("a", "b"), topic_T=rng.integers(-1, 2, 500).astype(np.int16)),
        path,
    )
    return path


def rewrite(good, path, **changes):
    """A copy of a good file with columns or metadata changed: what a foreign writer may do."""
    table = pq.read_table(good)
    metadata = dict(table.schema.metadata)
    for name, value in changes.items():
        if name.startswith("moecast_"):
            key = name.replace("_", ".", 1).encode()
            metadata.pop(key) if value is None else metadata.update({key: value})
        elif value is None:
            table = table.drop_columns([name])
        elif name in table.column_names:
            table = table.set_column(table.schema.get_field_index(name), name, value)
        else:
            table = table.append_column(name, value)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def binary(rows, width):
    return pa.array(rows, pa.binary(width))


ROW = np.tile(np.arange(4, dtype="<u2"), 3)


def rows_with(index, value):
    row = ROW.copy()
    row[index] = value
    return binary([ROW.tobytes()] * 499 + [row.tobytes()], 24)


BAD_COLUMNS = {
    "an id out of range": ({"experts": rows_with(5, 16)}, "token 499, layer 1: expert 16 is outside 0…15"),
    "an expert twice": ({"experts": rows_with(11, 2)}, "token 499, layer 2: expert 2 is chosen twice"),
    "null experts": ({"experts": pa.array([ROW.tobytes()] * 499 + [None], pa.binary(24))}, "must not be null"),
    "experts of another width": (
        {"experts": binary([ROW.tobytes()[:22]] * 500, 22)},
        r"must be fixed_size_binary\[24\]",
    ),
    "experts as lists": ({"experts": pa.array([[1, 2]] * 500)}, "must be fixed_size_binary"),
    "no experts": ({"experts": None}, "experts: the column is missing"),
    "no topic column": ({"topic": None}, "topic: the column is missing"),
    "signed sequence": ({"sequence": pa.array(range(500), pa.int32())}, "sequence = 'int32': must be uint32"),
    "null position": ({"position": pa.array([None] * 500, pa.uint32())}, "position: must not be null"),
    "step in half the rows": (
        {"step": pa.array([None, 1] * 250, pa.uint32())},
        "step: must be known for all tokens of a trace or null for all",
    ),
    "an unknown phase": ({"phase": pa.array(["warmup"] * 500)}, "phase = 'warmup': must be one of train, prefill"),
    "a null phase": ({"phase": pa.array([None] * 500, pa.string())}, "phase: must not be null"),
    "numbers as topics": ({"topic": pa.array(range(500))}, "topic = 'int64': must be dictionary"),
    "infinite weights": ({"weights": binary([np.full(12, np.inf, "<f2").tobytes()] * 500, 24)}, "finite"),
    "no schema key": ({"moecast_schema": None}, "not a moecast routing trace"),
    "a later schema": ({"moecast_schema": b"99"}, "schema = 99: this moecast reads version 1"),
    "no K": ({"moecast_choices": None}, "choices = None"),
    "a huge L": ({"moecast_layers": b"99999999"}, "layers = 99999999"),
    "an L of true": ({"moecast_layers": b"true"}, "layers = True"),
    "metadata that is no JSON": ({"moecast_experts": b"{"}, "experts: not JSON"),
    "nested metadata": ({"moecast_config": b"[" * 100_000}, "config: not JSON"),
    "metadata with infinities": ({"moecast_config": b'{"a": Infinity}'}, "config: not JSON"),
    "a config that is a list": ({"moecast_config": b"[]"}, "config: must be a JSON object"),
    "layer ids of text": ({"moecast_layer_ids": b'["a", "b", "c"]'}, "layer_ids: must be a list of whole numbers"),
    "too few layer ids": ({"moecast_layer_ids": b"[1]"}, "layer_ids"),
    "a model name that is no text": ({"moecast_model": b"\xff\xfe"}, "metadata"),
    "sizes that do not fit the column": ({"moecast_choices": b"5"}, r"must be fixed_size_binary\[30\]"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_foreign_files_fail_in_one_line(good, tmp_path, case):
    changes, rule = BAD_COLUMNS[case]
    path = tmp_path / "bad.parquet"
    rewrite(good, path, **changes)
    with pytest.raises(MoecastError, match=rule) as failure:
        read_trace(path, weights="weights" in changes)
    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith(str(path))


def test_plain_text_columns_are_read_like_dictionaries(good, tmp_path):
    phases = pa.array(["prefill"] * 500, pa.large_string())
    topics = pa.array(["law", None] * 250)
    rewrite(good, tmp_path / "t.parquet", phase=phases, topic=topics)
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.topics == ("law",)
    assert trace.topic_T[:4].tolist() == [0, -1, 0, -1]


def test_every_truncation_fails_in_one_line(good, tmp_path):
    whole, path = good.read_bytes(), tmp_path / "t.parquet"
    for length in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(MoecastError, match="Parquet"):
            read_trace(path)


def test_damage_never_passes_unnoticed(good, tmp_path):
    whole, path = good.read_bytes(), tmp_path / "t.parquet"
    before = read_trace(good)
    rng = np.random.default_rng(1)
    unnoticed = 0
    for place in rng.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            trace = read_trace(path)
        except MoecastError:
            continue
        # Page checksums guard the columns; a bit of the footer's statistics or version may flip without effect.
        assert trace.content_hash() == before.content_hash()
        unnoticed += 1
    assert unnoticed < 60


def test_other_files_and_missing_ones(tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    text = tmp_path / "text.parquet"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    for path, rule in (
        (other, "not a moecast routing trace"),
        (text, "not a Parquet file"),
        (tmp_path / "none.parquet", "no such file"),
        (tmp_path / "empty", "holds no .parquet files"),
    ):
        with pytest.raises(MoecastError, match=rule):
            read_trace(path)


def test_shards_of_different_traces_are_refused(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_trace(small(), folder / "a.parquet")
    write_trace(small(layers=3), folder / "b.parquet")
    with pytest.raises(MoecastError, match=r"b\.parquet.*the trace's first shard says \(2, 4, 2\)"):
        read_trace(folder)
    write_trace(small(step_T=np.zeros(4, np.uint32)), folder / "b.parquet")
    with pytest.raises(MoecastError, match="step: must be known for all tokens"):
        read_trace(folder)


def test_a_trace_larger_than_memory_is_refused_before_it_is_read(good, monkeypatch):
    monkeypatch.setattr("moecast.traces.limits.available_bytes", lambda: 10_000)
    with pytest.raises(MoecastError, match=r"needs .* of memory, .* are free: read it with iter_trace"):
        read_trace(good)
    assert sum(batch.n_tokens for batch in iter_trace(good)) == 500
