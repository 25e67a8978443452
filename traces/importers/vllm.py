"""vLLM's returned routed experts: per request `prompt_routed_experts` and `routed_experts`, [length, layers, k].

Switched on by ``--enable-return-routed-experts`` (``LLM(enable_return_routed_experts=True)``).
Layouts, from vllm-project/vllm:

- split (docs/training/routed_experts_replay.md, v0.21, commit 0087e00):
  `RequestOutput.prompt_routed_experts` for the prompt, `CompletionOutput.routed_experts` for the
  generated tokens, int16, a row for each MoE layer; a token out of the prefix cache is -1 by the
  documentation, and by the code of 0.21.0 zeros. The OpenAI server returns nested lists.
- whole (before v0.21, and from v0.22; fused_moe/routed_experts_capturer.py, commit 00bd149,
  tests/entrypoints/openai/test_return_routed_experts.py, commit 184bf81): `routed_experts` alone,
  prompt and generated tokens but the last, which no forward pass has read; a row for each hidden
  layer, zeros where it is dense. The server returns the bytes of ``np.save`` in base64, without the
  first `routed_experts_prompt_start` rows where asked; the choices of a list of prompts stand in
  one response. In 0.32.0, which was run: uint8 or uint16, and tokens out of the prefix cache have
  the routing of the run that filled it.

Read from JSON and JSON lines (responses, or records with these names), ``.npz`` and
``.safetensors`` (arrays with these names, and the request's before or after: ``r7/routed_experts``)
and ``.npy`` (one request).
Axes: T token, R row, K choice.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.traces.importers.archive import open_archive, zip_names
from moecast.traces.importers.arrays import (
    NPY_MAGIC,
    array_of_lists,
    bytes_of_base64,
    npy_of_bytes,
    read_entry,
    read_npy_file,
)
from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.json_records import Record, beginning, json_records, whole_number
from moecast.traces.importers.npz import named_arrays
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Ints, Piece
from moecast.traces.importers.requests import Completion, Request, answered, request_piece
from moecast.traces.importers.tensor_file import TensorFile, looks_like_tensors
from moecast.traces.importers.vllm_names import is_request_name, request_name

_LAYOUT = Layout(importer="vllm", engine="vLLM", rows="either", zeros_are_empty=True)
_FIELD = re.compile(rb'"(prompt_)?routed_experts"\s*:')
_OTHERS = re.compile(rb'"(meta_info|sgl_ext|sglext)"\s*:')


class VllmImporter:
    """Reads what people save of vLLM's `RequestOutput`s and of its server's responses."""

    name = "vllm"

    def recognises(self, path: Path) -> bool:
        """Arrays with vLLM's names, an `.npy` file, or JSON with its fields."""
        if text := beginning(path):
            fields = {found[1] for found in _FIELD.finditer(text)}
            return bool(fields) and (b"prompt_" in fields or not _OTHERS.search(text))
        if looks_like_tensors(path):
            try:
                return any(map(is_request_name, TensorFile(path, limit_bytes=0).names))
            except MoecastError:
                return False
        return _is_npy(path) or any(is_request_name(name.removesuffix(".npy")) for name in zip_names(path))

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace:
        """Take the files' requests one after the other."""

        def pieces() -> Iterator[Piece]:
            for path in paths:
                for request in _requests(path, options):
                    yield request_piece(request, options)

        return assemble(paths, pieces, _LAYOUT, options)


def _requests(path: Path, options: ImportOptions) -> Iterator[Request]:
    limit_bytes = options.most_bytes
    if _is_npy(path):
        yield Request(
            path=path, where=path.name, completions=(Completion(read_npy_file(path, 3, limit_bytes=limit_bytes)),)
        )
    elif looks_like_tensors(path):
        file = TensorFile(path, limit_bytes=limit_bytes)
        yield from _of_arrays(path, file.names, file.read)
    elif beginning(path):
        for record in answered(json_records(path, limit_bytes=limit_bytes)):
            yield from _of_record(path, record)
    else:
        with open_archive(path, "NumPy archive") as archive:
            entries = named_arrays(archive, path, limit_bytes)
            yield from _of_arrays(path, list(entries), lambda n, axes: read_entry(archive, entries[n], path, n, axes))


def _of_arrays(path: Path, names: Sequence[str], read: Any) -> Iterator[Request]:
    """The requests of named arrays, in the order in which the names first appear."""
    fields: dict[str, dict[str, str]] = {}
    for name in names:
        parts = request_name(name)
        if parts is None:
            rule = "is neither routed_experts, prompt_routed_experts, token_ids nor prompt_token_ids"
            raise MoecastError(rule, file=path, field=name)
        held = fields.setdefault(parts[0], {})
        if parts[1] in held:
            raise MoecastError(f"the same array of the same request as {held[parts[1]]}", file=path, field=name)
        held[parts[1]] = name
    for number, (request, held) in enumerate(fields.items()):
        arrays = {field: read(name, 3 if field.endswith("experts") else 1) for field, name in held.items()}
        completion = Completion(arrays.get("routed_experts"), arrays.get("token_ids"))
        yield Request(
            path=path,
            where=request or path.name,
            completions=(completion,),
            prompt_TRK=arrays.get("prompt_routed_experts"),
            prompt_ids=arrays.get("prompt_token_ids"),
            split="prompt_routed_experts" in arrays,
            done=(number + 1) / len(fields),
        )


def _of_record(path: Path, record: Record) -> Iterator[Request]:
    """A response of the OpenAI server, a request for each of its prompts, or a record with the same names."""
    value, where = record.value, record.where
    choices = value.get("choices", value.get("outputs"))
    if choices is None:
        choices = [value]
    if type(choices) is not list or any(type(choice) is not dict for choice in choices):
        raise MoecastError("choices must be a list of objects", file=path, field=where)
    usage = value["usage"] if type(value.get("usage")) is dict else {}
    prompts = _by_prompt(choices)
    alone = len(choices) == 1
    told = whole_number(usage.get("prompt_tokens")) if len(prompts) == 1 else None
    for number, of_prompt in enumerate(prompts):
        prompt_ids = next(
            (part["prompt_token_ids"] for part in (*of_prompt, value) if part.get("prompt_token_ids")), None
        )
        request = Request(
            path=path,
            where=where,
            completions=tuple(
                Completion(
                    _choices(choice.get("routed_experts"), path, where),
                    _ids(choice.get("token_ids"), path, where),
                    whole_number(usage.get("completion_tokens")) if alone else None,
                )
                for choice in of_prompt
            ),
            # A response of v0.21 has it for its first prompt only.
            prompt_TRK=_choices(value.get("prompt_routed_experts"), path, where) if number == 0 else None,
            prompt_ids=_ids(prompt_ids, path, where),
            prompt_tokens=told,
            split="prompt_routed_experts" in value,
            remarks=record.remarks if number == 0 else (),
            done=record.done,
        )
        if request.prompt_ids is None:
            _check_one_prompt(request, whole_number(usage.get("completion_tokens")))
        yield request


def _by_prompt(choices: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The choices of each prompt: a request may have had a list of prompts, whose ids stand in the choices then."""
    if not all(choice.get("prompt_token_ids") for choice in choices):
        return [choices]
    return [list(group) for _, group in itertools.groupby(choices, key=lambda choice: choice["prompt_token_ids"])]


def _check_one_prompt(request: Request, generated: int | None) -> None:
    """Without the prompts' ids, one prompt's completions and several prompts differ in their rows' number alone."""
    count, prompt = len(request.completions), request.prompt_tokens
    if count < 2 or request.split or prompt is None or generated is None:
        return
    rows = sum(0 if one.choices_TRK is None else len(one.choices_TRK) for one in request.completions)
    if rows == prompt + generated - count:
        rule = "holds several prompts without their lengths: record with return_token_ids"
        raise MoecastError(rule, file=request.path, field=request.where)


def _choices(value: Any, path: Path, where: str) -> Ints | None:
    if value is None:
        return None
    if type(value) is str:
        return npy_of_bytes(bytes_of_base64(value, path, where), path, where, 3)
    array_TRK = array_of_lists(value, 3, path, where) if value != [] else None
    return None if array_TRK is None or not len(array_TRK) else array_TRK


def _ids(value: Any, path: Path, where: str) -> Ints | None:
    return None if value is None else array_of_lists(value, 1, path, where)


def _is_npy(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(NPY_MAGIC)) == NPY_MAGIC
    except OSError:
        return False
