"""Leaving rows out of an import: those of a warm-up at its start, and dummies wherever they stand.

Axes: T token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from moecast.errors import MoecastError
from moecast.traces.importers.importer import ImportedTrace
from moecast.traces.trace import RoutingTrace

Read = Callable[[], Iterator[RoutingTrace]]


def leave_out(opened: ImportedTrace, *, first: int = 0, dummies: bool = False) -> ImportedTrace:
    """The import without its first rows, and without runs of equal rows.

    Its metadata and notes say how many.

    Sequences and positions keep their numbers, so that what is left of a sequence begins later.

    Parameters
    ----------
    first
        Rows (tokens) to leave out, in the order in which the trace has them, whatever their
        sequence.
    dummies
        Leave out the `DummyRuns` of the rows after those; reads the files once more.

    Raises
    ------
    MoecastError
        No row would be left.
    """
    if not first and not dummies:
        return opened
    if first >= opened.tokens:
        raise MoecastError(
            f"the files have {opened.tokens:,} rows, so none would be left", field="drop_first", value=first
        )
    read, found = _after(opened.read, first), 0
    said = [f"the first {first:,} rows, as asked"] if first else []
    if dummies:
        read, found, told = _without_dummies(read)
        said += [told]
    left = opened.tokens - first - found
    if not left:
        rule = "all rows are alike, so none would be left"
        raise MoecastError(rule, field="drop_dummies", value=True)
    record = {"first_rows": first, "dummy_rows": found, "of_rows": opened.tokens}
    note = f"Left out of {opened.tokens:,} rows: {', and '.join(said)}."
    meta = dataclasses.replace(
        opened.meta,
        source={**opened.meta.source, "left_out": record},
        notes=" ".join(filter(None, [opened.meta.notes, note])),
    )

    def labelled() -> Iterator[RoutingTrace]:
        for batch in read():
            yield dataclasses.replace(batch, meta=meta)

    return dataclasses.replace(opened, meta=meta, tokens=left, read=labelled)


def _after(read: Read, first: int) -> Read:
    def rest() -> Iterator[RoutingTrace]:
        left = first
        for batch in read():
            skipped = min(left, batch.n_tokens)
            left -= skipped
            yield batch if not skipped else batch.select(slice(skipped, None))

    return rest


def _without_dummies(read: Read) -> tuple[Read, int, str]:
    """What is left, how many rows are not, and that in words."""
    # compiles: not needed to import this module
    from moecast.traces.statistics.equal_runs import RunFinder

    finder = RunFinder()
    for batch in read():
        finder.add(batch)
    runs = finder.found()

    def rest() -> Iterator[RoutingTrace]:
        row = 0
        for batch in read():
            dummy_T = runs.mask_T(row, batch.n_tokens)
            row += batch.n_tokens
            yield batch if not dummy_T.any() else batch.select(np.flatnonzero(~dummy_T))

    many = "run" if len(runs.start_R) == 1 else "runs"
    return rest, runs.rows, f"{runs.rows:,} dummy rows in {len(runs.start_R):,} {many} of equal ones"
