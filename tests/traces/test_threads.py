"""Work on several threads: results in order, errors in their turn, and traces that read the same."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.threads import in_order, run_parts, thread_count
from moecast.traces import NO_CHOICE, TraceWriter, describe_trace, iter_trace, read_trace
from tests.traces.small import small


def sharded(folder, shards=3, groups=4, tokens=50, bad_shard=None):
    """A trace whose shards have several row groups each; one may hold an expert twice."""
    rng = np.random.default_rng(0)
    parts = []
    for shard in range(shards):
        ids = rng.permuted(np.tile(np.arange(9, dtype=np.uint16), (groups * tokens, 2, 1)), axis=2)[:, :, :3].copy()
        ids[rng.random(ids.shape) < 0.1] = NO_CHOICE
        topic_T = rng.integers(-1, 2, len(ids)).astype(np.int16)
        names = ("a", "b") if shard % 2 else ("b", "a")
        parts.append(small(len(ids), 2, 9, 3, experts_TLK=ids, topics=names, topic_T=topic_T))
    with TraceWriter(folder, parts[0].meta, shard_tokens=groups * tokens) as writer:
        writer._row_group_tokens = tokens  # what a smaller limit would do, without a large trace
        for part in parts:
            writer.append(part)
    if bad_shard is not None:
        path = sorted(folder.iterdir())[bad_shard]
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        path.write_bytes(data)
    return folder


@pytest.mark.parametrize("batch_tokens", [7, 50, 130, None])
def test_a_trace_reads_the_same_on_any_number_of_threads(tmp_path, monkeypatch, batch_tokens):
    folder = sharded(tmp_path / "t")
    read = []
    for threads in (1, 2, 5):
        monkeypatch.setenv("MOECAST_THREADS", str(threads))
        batches = list(iter_trace(folder, batch_tokens=batch_tokens))
        assert max(batch.n_tokens for batch in batches) <= (batch_tokens or 10**9)
        assert sum(batch.n_tokens for batch in batches) == 600
        read.append([(batch.topics, {k: v.tolist() for k, v in batch.columns().items()}) for batch in batches])
        assert read_trace(folder).topics == batches[-1].topics
        assert describe_trace(folder).tokens == 600
    assert read[0] == read[1] == read[2]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_stands_before_the_damage_is_read(tmp_path, monkeypatch, threads):
    monkeypatch.setenv("MOECAST_THREADS", str(threads))
    folder = sharded(tmp_path / "t", bad_shard=1)
    got = []
    with pytest.raises(MoecastError, match=r"part-00001\.parquet"):
        got.extend(iter_trace(folder, batch_tokens=50))
    assert 200 <= sum(batch.n_tokens for batch in got) < 400


def test_a_reader_left_alone_ends_its_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("MOECAST_THREADS", "3")
    before = threading.active_count()
    batches = iter_trace(sharded(tmp_path / "t"), batch_tokens=50)
    assert next(batches).n_tokens == 50
    batches.close()
    assert threading.active_count() == before


def test_results_come_in_order_and_errors_in_their_turn():
    def call(i):
        if i == 5:
            raise KeyError(i)
        return i

    got = []
    with pytest.raises(KeyError):
        got.extend(in_order((lambda i=i: call(i) for i in itertools.count()), 3))
    assert got == [0, 1, 2, 3, 4]
    assert run_parts([lambda i=i: i for i in range(4)]) == [0, 1, 2, 3]


def test_no_more_is_read_ahead_than_there_are_threads():
    asked = []

    def calls():
        for i in range(20):
            asked.append(i)
            yield lambda i=i: i

    for result in in_order(calls(), 3):
        assert len(asked) <= result + 1 + 3


def test_the_number_of_threads_is_the_cores_unless_set(monkeypatch):
    monkeypatch.delenv("MOECAST_THREADS", raising=False)
    assert 1 <= thread_count() <= 8
    monkeypatch.setenv("MOECAST_THREADS", "12")
    assert thread_count() == 12


STREAM = """
import resource, sys
import numpy as np
from moecast.traces import TraceMeta, RoutingTrace, TraceWriter, contiguous_ranks_LE, iter_trace, trace_stats
tokens, path = int(sys.argv[1]), sys.argv[2]
meta = TraceMeta(model="m", layers=8, experts=64, choices=8)
rng = np.random.default_rng(0)
n = 20_000
ids = rng.permuted(np.tile(np.arange(64, dtype=np.uint16), (n, 8, 1)), axis=2)[:, :, :8].copy()
with TraceWriter(path, meta) as writer:
    for first in range(0, tokens, n):
        row_T = np.arange(first, first + n, dtype=np.uint32)
        writer.append(RoutingTrace(meta=meta, experts_TLK=ids, sequence_T=row_T // 256, position_T=row_T % 256,
                                   phase_T=np.ones(n, np.uint8), topic_T=np.full(n, -1, np.int16)))
stats = trace_stats(iter_trace(path), rank_of_expert_LE=contiguous_ranks_LE(meta, 8), coactivation=True)
print(stats.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trace(tmp_path):
    """Two million tokens hold 256 MB of choices; writing and counting them takes no more than two row groups more."""
    peak_kib = {}
    for tokens in (600_000, 2_400_000):
        command = [sys.executable, "-c", STREAM, str(tokens), str(tmp_path / str(tokens))]
        counted, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(counted) == tokens
        peak_kib[tokens] = int(peak)
    assert peak_kib[2_400_000] - peak_kib[600_000] < 64 << 10
