"""What a placement's reader should know of how it was found."""

from __future__ import annotations

COPIES_ARE_GIVEN = (
    "copies do not depend on the placement here: one travels for each choice, so only balance can be gained"
)
"""Said where copies travel by choice (low-latency kernels)."""


def with_note(*notes: str) -> str:
    """Join what is to be said, empty parts left out."""
    return "; ".join(note for note in notes if note)


def filled_note(count: int) -> str:
    """Say how many empty slots were filled; empty where none was."""
    return f"{count} empty slots were filled with replicas" if count else ""
