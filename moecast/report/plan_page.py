"""The page of a search for a layout: the winner, the front, what the answer hangs on, memory, and the winner's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moecast.files import write_text
from moecast.report import plan_figures
from moecast.report.html import Picture, render_page

ON_TOP = ("winner", "tokens/s per GPU", "tpot, ttft", "$ per million output tokens")
"""Rows of the table that stand above it."""


def write_plan_page(answer: Mapping[str, Any], rows: Sequence[tuple[str, str]], path: str | Path) -> None:
    """Write what `moecast plan` found as one self-contained HTML file, whole or not at all.

    Parameters
    ----------
    answer
        As `moecast plan --json` prints it.
    rows
        The names and texts of its table.
    """
    write_text(path, render(answer, rows))


def render(answer: Mapping[str, Any], rows: Sequence[tuple[str, str]]) -> str:
    """The page as text."""
    asked = answer["question"]
    return render_page(
        "plan.html.j2",
        title=asked["model"],
        lead=f"{answer['gpus']} GPUs of {asked['cluster']}, {asked['isl']:,} tokens in, {asked['osl']:,} out",
        model=answer["model"],
        cards=_cards(answer),
        rows=[row for row in rows if row[0] not in ON_TOP],
        winner=answer["winner"]["name"],
        all=_pictures(answer),
        moves=(answer["sensitivity"] or {}).get("moves", []),
        launch=answer["launch"],
        notes=answer["notes"],
    )


def _cards(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers to see first."""
    winner = answer["winner"]
    cards = [
        (f"{winner['tokens_per_s_per_gpu']:,.0f}", "output tokens/s of a GPU"),
        (f"{winner['tpot_s'] * 1e3:.3g} ms", "per output token"),
        (f"{winner['ttft_s'] * 1e3:,.0f} ms", "of a prompt alone"),
    ]
    if "dollars_per_million_tokens" in winner:
        cards.append((f"${winner['dollars_per_million_tokens']:.3g}", "per million output tokens"))
    return [
        *cards,
        (f"{100 * answer['certificate']['gap']:.0f} %", "the most that any layout searched could serve beyond it"),
    ]


def _pictures(answer: Mapping[str, Any]) -> list[Picture]:
    return [*_wide(answer), *_narrow(answer)]


def _wide(answer: Mapping[str, Any]) -> list[Picture]:
    winner, step = answer["winner"], answer["timeline"]
    beside = "" if winner["interval"]["tpot_s"] is None else " Bars about the winner: its 80 % interval."
    pictures = [
        Picture(
            title="Throughput against latency",
            caption="Grey: layouts that none beats in both. Hover for what they are." + beside,
            figure=plan_figures.front(answer),
        )
    ]
    if answer["sensitivity"] is not None:
        caption = (
            "The winner's throughput when one parameter is off by its own error, by bound. Hollow: it then misses a "
            "limit. ★: another layout is best there."
        )
        moves, now = answer["sensitivity"]["moves"], winner["tokens_per_s_per_gpu"]
        pictures.append(
            Picture(title="What the answer hangs on", caption=caption, figure=plan_figures.tornado(moves, now))
        )
    layers = f"{step['layers'][0]} to {step['layers'][-1]}"
    caption = (
        f"MoE layers {layers} of a decode step of {step['step_s'] * 1e3:.3g} ms, by bound. Grey: waiting for peers."
    )
    pictures.append(Picture(title="The winner's step", caption=caption, figure=plan_figures.timeline(step)))
    return pictures


def _narrow(answer: Mapping[str, Any]) -> list[Picture]:
    whys = answer["why"]
    pictures = [
        Picture(
            title=f"More of each resource: {why['what']}",
            caption="What twice of each resource saves of it, by bound",
            figure=plan_figures.gains(why["gains"]),
            wide=False,
        )
        for why in whys
        if why["gains"]
    ]
    held = [(why["what"].removesuffix("'s decode step"), why["memory_bytes"]) for why in whys if why["memory_bytes"]]
    if held:
        pictures.append(
            Picture(
                title="Memory", caption="The fullest GPU of an instance that decodes", figure=plan_figures.memory(held)
            )
        )
    return pictures
