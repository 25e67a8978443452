"""What is said of a found layout beside its numbers: its interval, and how the answer moves with what is uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moecast.placement.layouts.interval import interval_of_serving
from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.layouts.found_serving import FoundServing
    from moecast.placement.layouts.serving_question import ServingQuestion

KIND = "moecast plan"
"""Of the JSON of a search."""
LISTED = 5
"""Moves in the table; JSON and page have all."""


def winner_interval(question: ServingQuestion, found: FoundServing) -> dict[str, Any]:
    """The winner's interval as JSON values; where it has none, that of the best placed layout that has one beside it.

    Measured rows are of layouts that engines ran: none overlap, and most share GPUs between prompts and decode.
    """
    value = interval_of_serving(question, found.winner, found.plan).to_json()
    if value["tpot_s"] is not None:
        return value
    for one in found.placed:
        other = interval_of_serving(question, one, one.decode.plan(question.model)).to_json()
        if other["tpot_s"] is not None:
            behind = 1 - one.tokens_per_s_per_gpu / found.winner.tokens_per_s_per_gpu
            return value | {"measured_ground": {**one.to_json(), "behind": behind, "interval": other}}
    return value


def interval_rows(interval: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The interval in words, and what it rests on."""
    if interval["tpot_s"] is None:
        rows = [("80 % interval", interval["told"])]
        other = interval.get("measured_ground")
        if other is not None:
            rate = f"{other['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU, {format_percent(other['behind'])} behind"
            told = f"{other['name']}: {rate}; {_ends(other['interval'])}. {other['interval']['told']}"
            rows.append(("best on measured ground", told))
        return rows
    return [("80 % interval", f"{_ends(interval)}. {interval['told']}")]


def _ends(interval: Mapping[str, Any]) -> str:
    parts = []
    if interval["tokens_per_s_per_gpu"] is not None:
        low, high = interval["tokens_per_s_per_gpu"]
        parts.append(f"{low:,.0f} to {high:,.0f} tokens/s per GPU")
    low, high = interval["tpot_s"]
    return ", ".join([*parts, f"tpot {format_s(low)} to {format_s(high)}"])


def sensitivity_rows(moves: list[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Parameter and end; what the winner serves there; whether it keeps the limits; who is best there."""
    rows = []
    for move in moves[:LISTED]:
        for end in move["ends"]:
            change = (
                f"{end['tokens_per_s_per_gpu']:,.0f} ({'+' if end['change'] >= 0 else ''}{100 * end['change']:.1f} %)"
            )
            kept = "kept" if end["meets"] else f"missed: tpot {format_s(end['tpot_s'])}, ttft {format_s(end['ttft_s'])}"
            rows.append((f"{move['parameter']}, {end['end']}", change, kept, best_at(end)))
    return rows


def best_at(end: Mapping[str, Any]) -> str:
    """Who is best at an end of a move."""
    if end["best"] is None:
        return "none of those asked keeps the limits"
    if end["another"]:
        return f"another layout, {end['best_tokens_per_s_per_gpu']:,.0f}: {end['best']}"
    if not end["meets"] or end["best_tokens_per_s_per_gpu"] > end["tokens_per_s_per_gpu"]:
        return f"the winner at batch {end['best_batch']}, {end['best_tokens_per_s_per_gpu']:,.0f}"
    return "the winner"
