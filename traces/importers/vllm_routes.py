"""Route logs of patched vLLM, `moe_routes.jsonl`: a meta line, then a line for each token and layer.

Written by patches of vLLM that log one MoE layer, or some, where ``VLLM_LOG_MOE`` names a file.
Lines, as the public patches have them (KennethWang1221/vllm-expert-profiler, README;
KaxitPandya/cerebras-assesment2, moe_logger.py): ``{"type": "meta", "model_id", "vllm_version",
"layers_logged", "top_k", "num_experts"?}`` and
``{"type": "route", "req_id", "token_idx", "layer", "topk_ids", "topk_weights"?}``. What `req_id`
and `token_idx` count differs: requests and their tokens, forward passes (``call_7``) with tokens
numbered through, or always ``r1`` and the place in the batch, so that numbers begin anew in each
pass. Some write a meta line in every pass. Each file holds some layers; several files are the
layers of one run.
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

_LAYOUT = Layout(importer="vllm-routes", engine="vLLM, patched", rows="some", numbered_sequences=True)
_ROUTE = re.compile(rb'"type"\s*:\s*"route"')
_IDS = re.compile(rb'"topk_ids"\s*:')
_NAMES = {"position": "token_idx", "layer": "layer", "expert": "topk_ids"}
_OPTIONAL = {"sequence": "req_id", "weight": "topk_weights"}
# by request and layer: how often its tokens began, in which file
_Passes = dict[tuple[Any, int], tuple[int, Path]]
_KEPT = ("vllm_version", "device")
_ANEW = "A request's token numbers begin anew: each beginning is taken as a forward pass, and as a sequence of its own"


class VllmRoutesImporter:
    """Reads the route logs that patches of vLLM write under `VLLM_LOG_MOE`."""

    name = "vllm-routes"

    def recognises(self, path: Path) -> bool:
        """JSON lines of type route with topk_ids."""
        text = beginning(path)
        return bool(_ROUTE.search(text) and _IDS.search(text))

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace:
        """Take the files as layers of one run."""
        first = _first(paths[0], options)
        meta = first if first.get("type") == "meta" else {}
        options = dataclasses.replace(options, model=options.model or short_text(meta.get("model_id")))
        told = {key: text for key in _KEPT if (text := short_text(meta.get(key)))}
        options = dataclasses.replace(options, source={**told, **options.source})
        return import_events(
            paths, _rows(paths, options), _LAYOUT, options, experts=whole_number(meta.get("num_experts")) or None
        )


def _first(path: Path, options: ImportOptions) -> dict[str, Any]:
    for record in json_records(path, limit_bytes=options.most_bytes):
        return record.value
    raise MoecastError("holds no rows of routing", file=path)


def _rows(paths: Sequence[Path], options: ImportOptions) -> Iterator[Rows]:
    passes: _Passes = {}
    names: dict[str, str] | None = None
    for path in paths:
        records = json_records(path, limit_bytes=options.most_bytes)
        first, routes = peeked(
            _of_pass(record, path, passes) for record in records if record.value.get("type") == "route"
        )
        if first is None:
            raise MoecastError("holds no line of type route", file=path)
        if names is None:
            names = _NAMES | {column: key for column, key in _OPTIONAL.items() if key in first.value}
        yield from json_rows(path, routes, names)


def _of_pass(record: Record, path: Path, passes: _Passes) -> Record:
    """A line with the name of its pass, where its request's numbers have begun anew."""
    value = record.value
    request, layer = value.get("req_id"), value.get("layer")
    if type(request) not in (str, int, type(None)) or type(layer) is not int:
        return record  # refused when the rows are checked
    begun, file = passes.get((request, layer), (0, path))
    if type(value.get("token_idx")) is int and value["token_idx"] == 0:
        if file != path:
            rule = f"begins in {file.name} too: files are layers of one run, import other runs and ranks apart"
            raise MoecastError(rule, file=path, field=f"{record.where}: request {str(request)!a:.40}, layer {layer}")
        begun += 1
        passes[request, layer] = begun, path
    if begun < 2:
        return record
    return record._replace(value={**value, "req_id": f"{request}, pass {begun}"}, remarks=((_ANEW, ""),))
