"""Megatron-Core's routing trace: ``--moe-routing-trace-path FOLDER`` writes ``router_trace_rank*.jsonl``.

Layout (NVIDIA/Megatron-LM, megatron/core/transformer/moe/router_trace.py, of pull request 5220,
2026): a line per step, block and layer, with `step`, `block` ("decoder", or "mtp" with `mtp_idx`),
`layer`, `rank`, `num_tokens`, `topk` and `top_indices` [num_tokens][topk]. In training a step is an
iteration: its micro-batches repeat the layers in order, and are told apart by that. Sequences are
not recorded, nor is the phase: a micro-batch of a rank stands as one sequence.

A layer's number is its place among the layers of its pipeline stage, and nothing in the files or
their names says which stage a rank is of. `ImportOptions.first_layers` says it, and joins stages:
their ranks in order are pairs, since every stage has the same data-parallel and tensor-parallel
ranks, and the m-th micro-batch of a step is the same tokens in each. Where activations are
recomputed that order is another in each stage, which is refused. The layers of virtual stages
(interleaved schedules) have the same numbers and cannot be told apart. A multi-token prediction
layer of a `GPTModel` is written as "decoder", with a number of its own count; of a hybrid model it
is "mtp".
Axes: T token, L layer, K choice.
"""

from __future__ import annotations

import itertools
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
_AS_DECODER = (
    ": perhaps a multi-token prediction layer, which Megatron-Core's GPT models record as one of the decoder's"
)
_ONE_STAGE = "All ranks are taken as of one pipeline stage, layers as counted from its first"


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
        """Take the files, one for each rank, one after the other, or joined with those of other stages."""
        stages = _stages(paths, options)
        files = [file for listed in stages.values() for file in listed]
        layers: list[int] = []

        def pieces() -> Iterator[Piece]:
            for files_of_rank in zip(*stages.values(), strict=True):
                for step in _joined(dict(zip(stages, files_of_rank, strict=True)), options):
                    if not layers:
                        layers.extend(sorted(step.of_layer))
                    yield from step.pieces(layers, options.phase or "train")

        # The layers' numbers are known after the first piece, and part of the metadata.
        first = next(pieces(), None)
        if first is None:
            raise MoecastError("holds no routing", file=files[0])
        if options.first_layers is not None and options.layer_ids not in (None, tuple(layers)):
            rule = f"the stages' MoE layers are {_few(layers)}, the model's {_few(options.layer_ids or ())}"
            raise MoecastError(rule, file=files[0], field="first_layers")
        return assemble(files, pieces, _LAYOUT, options, layer_ids=tuple(layers))


class _Step:
    """The lines of one step of a rank."""

    def __init__(self, path: Path, step: int, rank: int) -> None:
        self.path, self.step, self.rank = path, step, rank
        self.of_layer: dict[int, list[Ints]] = {}
        self.mtp = self.staged = False
        self.bytes = 0
        self.done = 0.0

    def add(self, layer: int, choices_TK: Ints, done: float) -> None:
        """Add a line: the next micro-batch of its layer."""
        if self.of_layer and layer not in self.of_layer and layer < max(self.of_layer):
            rule = f"layer {layer} stands behind layer {max(self.of_layer)}{_AS_DECODER}"
            raise MoecastError(rule, file=self.path, field=f"step {self.step}")
        self.of_layer.setdefault(layer, []).append(choices_TK)
        self.bytes += choices_TK.nbytes
        self.done = done

    @property
    def repeats(self) -> bool:
        """Whether some micro-batch of a layer chooses as another one does, token for token."""
        return any(len({part.tobytes() for part in parts}) < len(parts) for parts in self.of_layer.values())

    def pieces(self, layers: Sequence[int], phase: str) -> Iterator[Piece]:
        """Give each micro-batch as a piece."""
        where = f"step {self.step}"
        if sorted(self.of_layer) != list(layers):
            rule = f"has layers {_few(sorted(self.of_layer))}, before it were {_few(layers)}"
            advice = ": cut off, or of another pipeline stage, which is imported by itself"
            raise MoecastError(rule + advice, file=self.path, field=where)
        batches = {len(lines) for lines in self.of_layer.values()}
        if len(batches) != 1:
            rule = f"some layers have more micro-batches than others{_AS_DECODER}"
            raise MoecastError(rule, file=self.path, field=where)
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
            if not self.staged:
                remarks.append((_ONE_STAGE, ""))
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


def _joined(file_of_stage: dict[int, Path], options: ImportOptions) -> Iterator[_Step]:
    """The steps of a rank, each with the layers of the ranks of other stages that ran the same tokens."""
    if options.first_layers is None:
        yield from _steps(next(iter(file_of_stage.values())), options)
        return
    running = [_steps(path, options) for path in file_of_stage.values()]
    for steps in itertools.zip_longest(*running):
        known = [step for step in steps if step is not None]
        joined = _Step(known[0].path, known[0].step, known[0].rank)
        where = f"step {joined.step}"
        if len(known) != len(steps) or {step.step for step in known} != {joined.step}:
            raise MoecastError("the stages' ranks recorded different steps", file=joined.path, field=where)
        for first, step in zip(file_of_stage, known, strict=True):
            if len(known) > 1 and step.repeats:
                rule = "a micro-batch is there twice: recomputed layers, with which stages cannot be joined"
                raise MoecastError(rule, file=step.path, field=where)
            for layer, parts in step.of_layer.items():
                if first + layer in joined.of_layer or first + layer >= MAX_LAYERS:
                    rule = "is of two stages: see first_layers" if first + layer < MAX_LAYERS else "is too high"
                    raise MoecastError(rule, file=step.path, field=f"layer {first + layer}")
                joined.of_layer[first + layer] = parts
        joined.bytes, joined.done = sum(step.bytes for step in known), min(step.done for step in known)
        joined.mtp, joined.staged = any(step.mtp for step in known), True
        if joined.bytes > options.most_bytes:
            raise MoecastError("a step takes more memory than there is", file=joined.path, field=where)
        yield joined


def _steps(path: Path, options: ImportOptions) -> Iterator[_Step]:
    """The steps of a file, each when its last line is read."""
    open_step: _Step | None = None
    for record in json_records(path, limit_bytes=options.most_bytes):
        value, where = record.value, record.where
        step, rank, layer = (_number(value, name, path, where) for name in ("step", "rank", "layer"))
        if layer >= MAX_LAYERS:
            rule = f"a layer above {MAX_LAYERS - 1}"
            raise MoecastError(rule, file=path, field=where, value=layer)
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
            rule = "a step takes more memory than there is"
            raise MoecastError(rule, file=path, field=f"step {step}")
    if open_step is not None and open_step.of_layer:
        yield open_step


def _number(value: dict[str, Any], name: str, path: Path, where: str) -> int:
    number = value.get(name)
    if type(number) is not int or not 0 <= number < 2**32:
        raise MoecastError(f"{name} must be a whole number", file=path, field=where)
    return number


def _stages(paths: Sequence[Path], options: ImportOptions) -> dict[int, list[Path]]:
    """The files of each stage, ranks in order, under the layer from which it counts; one stage where not told."""
    first_layers = options.first_layers
    if first_layers is not None and len(first_layers) != len(paths):
        rule = "one number for each file or folder, the model's layer from which its stage counts"
        raise MoecastError(rule, field="first_layers", value=list(first_layers))
    stages: dict[int, list[Path]] = {}
    for path, first in zip(paths, first_layers or [0] * len(paths), strict=True):
        files = _trace_files(path) if path.is_dir() else [path]
        if not files:
            raise MoecastError("holds no router_trace_rank*.jsonl", file=path)
        stages.setdefault(first, []).extend(files)
    if len({len(files) for files in stages.values()}) != 1:
        rule = "the stages have different numbers of ranks: layer " + ", layer ".join(
            f"{first}: {len(files)}" for first, files in sorted(stages.items())
        )
        raise MoecastError(rule, field="first_layers")
    return dict(sorted(stages.items()))


def _trace_files(folder: Path) -> list[Path]:
    def rank(path: Path) -> tuple[int, str]:
        digits = re.sub(r"\D", "", path.stem)
        return int(digits or 0), path.name

    return sorted(folder.glob("router_trace_rank*.jsonl"), key=rank)


def _few(layers: Sequence[int]) -> str:
    text = ", ".join(str(layer) for layer in layers[:6])
    return text if len(layers) <= 6 else f"{text}, …"
