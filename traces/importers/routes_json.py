"""Routing of single prompts as JSON: `routes`, a list of tokens, each with a dict of its layers.

Written by a public capture script for vLLM and MLX: ``{"meta": {"model_id", "num_experts", "top_k",
"backend", …}, "prompt_tokens": […], "generated_tokens": […], "routes": [{"token_pos", "token_id",
"token_str", "phase", "layers": {"0": {"experts": […], "weights": […]}}}]}``. A document, a list of
them, or one a line; each is a sequence.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.traces.importers.assemble import Layout
from moecast.traces.importers.event_rows import Rows
from moecast.traces.importers.events import import_events
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.json_records import Record, beginning, json_records, short_text, whole_number
from moecast.traces.importers.json_rows import json_rows, peeked
from moecast.traces.importers.options import ImportOptions

_LAYOUT = Layout(importer="routes-json", engine="", rows="some", numbered_sequences=True)
_OPENS = ((b"routes", rb"\["), (b"layers", rb"\{"), (b"experts", rb"\["))
_FIELDS = tuple(re.compile(rb'"' + name + rb'"\s*:\s*' + opens) for name, opens in _OPENS)
_NAMES = {"sequence": "sequence", "position": "token_pos", "layer": "layers", "expert": "experts"}
_OPTIONAL = {"weight": "weights", "token_id": "token_id", "phase": "phase"}
_MAX_LAYER_DIGITS = 5


class RoutesJsonImporter:
    """Reads one JSON object per prompt, with the layers of each token."""

    name = "routes-json"

    def recognises(self, path: Path) -> bool:
        """JSON with routes, layers and experts."""
        text = beginning(path)
        return all(field.search(text) for field in _FIELDS)

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace:
        """Take each prompt as a sequence."""
        meta: dict[str, Any] = {}
        for record in json_records(paths[0], limit_bytes=options.most_bytes):
            found = record.value.get("meta")
            meta = found if type(found) is dict else {}
            break
        options = dataclasses.replace(options, model=options.model or short_text(meta.get("model_id")))
        if engine := short_text(meta.get("backend")):
            options = dataclasses.replace(options, source={"engine": engine, **options.source})
        return import_events(
            paths, _rows(paths, options), _LAYOUT, options, experts=whole_number(meta.get("num_experts")) or None
        )


def _rows(paths: Sequence[Path], options: ImportOptions) -> Iterator[Rows]:
    names: dict[str, str] | None = None
    for path in paths:
        for record in json_records(path, limit_bytes=options.most_bytes):
            first, cells = peeked(_cells(path, record))
            if first is None:
                raise MoecastError("holds no tokens", file=path, field=f"{record.where}: routes")
            if names is None:
                names = _NAMES | {column: key for column, key in _OPTIONAL.items() if key in first.value}
            yield from json_rows(path, cells, names)


def _cells(path: Path, record: Record) -> Iterator[Record]:
    """A record for each token and layer."""
    routes = record.value.get("routes")
    if type(routes) is not list:
        raise MoecastError("must be a list of tokens", file=path, field=f"{record.where}: routes")
    sequence = f"{path}, {record.where}"
    for number, token in enumerate(routes):
        where = f"{record.where}: route {number}"
        layers = token.get("layers") if type(token) is dict else None
        if type(layers) is not dict:
            raise MoecastError("layers must be an object, an entry for each layer", file=path, field=where)
        for layer, cell in layers.items():
            if type(cell) is not dict or not (layer.isascii() and layer.isdigit() and len(layer) <= _MAX_LAYER_DIGITS):
                rule = "a layer must be a number with an object of experts and weights"
                raise MoecastError(rule, file=path, field=f"{where}, layers", value=layer)
            yield Record(where, {**token, **cell, "layers": int(layer), "sequence": sequence}, record.done)
