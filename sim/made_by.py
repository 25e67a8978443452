"""Where a plan comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBy:
    """Where a plan comes from; null where it is not known (a file from an engine)."""

    solver: str
    seed: int | None = None
    trace_hash: str | None = None
    trace_part: str | None = None
    objective_s: float | None = None
    bound_s: float | None = None
    note: str = ""  # what the solver says of how it was found
