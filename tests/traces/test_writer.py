import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.traces import TraceWriter, read_trace, write_trace
from tests.traces.small import small

ROOT = Path(__file__).resolve().parents[2]


def test_writer_copies_what_it_is_given(tmp_path):
    experts = np.tile(np.array([0, 1], np.uint16), (4, 2, 1))
    with TraceWriter(tmp_path / "t.parquet", small().meta) as writer:
        writer.append(small(experts_TLK=experts))
        experts[...] = 3
    assert read_trace(tmp_path / "t.parquet").content_hash() == small().content_hash()


def test_writer_refuses_batches_that_do_not_fit(tmp_path):
    with TraceWriter(tmp_path / "shards", small().meta) as writer:
        writer.append(small())
        with pytest.raises(ValueError, match="L, E, K"):
            writer.append(small(layers=3))
        with pytest.raises(ValueError, match="step_T"):
            writer.append(small(step_T=np.zeros(4, np.uint32)))
        with pytest.raises(ValueError, match="token 0, layer 0: expert 1 is chosen twice"):
            writer.append(small(experts_TLK=np.ones((4, 2, 2), np.uint16)))
    assert read_trace(tmp_path / "shards").n_tokens == 4


def append_both(writer, one, two):
    writer.append(one)
    writer.append(two)


def test_an_exception_leaves_no_file_but_keeps_shards(tmp_path):
    for name in ("t.parquet", "shards"):
        with pytest.raises(ValueError, match="L, E, K"), TraceWriter(tmp_path / name, small().meta) as writer:
            append_both(writer, small(), small(layers=3))
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    assert read_trace(tmp_path / "shards").content_hash() == small().content_hash()


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(small(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="twice"):
        write_trace(small(experts_TLK=np.ones((4, 2, 2), np.uint16)), path)
    assert path.read_bytes() == before
    write_trace(small(tokens=9), path)
    assert read_trace(path).n_tokens == 9
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_use_and_a_path_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x").write_text("")
    (tmp_path / "file").write_text("")
    for path, rule in (
        ("shards", "holds something already"),
        ("file", "is a file"),
        ("none/t.parquet", "does not exist"),
        ("none/shards", "does not exist"),
    ):
        with pytest.raises(MoecastError, match=rule):
            TraceWriter(tmp_path / path, small().meta)
    with pytest.raises(ValueError, match="shard_tokens"):
        TraceWriter(tmp_path / "new", small().meta, shard_tokens=0)


def test_an_empty_trace_is_readable(tmp_path):
    for name in ("t.parquet", "shards"):
        with TraceWriter(tmp_path / name, small().meta):
            pass
        back = read_trace(tmp_path / name)
        assert back.n_tokens == 0
        assert back.meta == small().meta


KILLED = """
import sys
import numpy as np
from moecast.traces import TraceWriter
from tests.traces.small import small
trace = small(tokens=50)
with TraceWriter(sys.argv[1], trace.meta, shard_tokens=120) as writer:
    while True:
        writer.append(trace)
"""


def test_a_killed_capture_leaves_a_readable_trace(tmp_path):
    folder = tmp_path / "shards"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("part-*"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    left = list(folder.glob("part-*"))
    assert len(left) >= 5
    trace = read_trace(folder)
    assert trace.n_tokens == 120 * len(left)
    assert (trace.experts_TLK == [0, 1]).all()


FULL_DISK = """
import resource, sys
import numpy as np
from moecast.errors import MoecastError
from moecast.traces import write_trace
from tests.traces.small import small
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
ids = np.tile(np.arange(64, dtype=np.uint16), (20_000, 2, 1))
ids = np.random.default_rng(0).permuted(ids, axis=2)[:, :, :4].copy()
try:
    write_trace(small(20_000, 2, 64, 4, experts_TLK=ids), sys.argv[1])
except MoecastError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "t.parquet")], cwd=ROOT, capture_output=True, text=True
    )
    assert "t.parquet: cannot be written" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
