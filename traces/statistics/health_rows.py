"""Checks of rows: warm-up, padding, repeated prompts, token ids and numbering.

Axes: T token, R run (consecutive positions of one sequence), H different hashes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecast.traces.statistics._rows import hash_runs
from moecast.traces.statistics.findings import SHORT, Finding, TraceFacts, percent

TAIL = 4
"""Equal rows at the end of a sequence that count as padding."""


def dummy_rows(facts: TraceFacts) -> Iterator[Finding]:
    """Rows of a warm-up or of a router fed with zeros."""
    dummies, in_order = facts.rows.dummies, facts.rows.in_order
    if dummies.rows:
        share = percent(dummies.rows, facts.rows.tokens)
        if dummies.leading == dummies.rows:
            what = f"the first {dummies.rows:,} rows ({share}) make the same choices over and over"
            how = f"trace import --drop-first {dummies.rows}"
        else:
            longest = int(dummies.length_R.argmax())
            what = f"{dummies.rows:,} rows ({share}) lie in {len(dummies.start_R):,} runs of equal ones (the longest, "
            what += f"{dummies.length_R[longest]:,}, from row {dummies.start_R[longest]:,})"
            how = "trace import --drop-dummies"
        yield Finding(
            code="dummy-rows",
            severity="warning",
            message=f"experts: {what}, as warm-up passes and dummy requests do and the rest does not; "
            f"leave them out ({how})",
        )
    if facts.rows_differ and in_order and in_order >= max(TAIL, facts.rows.tokens // 1000):
        yield Finding(
            code="zero-router-rows",
            severity="warning",
            message=f"experts: {in_order:,} rows choose experts 0 to {facts.meta.choices - 1} in "
            "order at every layer, as a router fed with zeros does (dummy or profiling runs); drop "
            "them",
        )


def padding(facts: TraceFacts) -> Iterator[Finding]:
    """Rows that repeat the row before them: padding at a sequence's end, dummy requests, a stuck input."""
    if not facts.rows_differ or not facts.sample.tokens:
        return
    run_R1 = facts.sample.run_R1
    broken_T = np.flatnonzero(~facts.repeat_T)  # every run begins with one
    last_R = broken_T[np.searchsorted(broken_T, run_R1[1:]) - 1]
    tail_R = run_R1[1:] - last_R
    whole_R = last_R == run_R1[:-1]
    padded_R = (tail_R >= TAIL) & ~whole_R
    padded = int(tail_R[padded_R].sum())
    if padded > facts.sample.tokens // 1000:
        yield Finding(
            code="padding",
            severity="warning",
            message=f"experts: {percent(padded, facts.sample.tokens)} of the tokens stand at the "
            f"end of a sequence and repeat the row before them ({int(padded_R.sum()):,} sequences "
            f"end in {TAIL} equal rows or more), as padding does; leave padding out when capturing",
        )
    constant_R = (tail_R >= TAIL) & whole_R
    constant = int(tail_R[constant_R].sum())
    if constant > facts.sample.tokens // 1000:
        yield Finding(
            code="constant-sequences",
            severity="warning",
            message=f"experts: {int(constant_R.sum()):,} sequences "
            f"({percent(constant, facts.sample.tokens)} of the tokens) make the same choices in "
            "every row: dummy requests; drop them",
        )
    repeated = int(facts.repeat_T.sum())
    others = repeated - padded - constant
    if others > facts.sample.tokens // 100 or 2 * repeated > facts.sample.tokens:
        shown = max(others, repeated if 2 * repeated > facts.sample.tokens else 0)
        yield Finding(
            code="repeated-rows",
            severity="warning",
            message=f"experts: {percent(shown, facts.sample.tokens)} of the rows repeat the row "
            "before them within a sequence; real text does so very rarely; look at token_id there",
        )


def repeated_prompts(facts: TraceFacts) -> Iterator[Finding]:
    """One prompt sent again and again, or a prefix that many share."""
    sample = facts.sample
    lengths_R = np.diff(sample.run_R1)
    if not facts.rows_differ or len(lengths_R) < 2:
        return
    begins_R = (sample.position_T[sample.run_R1[:-1]] == 0) & (lengths_R >= SHORT)
    for most, code, what in (
        (2**62, "repeated-sequences", "are copies of another sequence, choice by choice"),
        (SHORT, "shared-prefix", f"begin with the same {SHORT} rows as another"),
    ):
        hash_R = np.zeros(len(lengths_R), np.uint64)
        hash_runs(sample.experts_TLK, sample.run_R1, most, hash_R)
        _, inverse_R, count_H = np.unique(hash_R[begins_R], return_inverse=True, return_counts=True)
        copies = int((count_H[inverse_R] > 1).sum())
        if copies > max(1, begins_R.sum() // 20):
            copied = code == "repeated-sequences"
            yield Finding(
                code=code,
                severity="warning" if copied else "note",
                message=f"sequence: {percent(copies, int(begins_R.sum()))} of the sequences {what} "
                f"(the most frequent {int(count_H.max()):,} times): "
                + ("one prompt sent again and again; " if copied else "a common system prompt, or one prompt; ")
                + "loads say little about other text; capture more varied requests",
            )
            return


def token_ids(facts: TraceFacts) -> Iterator[Finding]:
    """Ids that hardly vary."""
    ids_T = facts.sample.token_id_T
    if ids_T is None or len(ids_T) < SHORT:
        return
    ids, counts = np.unique(ids_T, return_counts=True)
    most = int(counts.max())
    if 2 * most > len(ids_T):
        yield Finding(
            code="one-token-id",
            severity="warning",
            message=f"token_id: {percent(most, len(ids_T))} of the tokens have id "
            f"{int(ids[counts.argmax()])}: dummy input or padding; drop those tokens",
        )
    elif (facts.rows.same_token_id or 0) >= 4 * SHORT:
        yield Finding(
            code="token-id-run",
            severity="note",
            message=f"token_id: {facts.rows.same_token_id:,} rows in a row have one id: padding, "
            "or a text of one character; look at them before planning",
        )


def numbering(facts: TraceFacts) -> Iterator[Finding]:
    """Positions used twice or missing, steps that fall."""
    sample = facts.sample
    same_T = (np.diff(sample.sequence_T.astype(np.int64)) == 0) & (np.diff(sample.position_T.astype(np.int64)) == 0)
    if same_T.any():
        first = int(sample.sequence_T[np.flatnonzero(same_T)[0]])
        yield Finding(
            code="repeated-positions",
            severity="warning",
            message=f"position: {int(same_T.sum()):,} tokens stand at a position that their "
            f"sequence already has (the first in sequence {first}): numbers were used again; give "
            "every request its own",
        )
    gaps = len(sample.run_R1) - 1 - len(np.unique(sample.sequence_T)) - int(same_T.sum())
    if facts.sample.whole and gaps > 0:
        yield Finding(
            code="position-gaps",
            severity="note",
            message=f"position: {gaps:,} gaps within sequences, as prefix caching or a dropped "
            "batch leaves; windows of neighbouring tokens stop there",
        )
    if facts.rows.step_falls:
        yield Finding(
            code="step-order",
            severity="note",
            message=f"step: falls {facts.rows.step_falls:,} times from one row to the next: rows "
            "are not in the order of time, so windows of the trace are not windows of time; sort "
            "by step to see drift in time",
        )
