"""TensorRT-LLM's expert statistics: a folder with ``meta_info.json`` and ``rank*.safetensors``.

Switched on by ``EXPERT_STATISTIC_ITER_RANGE=100-200`` and ``EXPERT_STATISTIC_PATH``. Layout
(NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/expert_statistic.py, commit 0fccc5b): `num_experts` and
`num_experts_per_token`; for each rank a tensor ``ITERATION_LAYER`` of counts [experts], of the
tokens that the rank routed. Counts only: a load table.

Variants in development branches also write the choices themselves, ``ITERATION_LAYER`` [tokens, k],
to ``token_selected_experts_rank*.safetensors`` or ``rank*_raw.safetensors``: where a folder has
them, or where they are named, they become a trace. The second keeps the last call only where a
layer runs an iteration in several. With the load balancer on, counts are of slots, not of experts:
record with it off. Axes: T token, L layer, K choice, E expert.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecast.errors import MoecastError
from moecast.files import read_text
from moecast.traces.importers.assemble import Layout, assemble
from moecast.traces.importers.counts import Counts, RankCounts, counted_table
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.pieces import Piece, one_phase
from moecast.traces.importers.provenance import Reading
from moecast.traces.importers.tensor_file import TensorFile, looks_like_tensors
from moecast.traces.load_table import LoadTable
from moecast.traces.meta import MAX_EXPERTS, MAX_LAYERS

_META = "meta_info.json"
_COUNTS = re.compile(r"rank(\d{1,5})\.safetensors")
_TOKENS = re.compile(r"(?:token_selected_experts_rank(?=\d+\.)|rank(?=\d+_raw\.))(\d{1,5})(?:_raw)?\.safetensors")
_KEY = re.compile(r"(\d{1,9})_(\d{1,4})")
_MOST_ITERATIONS_BYTES = 1 << 20
_LAYOUT = Layout(importer="trtllm", engine="TensorRT-LLM, expert statistic", rows="moe")


class TrtllmImporter:
    """Reads the statistics of one or more ranks."""

    name = "trtllm"

    def recognises(self, path: Path) -> bool:
        """A folder with `meta_info.json`, that file, or a rank's file with keys of iteration and layer."""
        if path.is_dir():
            return (path / _META).is_file()
        if path.name == _META:
            return any(map(looks_like_tensors, _files(path.parent, _COUNTS) or _files(path.parent, _TOKENS)))
        if not looks_like_tensors(path):
            return False
        try:
            names = TensorFile(path, limit_bytes=0).names
        except MoecastError:
            return False
        return bool(names) and all(_KEY.fullmatch(name) for name in names)

    def open(self, paths: Sequence[Path], options: ImportOptions) -> ImportedTrace | LoadTable:
        """Take the choices where they are, else sum the counts."""
        files = [file for path in paths for file in _listed(path)]
        tokens = [file for file in files if _TOKENS.fullmatch(file.name)]
        if tokens and len(tokens) != len(files):
            rule = "choices and counts cannot be joined: name files of one kind"
            raise MoecastError(rule, file=files[0])
        experts, choices = _meta_info(files[0].parent / _META)
        if tokens:
            return _trace(files, options, experts)
        return _counts(files, options, experts, choices)


def _counts(files: Sequence[Path], options: ImportOptions, experts: int, choices: int) -> LoadTable:
    reading, counts, iterations = Reading(files, options.progress, passes=1), RankCounts(), set()
    opened = [TensorFile(path, limit_bytes=options.most_bytes) for path in files]
    layers = sorted({_key(name, path)[1] for path, file in zip(files, opened, strict=True) for name in file.names})
    if not layers:
        raise MoecastError("holds no counts", file=files[0])
    at = {layer: row for row, layer in enumerate(layers)}
    for number, (path, file) in enumerate(zip(files, opened, strict=True)):
        sums_RE: Counts = np.zeros((len(layers), experts), np.int64)
        rank = _rank(path, number)
        for done, name in enumerate(file.names):
            iteration, layer = _key(name, path)
            count_E = file.read(name, 1)
            if len(count_E) != experts:
                rule = f"{len(count_E)} counts, {_META} says {experts} experts"
                raise MoecastError(rule, file=path, field=name)
            iterations.add(iteration)
            sums_RE[at[layer]] += count_E.astype(np.int64)
            reading.advance(path, (done + 1) / len(file.names))
        counts.add(rank, "", sums_RE)
    load_RE, note = counts.total()
    notes = [f"Summed over {len(iterations):,} iterations.", note]
    return counted_table(
        files,
        load_RE,
        options,
        importer="trtllm",
        engine="TensorRT-LLM, expert statistic",
        rows="moe",
        choices=choices,
        notes=notes,
        layer_ids=layers,
    )


def _trace(files: Sequence[Path], options: ImportOptions, experts: int) -> ImportedTrace:
    layers = sorted({_key(name, files[0])[1] for name in TensorFile(files[0], limit_bytes=options.most_bytes).names})

    def pieces() -> Iterator[Piece]:
        for number, path in enumerate(files):
            yield from _rank_pieces(path, _rank(path, number), layers, options)

    return assemble(files, pieces, _LAYOUT, options, experts=experts, layer_ids=tuple(layers))


def _rank_pieces(path: Path, rank: int, layers: Sequence[int], options: ImportOptions) -> Iterator[Piece]:
    """A piece for each iteration of a rank."""
    file = TensorFile(path, limit_bytes=options.most_bytes)
    of_iteration: dict[int, set[int]] = {}
    for name in file.names:
        iteration, layer = _key(name, path)
        of_iteration.setdefault(iteration, set()).add(layer)
    phase = options.phase or "prefill"
    for done, iteration in enumerate(sorted(of_iteration)):
        if sorted(of_iteration[iteration]) != list(layers):
            raise MoecastError("lacks layers that others have", file=path, field=f"iteration {iteration}")
        parts = [file.read(f"{iteration}_{layer}", 2) for layer in layers]
        shapes = {part.shape for part in parts}
        if len(shapes) != 1:
            rule = f"layers differ in tokens and choices: {sorted(shapes)}"
            raise MoecastError(rule, file=path, field=f"iteration {iteration}")
        tokens = len(parts[0])
        sentence = "Neither sequences nor the phase are recorded: each iteration of a rank is a sequence, of phase"
        yield Piece(
            path=path,
            where=f"iteration {iteration}",
            choices_TRK=np.stack(parts, axis=1),
            sequence_T=np.zeros(tokens, np.int64),
            position_T=np.arange(tokens),
            phase_T=one_phase(phase, tokens),
            step_T=np.full(tokens, iteration),
            source_rank_T=np.full(tokens, rank),
            remarks=((f"{sentence} {phase}", ""),),
            done=(done + 1) / len(of_iteration),
        )


def _meta_info(path: Path) -> tuple[int, int]:
    """E and K."""
    try:
        value: Any = json.loads(read_text(path, limit_bytes=_MOST_ITERATIONS_BYTES))
    except (ValueError, RecursionError) as error:
        raise MoecastError("not whole JSON", file=path) from error
    found = []
    for name, most in (("num_experts", MAX_EXPERTS), ("num_experts_per_token", MAX_EXPERTS)):
        number = value.get(name) if type(value) is dict else None
        if type(number) is not int or not 1 <= number <= most:
            raise MoecastError(f"must be a whole number from 1 to {most}", file=path, field=name)
        found.append(number)
    return found[0], found[1]


def _listed(path: Path) -> list[Path]:
    """The ranks' files that a path stands for: choices where there are any, else counts."""
    if path.is_dir() or path.name == _META:
        folder = path if path.is_dir() else path.parent
        files = _files(folder, _TOKENS) or _files(folder, _COUNTS)
        if not files:
            raise MoecastError("no rank*.safetensors beside it", file=folder / _META)
        return files
    return [path]


def _files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _rank(path: Path, number: int) -> int:
    match = _COUNTS.fullmatch(path.name) or _TOKENS.fullmatch(path.name)
    return number if match is None else int(match[1])


def _key(name: str, path: Path) -> tuple[int, int]:
    found = _KEY.fullmatch(name)
    if found is None or int(found[2]) >= MAX_LAYERS:
        raise MoecastError("is not ITERATION_LAYER: not an expert statistic", file=path, field=name)
    return int(found[1]), int(found[2])
