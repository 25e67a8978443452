"""Counts of choices per layer and expert that an engine recorded without the tokens, as a load table.

Axes: R row of the file, L MoE layer, E expert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.layers import find_layers
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.provenance import joined_notes, source_of
from moecast.traces.load_table import COUNTS_ONLY, LoadTable
from moecast.traces.meta import TraceMeta

Counts = npt.NDArray[np.int64]


class RankCounts:
    """Sums counts over ranks, but once where all ranks counted the same tokens.

    With tensor-parallel attention every rank routes all tokens: their counts are equal pass by
    pass, and their sum would be a multiple. With data-parallel attention each rank counts its own.
    """

    def __init__(self) -> None:
        self._sum_of: dict[int, Counts] = {}
        self._digest_of: dict[int, hashlib._Hash] = {}

    def add(self, rank: int, key: str, counts_RE: Counts) -> None:
        """Add what a rank counted in one pass, or for one layer of it."""
        if rank not in self._sum_of:
            self._sum_of[rank], self._digest_of[rank] = np.zeros_like(counts_RE), hashlib.sha256()
        self._sum_of[rank] += counts_RE
        self._digest_of[rank].update(key.encode())
        self._digest_of[rank].update(np.ascontiguousarray(counts_RE).tobytes())

    def total(self) -> tuple[Counts, str]:
        """The sum, and what to note of it."""
        sums = list(self._sum_of.values())
        same = len({digest.digest() for digest in self._digest_of.values()}) == 1
        if len(sums) > 1 and same and sums[0].any():
            return sums[0], f"All {len(sums)} ranks recorded the same counts (tensor-parallel attention): counted once."
        return sum(sums[1:], start=sums[0].copy()), f"Summed over {len(sums)} ranks." if len(sums) > 1 else ""


def counted_table(
    paths: Sequence[Path],
    load_RE: Counts,
    options: ImportOptions,
    *,
    importer: str,
    engine: str,
    rows: str,
    choices: int | None,
    notes: Sequence[str],
    layer_ids: Sequence[int] | None = None,
) -> LoadTable:
    """Make a load table of an engine's counts, dense layers left out.

    Parameters
    ----------
    rows
        See `find_layers`.
    choices
        K where the file says it.
    layer_ids
        The rows' layers, where the file says them.

    Raises
    ------
    MoecastError
        No counts, K not known, or sizes that are not the model's.
    """
    if not load_RE.any():
        raise MoecastError("holds no counts but zeros", file=paths[0])
    if load_RE.min() < 0:
        raise MoecastError("a count below zero, or one of more than 64 bits", file=paths[0])
    experts = load_RE.shape[1]
    if options.experts is not None and experts != options.experts:
        raise MoecastError(f"the model has {options.experts} experts", file=paths[0], field="experts", value=experts)
    choices = choices or options.choices
    if choices is None:
        rule = "counts do not say how many experts a token chooses: give --config, --model (a preset) or --choices"
        raise MoecastError(rule, file=paths[0])
    found = find_layers(load_RE.any(axis=1), rows, options, layer_ids, file=paths[0])
    source = source_of(paths, importer, engine, options)
    if found.dropped:
        source["dense_layers_dropped"] = list(found.dropped)
    try:
        meta = TraceMeta(
            model=options.model or paths[0].stem,
            layers=len(found.rows),
            experts=experts,
            choices=choices,
            config=options.config,
            layer_ids=found.layer_ids,
            source=source,
            notes=joined_notes(options.notes, [COUNTS_ONLY, *notes, found.note, found.missing], {}),
        )
        return LoadTable(load_LE=load_RE[list(found.rows)], meta=meta)
    except ValueError as error:
        raise MoecastError(str(error), file=paths[0]) from error
