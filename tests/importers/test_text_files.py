"""Responses as tools save them: byte-order marks, blank lines, other line ends; wrappings that are named, not read."""

import base64
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from moecast.cli.trace import app
from moecast.errors import MoecastError
from moecast.traces import ImportOptions, import_trace

OPTIONS = ImportOptions(experts=8)


@pytest.fixture(scope="module")
def lines():
    """Three responses of vLLM's split layout."""
    rng = np.random.default_rng(0)
    records = []
    for prompt, generated in ((3, 2), (1, 4), (5, 1)):
        choices_TRK = np.argsort(rng.random((prompt + generated, 2, 8)), axis=2)[:, :, :2]
        records.append(
            {
                "prompt_routed_experts": choices_TRK[:prompt].tolist(),
                "choices": [{"routed_experts": choices_TRK[prompt:].tolist()}],
            }
        )
    return [json.dumps(record) for record in records]


@pytest.mark.parametrize(
    ("begin", "end"),
    [("\ufeff", "\n"), ("\n \n", "\n"), ("\ufeff\n", "\n"), ("", "\r\n"), ("\r\n", "\r\n"), ("", "\n\n")],
)
@pytest.mark.parametrize("document", [False, True])
def test_the_same_text_saved_otherwise_is_the_same_trace(lines, tmp_path, begin, end, document):
    plain, saved = tmp_path / "plain.jsonl", tmp_path / "saved.jsonl"
    plain.write_text("\n".join(lines))
    text = f"[{end}{(',' + end).join(lines)}{end}]{end}" if document else end.join(lines) + end
    saved.write_text(begin + text, encoding="utf-8", newline="")
    assert import_trace(saved, OPTIONS).content_hash() == import_trace(plain, OPTIONS).content_hash()


def test_a_line_is_named_by_its_number_in_the_file(lines, tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text("\n\n" + lines[0] + "\n" + lines[1][:-5])
    with pytest.raises(MoecastError, match="line 4: not whole JSON"):
        import_trace(path, OPTIONS)


@pytest.mark.parametrize(
    ("begin", "rule"),
    [
        (b"\x1f\x8b", "compressed by gzip: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
        ("\ufeff".encode("utf-16-le"), "is UTF-16 text: convert it to UTF-8 first"),
        (b"PAR1", "is Parquet: a moecast trace needs no import"),
        (b"x", "no importer knows this file; there are: npz, vllm"),
    ],
)
def test_a_wrapping_is_named(lines, tmp_path, begin, rule):
    path = tmp_path / "t.jsonl"
    path.write_bytes(begin + "\n".join(lines).encode())
    with pytest.raises(MoecastError, match=rule) as caught:
        import_trace(path, OPTIONS)
    assert str(path) in str(caught.value)


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.touch()
    with pytest.raises(MoecastError, match="is empty"):
        import_trace(path)


def test_a_folder_of_other_names_is_named(lines, tmp_path):
    (tmp_path / "responses.jsonl").write_text("\n".join(lines))
    with pytest.raises(MoecastError, match="no importer knows this folder by the names in it: name its files"):
        import_trace(tmp_path, OPTIONS)


ERRORS = (
    '{"error": {"message": "timed out", "type": "TimeoutError", "code": 408}}',
    '{"object": "error", "message": "too long", "code": 400}',
)


@pytest.mark.parametrize("places", [(0,), (1, 2), (3,), (0, 1, 2, 3)])
def test_errors_in_the_place_of_answers_are_left_out_and_noted(lines, tmp_path, places):
    mixed = list(lines)
    for place in sorted(places, reverse=True):
        mixed.insert(place, ERRORS[place % 2])
    plain, path = tmp_path / "plain.jsonl", tmp_path / "mixed.jsonl"
    plain.write_text("\n".join(lines))
    path.write_text("\n".join(mixed))
    trace = import_trace(path, OPTIONS)
    assert trace.content_hash() == import_trace(plain, OPTIONS).content_hash()
    named = [f"line {number}" for number, line in enumerate(mixed, start=1) if line in ERRORS]
    assert "errors and no answers" in trace.meta.notes
    assert all(name in trace.meta.notes for name in named)


def test_aborted_requests_of_sglang_are_left_out_and_noted(tmp_path):
    aborted = '{"text": "", "meta_info": {"id": "7", "finish_reason": {"type": "abort", "message": "gone"}}}'
    routed = base64.b64encode(np.arange(12, dtype="<i4").tobytes()).decode()  # 3 tokens, 2 layers, 2 choices
    info = {"prompt_tokens": 2, "completion_tokens": 2, "routed_experts": routed, "finish_reason": {"type": "stop"}}
    path = tmp_path / "generate.jsonl"
    path.write_text("\n".join([aborted, json.dumps({"text": "a", "meta_info": info}), aborted]))
    trace = import_trace(path, ImportOptions(experts=12, choices=2, hidden_layers=2))
    assert trace.n_tokens == 3
    assert "errors and no answers: line 1, line 3" in trace.meta.notes


def test_an_answer_without_routing_is_no_error_of_the_server(lines, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([*lines, '{"choices": [{"text": "no routing"}]}']))
    with pytest.raises(MoecastError, match="line 4: holds no routed_experts"):
        import_trace(path, OPTIONS)


def test_a_guessed_number_of_experts_is_a_warning(lines, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))
    for options, warned in ((["--experts", "9"], False), ([], True)):
        command = ["import", str(path), "--out", str(tmp_path / f"{warned}.parquet"), "--json", *options]
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert ("warning: E = 8 is taken from the highest expert id" in result.stderr) == warned
        assert json.loads(result.stdout)["experts"] == (8 if warned else 9)
