"""What a placement's reader should know of how it was found."""

from __future__ import annotations

COPIES_ARE_GIVEN = (
    "copies do not depend on the placement here: one travels for each choice, so only balance can be gained"
)
"""Said where copies travel by choice (low-latency kernels)."""


COPIES_NEAR = (
    "a copy travels for each choice that the own GPU does not serve: replicas near their tokens save some, "
    "experts that stand together none"
)
"""Said there, where the rule takes the nearest replica."""


def copies_note(replica_rule: str) -> str:
    """What a placement can save where copies travel by choice."""
    return COPIES_NEAR if replica_rule in ("nearest", "fixed") else COPIES_ARE_GIVEN


def with_note(*notes: str) -> str:
    """Join what is to be said, empty parts left out."""
    return "; ".join(note for note in notes if note)


def filled_note(count: int) -> str:
    """Say how many empty slots were filled; empty where none was."""
    return f"{count} empty slots were filled with replicas" if count else ""


def usual_work(moves: int) -> str:
    """Say how much a search did without limits, and how to have more."""
    return f"{moves:,} moves judged, the usual work for this size; --work-limit or --time-limit gives more"
