"""Recorded requests: the public formats, a user's own columns, and files that are none."""

from __future__ import annotations

import json

import pytest

from moecast.errors import MoecastError
from moecast.sim.serving import read_requests
from moecast.sim.serving.recorded import parse_columns

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,374,44
2023-11-16 18:17:04.0319600,396,109
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,Conversation log
"""


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_mooncake_has_milliseconds_and_prefixes(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 1500, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 9]},
        {"timestamp": 3000, "input_length": 600, "output_length": 8, "hash_ids": [4, 5]},
    ]
    found = read_requests(write(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows))))
    assert found.format == "Mooncake"
    assert [request.arrival_s for request in found.requests] == [0.0, 1.5, 3.0]
    assert [request.prefix_group for request in found.requests] == [0, 0, -1]
    assert [request.prefix_tokens for request in found.requests] == [1024, 1024, 0]


def test_azure_has_dates(tmp_path):
    found = read_requests(write(tmp_path, "a.csv", AZURE))
    assert [(r.prompt_tokens, r.output_tokens) for r in found.requests] == [(374, 44), (396, 109)]
    assert found.requests[1].arrival_s == pytest.approx(0.052)


def test_burstgpt_has_failures(tmp_path):
    found = read_requests(write(tmp_path, "b.csv", BURST))
    assert found.left_out == 1
    assert [request.arrival_s for request in found.requests] == [0.0, 113.0]


def test_own_columns(tmp_path):
    path = write(tmp_path, "own.csv", "t,in,out\n2000,7,3\n1000,5,2\n")
    found = read_requests(path, columns=parse_columns("arrival=t,prompt=in,output=out,per_s=1000"))
    assert [(r.id, r.arrival_s, r.prompt_tokens) for r in found.requests] == [(0, 0.0, 5), (1, 1.0, 7)]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("TIMESTAMP,tokens\n1,2\n", "none of the known columns"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "GeneratedTokens: the file has no such column, which Azure LLM inference's"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1e99,2\n", r"bad.csv: row 1, ContextTokens = '1e99'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,\n", r"row 1, GeneratedTokens = '': a request has a length"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2.5,3\n", r"row 1, ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,2,3\n", r"row 1, TIMESTAMP = 'soon': must be a time"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
    ],
)
def test_a_file_without_lengths_or_times_is_refused(tmp_path, text, rule):
    with pytest.raises(MoecastError, match=rule):
        read_requests(write(tmp_path, "bad.csv", text))


def test_a_line_that_is_no_json_is_named(tmp_path):
    with pytest.raises(MoecastError, match="line 2"):
        read_requests(write(tmp_path, "bad.jsonl", '{"timestamp": 1, "input_length": 1, "output_length": 1}\n{'))


@pytest.mark.parametrize("hashes", ["5", "[[1]]", '"ab"', '{"a": 1}', "[null]"])
def test_hashes_that_are_none_are_named(tmp_path, hashes):
    text = '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ' + hashes + "}"
    with pytest.raises(MoecastError, match=r"bad.jsonl: row 1, hash_ids = .*: a list of hashes"):
        read_requests(write(tmp_path, "bad.jsonl", text))


@pytest.mark.parametrize("text", ["arrival=t", "when=t,prompt=a,output=b", "arrival=t,prompt=a,output=b,per_s=0"])
def test_columns_that_say_too_little(text):
    with pytest.raises(MoecastError, match="--columns"):
        parse_columns(text)
