"""SGLang: what its expert-distribution recorder dumps, and the routing that its server returns.

The recorder's ``.pt`` files are read by `sglang_recorder`. Returned routing
(``--enable-return-routed-experts``, and ``return_routed_experts: true`` in the request;
sgl-project/sglang, srt/state_capturer/routed_experts.py and srt/entrypoints/openai/protocol.py,
0.5.23; before, srt/layers/moe/routed_experts_capturer.py, commit 0837e91) is
`meta_info.routed_experts` of ``/generate``. The OpenAI server has it in `sglext` of the response,
for the first choice, or in `sgl_ext` of each choice as its documentation says. It is base64 of
int32 [tokens, hidden layers, k], prompt and generated tokens but the last, from
`routed_experts_start_len` on. It says neither the layers nor k, so that the model's config is
needed; dense layers are zeros. Read from JSON and JSON lines of responses. Axes: T token, R row, K
choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecast.errors import MoecastError
from moecast.traces.importers.arrays import array_of_lists, bytes_of_base64
from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.json_records import Record, beginning, json_records, whole_number
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Ints, Piece
from moecast.traces.importers.requests import Completion, Request, answered, request_piece
from moecast.traces.importers.sglang_recorder import open_recorder, recorder_files
from moecast.traces.importers.torch_file import looks_like_torch
from moecast.traces.load_table import LoadTable

_LAYOUT = Layout(importer="sglang", engine="SGLang, returned routed experts", rows="hidden", zeros_are_empty=True)
_ROUTED = re.compile(rb'"routed_experts"\s*:')
_OURS = re.compile(rb'"(meta_info|sgl_ext|sglext)"\s*:')


class SglangImporter:
    """Reads the recorder's dumps and responses with routing."""

    name = "sglang"

    def recognises(self, path: Path) -> bool:
        """A file of `torch.save`, a folder of the recorder's, or JSON with SGLang's fields."""
        if path.is_dir():
            return bool(recorder_files(path))
        if looks_like_torch(path):
            return True
        text = beginning(path)
        return bool(_OURS.search(text) and _ROUTED.search(text))

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace | LoadTable:
        """Take the recorder's tokens or counts, or the responses one after the other."""
        files = [file for path in paths for file in (recorder_files(path) if path.is_dir() else [path])]
        if not files:
            raise MoecastError("holds no expert_distribution_recorder_*.pt", file=paths[0])
        recorded = [not beginning(file) for file in files]
        if all(recorded):
            return open_recorder(files, options)
        if any(recorded):
            rule = "recorder dumps and responses cannot be joined"
            raise MoecastError(rule, file=files[recorded.index(True)])

        def pieces() -> Iterator[Piece]:
            for path in files:
                for record in answered(json_records(path, limit_bytes=options.most_bytes)):
                    yield request_piece(_request(path, record, options), options)

        return assemble(files, pieces, _LAYOUT, options)


def _request(path: Path, record: Record, options: ImportOptions) -> Request:
    """A response of ``/generate``, or of the OpenAI server."""
    value, where = record.value, record.where
    info = _dict(value.get("meta_info"))
    choices = value.get("choices")
    if choices is None:
        told = whole_number(info.get("completion_tokens"))
        completions = [Completion(_choices(info.get("routed_experts"), path, where, options), None, told)]
        usage = info
    else:
        if type(choices) is not list or any(type(choice) is not dict for choice in choices):
            raise MoecastError("choices must be a list of objects", file=path, field=where)
        usage = _dict(value.get("usage"))
        told = whole_number(usage.get("completion_tokens")) if len(choices) == 1 else None
        routed = [_routed(choice) for choice in choices]
        if routed and not any(routed):
            routed[0] = _routed(value)  # the response has one for its first choice
        completions = [Completion(_choices(one, path, where, options), None, told) for one in routed]
    ids_of_response = value.get("input_ids", _dict(value.get("sglext")).get("input_ids"))
    prompt_ids = value.get("prompt_token_ids", ids_of_response)
    prompt = whole_number(usage.get("prompt_tokens"))
    if type(value.get("output_ids")) is list and choices is None:
        ids = array_of_lists(value["output_ids"], 1, path, where)
        if told is None or told == len(ids):
            completions = [Completion(completions[0].choices_TRK, ids)]
    details = _dict(usage.get("prompt_tokens_details"))
    cached = whole_number(usage.get("cached_tokens", details.get("cached_tokens")))
    sentence = "Prompt tokens out of the prefix cache have the routing of the run that filled it; responses with some"
    return Request(
        path=path,
        where=where,
        completions=tuple(completions),
        prompt_ids=array_of_lists(prompt_ids, 1, path, where) if type(prompt_ids) is list else None,
        prompt_tokens=prompt,
        remarks=(*record.remarks, *(((sentence, where),) if cached else ())),
        done=record.done,
    )


def _routed(choice: dict[str, Any]) -> Any:
    for name in ("sgl_ext", "sglext", "meta_info"):
        value = _dict(choice.get(name)).get("routed_experts")
        if value is not None:
            return value
    return None


def _choices(value: Any, path: Path, where: str, options: ImportOptions) -> Ints | None:
    """[tokens, hidden layers, k] of base64."""
    if value is None:
        return None
    if type(value) is not str:
        raise MoecastError("routed_experts must be base64 text", file=path, field=where)
    if options.hidden_layers is None or options.choices is None:
        rule = "SGLang does not say how many layers and choices the ids are of: give --config or --model (a preset)"
        raise MoecastError(rule, file=path)
    data, token_bytes = bytes_of_base64(value, path, where), 4 * options.hidden_layers * options.choices
    if len(data) % token_bytes:
        rule = f"{len(data)} bytes are not int32 of {options.hidden_layers} layers and {options.choices} choices"
        raise MoecastError(rule, file=path, field=where)
    return np.frombuffer(data, "<i4").reshape(-1, options.hidden_layers, options.choices)


def _dict(value: Any) -> dict[str, Any]:
    return value if type(value) is dict else {}
