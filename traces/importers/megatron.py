"""Megatron-Core's routing trace: ``--moe-routing-trace-path FOLDER`` writes ``router_trace_rank*.jsonl``.

Layout (NVIDIA/Megatron-LM, megatron/core/transformer/moe/router_trace.py, of pull request 5220, 2026): a line per
step, block and layer, with `step`, `block` ("decoder", or "mtp" with `mtp_idx`), `layer`, `rank`, `num_tokens`,
`topk` and `top_indices` [num_tokens][topk]. In training a step is an iteration: its micro-batches repeat the layers
in order, and are told apart by that. Sequences are not recorded, nor is the phase: a micro-batch of a rank stands as
one sequence. Layers count from the first of the pipeline stage. Axes: T token, L layer, K choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecast.errors import MoecastError
from moecast.traces.importers.arrays import array_of_lists
from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.json_records import beginning, json_records
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Ints, Piece, one_phase
from moecast.traces.meta import MAX_LAYERS

_LAYOUT = Layout(importer="megatron", engine="Megatron-Core, --moe-routing-trace-path", rows="moe")
_FIELDS = (re.compile(rb'"top_indices"\s*:'), re.compile(rb'"layer"\s*:'))
_NOT_KNOWN = "Neither sequences nor the phase are recorded: each micro-batch of a rank is a sequence, of phase"
_MTP = "Multi-token prediction layers are left out of"


class MegatronImporter:
    """Reads the trace files of one or more ranks."""

    name = "megatron"

    def recognises(self, path: Path) -> bool:
        """JSON lines with `top_indices` and `layer`, or a folder of trace files."""
        if path.is_dir():
            return bool(_trace_files(path))
        text = beginning(path)
        return all(field.search(text) for field in _FIELDS)

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace:
        """Take the files, one for each rank, one after the other."""
        files = [file for path in paths for file in (_trace_files(path) if path.is_dir() else [path])]
        if not files:
            raise MoecastError("holds no router_trace_rank*.jsonl", file=paths[0])
        layers: list[int] = []

        def pieces() -> Iterator[Piece]:
            for path in files:
                for step in _steps(path, options):
                    if not layers:
                        layers.extend(sorted(step.of_layer))
                    yield from step.pieces(layers, options.phase or "train")

        # The layers' numbers are known after the first piece, and part of the metadata.
        first = next(pieces(), None)
        if first is None:
            raise MoecastError("holds no routing", file=files[0])
        return assemble(files, pieces, _LAYOUT, options, layer_ids=tuple(layers))


class _Step:
    """The lines of one step of a rank."""

    def __init__(self, path: Path, step: int, rank: int) -> None:
        self.path, self.step, self.rank = path, step, rank
        self.of_layer: dict[int, list[Ints]] = {}
        self.mtp = False
        self.bytes = 0
        self.done = 0.0

    def add(self, layer: int, choices_TK: Ints, done: float) -> None:
        """Add a line: the next micro-batch of its layer."""
        self.of_layer.setdefault(layer, []).append(choices_TK)
        self.bytes += choices_TK.nbytes
        self.done = done

    def pieces(self, layers: Sequence[int], phase: str) -> Iterator[Piece]:
        """Give each micro-batch as a piece."""
        where = f"step {self.step}"
        if sorted(self.of_layer) != list(layers):
            rule = f"has layers {_few(sorted(self.of_layer))}, before it were {_few(layers)}"
            advice = ": cut off, or of another pipeline stage, which is imported by itself"
            raise MoecastError(rule + advice, file=self.path, field=where)
        batches = {len(lines) for lines in self.of_layer.values()}
        if len(batches) != 1:
            raise MoecastError("some layers have more micro-batches than others", file=self.path, field=where)
        for number in range(batches.pop()):
            parts = [self.of_layer[layer][number] for layer in layers]
            shapes = {part.shape for part in parts}
            if len(shapes) != 1:
                rule = f"layers differ in tokens and choices: {sorted(shapes)}"
                raise MoecastError(rule, file=self.path, field=where)
            tokens = len(parts[0])
            remarks = [(f"{_NOT_KNOWN} {phase}", "")]
            if self.mtp:
                remarks.append((_MTP, self.path.name))
            yield Piece(
                path=self.path,
                where=where,
                choices_TRK=np.stack(parts, axis=1),
                sequence_T=np.zeros(tokens, np.int64),
                position_T=np.arange(tokens),
                phase_T=one_phase(phase, tokens),
                step_T=np.full(tokens, self.step),
                source_rank_T=np.full(tokens, self.rank),
                remarks=tuple(remarks),
                done=self.done,
            )


def _steps(path: Path, options: ImportOptions) -> Iterator[_Step]:
    """The steps of a file, each when its last line is read."""
    open_step: _Step | None = None
    for record in json_records(path, limit_bytes=options.most_bytes):
        value, where = record.value, record.where
        step, rank, layer = (_number(value, name, path, where) for name in ("step", "rank", "layer"))
        if layer >= MAX_LAYERS:
            raise MoecastError(f"a layer above {MAX_LAYERS - 1}", file=path, field=where, value=layer)
        if open_step is None or (open_step.step, open_step.rank) != (step, rank):
            if open_step is not None and open_step.of_layer:
                yield open_step
            open_step = _Step(path, step, rank)
        if value.get("block", "decoder") != "decoder":
            open_step.mtp = True
            continue
        choices_TK = array_of_lists(value.get("top_indices"), 2, path, f"{where}: top_indices")
        if choices_TK.shape[0] and "topk" in value and value["topk"] != choices_TK.shape[1]:
            raise MoecastError("topk is not the length of its lists", file=path, field=where)
        if "num_tokens" in value and value["num_tokens"] != choices_TK.shape[0]:
            raise MoecastError("num_tokens is not how many it lists", file=path, field=where)
        if choices_TK.shape[0]:
            open_step.add(layer, choices_TK, record.done)
        if open_step.bytes > options.most_bytes:
            raise MoecastError("a step takes more memory than there is", file=path, field=f"step {step}")
    if open_step is not None and open_step.of_layer:
        yield open_step


def _number(value: dict[str, Any], name: str, path: Path, where: str) -> int:
    number = value.get(name)
    if type(number) is not int or not 0 <= number < 2**32:
        raise MoecastError(f"{name} must be a whole number", file=path, field=where)
    return number


def _trace_files(folder: Path) -> list[Path]:
    def rank(path: Path) -> tuple[int, str]:
        digits = re.sub(r"\D", "", path.stem)
        return int(digits or 0), path.name

    return sorted(folder.glob("router_trace_rank*.jsonl"), key=rank)


def _few(layers: Sequence[int]) -> str:
    text = ", ".join(str(layer) for layer in layers[:6])
    return text if len(layers) <= 6 else f"{text}, …"
