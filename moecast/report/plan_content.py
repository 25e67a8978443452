"""What the page of a search for a layout shows, of serving or of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecast.report.html import Picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanContent:
    """What differs between the pages.

    Parameters
    ----------
    lead, model
        What was asked; and what the numbers are of.
    cards
        The numbers to see first.
    on_top
        Rows of the table that stand above it already.
    """

    lead: str
    model: str
    cards: Sequence[tuple[str, str]]
    on_top: tuple[str, ...]
    pictures: Sequence[Picture]
