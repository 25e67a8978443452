"""What a capture run has to say at its end: as text for people, as JSON for machines."""

from __future__ import annotations

import dataclasses

from moecast.traces.capture.own.evidence import table
from moecast.traces.capture.own.run import Outcome


def as_json(outcome: Outcome) -> dict[str, object]:
    """The run's numbers, JSON-ready."""
    return {
        "tokens": outcome.trace.n_tokens,
        "content_hash": outcome.trace.content_hash(),
        "steps": outcome.trained.steps,
        "trained_tokens": outcome.trained.tokens,
        "loss_nats_per_token": dataclasses.asdict(outcome.score),
        "evidence": {
            part: [dataclasses.asdict(found) | {"z": found.z} for found in getattr(outcome, part)]
            for part in ("prefill", "decode", "untrained")
        },
    }


def as_text(outcome: Outcome) -> str:
    """The run's numbers as Markdown."""
    score, phase_T = outcome.score, outcome.trace.phase_T
    counts = (
        f"{(phase_T == 1).sum():,} prefill and {(phase_T == 2).sum():,} decode tokens recorded; "
        f"the model read {outcome.trained.tokens:,} tokens in {outcome.trained.steps:,} steps."
    )
    losses = (
        f"Held-out loss {score.model:.3f} nats per token; unigram {score.unigram:.3f}, bigram {score.bigram:.3f}"
        f" (of all training text {score.bigram_of_all:.3f})."
    )
    tables = {
        "Prefill": outcome.prefill,
        "Decode": outcome.decode,
        "The same prefill text through the untrained model": outcome.untrained,
    }
    return "\n\n".join([counts, losses, *(f"{title}:\n\n{table(found)}" for title, found in tables.items() if found)])
