"""`moecast validate check`: results of other tools, read and laid beside the forecast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.sim import time_collective, usual_rung
from moecast.topology import load_cluster
from moecast.validate.results import read_nccl_tests, read_serving

VLLM: dict[str, Any] = {
    "model_id": "m", "max_concurrency": 16, "completed": 10, "total_input_tokens": 10_000,
    "total_output_tokens": 2000, "output_throughput": 800.0, "mean_ttft_ms": 100.0, "mean_tpot_ms": 10.0,
}  # fmt: skip
AIPERF: dict[str, Any] = {
    "inter_token_latency": {"unit": "ms", "avg": 10.0},
    "time_to_first_token": {"unit": "ms", "avg": 100.0},
    "input_sequence_length": {"unit": "tokens", "avg": 1000.0},
    "output_sequence_length": {"unit": "tokens", "avg": 200.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 800.0},
    "input_config": {"loadgen": {"concurrency": 16}},
}
GUIDELLM: dict[str, Any] = {
    "benchmarks": [
        {
            "metrics": {
                name: {"successful": {"mean": value}}
                for name, value in (
                    ("inter_token_latency_ms", 10.0),
                    ("time_to_first_token_ms", 100.0),
                    ("prompt_token_count", 1000),
                    ("output_token_count", 200),
                    ("output_tokens_per_second", 800.0),
                    ("request_concurrency", 16.0),
                )
            }
        }
    ]
}
NCCL = """# nccl-tests version 2.17.6 nccl-headers=22807 nccl-library=22807
# Collective test starting: alltoall_perf
# Using devices
#  Rank  0 Group  0 Pid    653 on a device  0 [0000:06:00] NVIDIA H200
#  Rank  1 Group  0 Pid    654 on a device  1 [0000:09:00] NVIDIA H200
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        131072     float    none      -1    25.10   41.77   20.88      0    24.90   42.11   21.05    N/A
     8388608       1048576     float    none      -1    45.00   186.4   93.20      0    44.90   186.8   93.41    N/A
# Avg bus bandwidth    : 57.1
"""


def saved(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize(("name", "value"), [("vllm bench serve", VLLM), ("AIPerf", AIPERF), ("GuideLLM", GUIDELLM)])
def test_formats_say_the_same(tmp_path: Path, name: str, value: object) -> None:
    (read,) = read_serving(saved(tmp_path / "r.json", value))
    assert read.format == name
    assert (read.tpot_s, read.ttft_s, read.concurrency) == (pytest.approx(0.01), pytest.approx(0.1), 16)
    assert read.in_flight == pytest.approx(8.0)
    assert read.context == 1100


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([], "a JSON object"),
        ({"a": 1}, "none of the fields mean_tpot_ms"),
        ({**VLLM, "mean_tpot_ms": "fast"}, "mean_tpot_ms = 'fast': a number"),
        ({**VLLM, "mean_tpot_ms": -1}, "tpot_s = -0.001: a positive number"),
        ({**VLLM, "completed": 0}, "completed = 0"),
        ({**AIPERF, "inter_token_latency": {"unit": "s", "avg": 1}}, "inter_token_latency.unit = 's': ms"),
        ({"benchmarks": []}, "benchmarks: empty"),
        ({"benchmarks": [{}]}, "benchmarks[0].metrics: an object"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, value: object, line: str) -> None:
    with pytest.raises(MoecastError) as error:
        read_serving(saved(tmp_path / "r.json", value))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_nccl_tests_are_timed_as_by_moecast_collective(tmp_path: Path) -> None:
    file = saved(tmp_path / "n.txt", NCCL)
    read = read_nccl_tests(file)
    assert (read.operation, read.ranks) == ("all-to-all", 2)
    assert read.rows == ((1048576, pytest.approx(25.1e-6)), (8388608, pytest.approx(45e-6)))
    ran = CliRunner().invoke(app, ["validate", "check", str(file), "--preset", "dgx-h200", "--json"])
    rows = json.loads(ran.stdout)["rows"]
    sizes = [1048576.0, 8388608.0]
    timed = time_collective(load_cluster("dgx-h200"), "all-to-all", sizes, ranks=2, rung=usual_rung(2))
    assert [row["predicted_s"] for row in rows] == pytest.approx([row.time_s for row in timed])
    assert rows[0]["low_s"] < rows[0]["predicted_s"] < rows[0]["high_s"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nothing", "no table of nccl-tests"),
        (NCCL.replace("alltoall_perf", "x"), "name it with --op"),
        ("algbw busbw all_reduce_perf", "no size with a time"),
        (NCCL.replace("25.10", "soon"), "a time in microseconds"),
    ],
)
def test_other_texts_are_refused(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(MoecastError, match=line):
        read_nccl_tests(saved(tmp_path / "n.txt", text))


def test_a_run_stands_beside_a_decode_step(tmp_path: Path) -> None:
    question = saved(
        tmp_path / "q.yaml", "cluster: dgx-h200\nmodel: deepseek-v2-lite\nengine: sglang\nplan: {tp: 8, ep: 8}\n"
    )
    result = saved(tmp_path / "r.json", VLLM)
    arguments = ["validate", "check", str(result), "--question", str(question)]
    (row,) = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)["rows"]
    assert row["measured_s"] == pytest.approx(0.01)
    assert row["error"] == pytest.approx(row["predicted_s"] / 0.01 - 1)
    assert "8 sequences a rank at 1,100 keys" in row["note"]
    assert "time to first token" in CliRunner().invoke(app, arguments).stdout


def test_a_run_without_a_question_is_one_line(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["validate", "check", str(saved(tmp_path / "r.json", VLLM))])
    assert isinstance(ran.exception, MoecastError) or ran.exit_code == 2
