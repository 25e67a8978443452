"""The page of a search for a layout to serve with: the front, what it hangs on, memory, and the winner's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecast.report import plan_figures
from moecast.report.html import Picture
from moecast.report.plan_content import PlanContent


def serving_content(answer: Mapping[str, Any]) -> PlanContent:
    """What is shown of a search, as `moecast plan --json` prints it."""
    asked = answer["question"]
    return PlanContent(
        lead=f"{answer['gpus']} GPUs of {asked['cluster']}, {asked['isl']:,} tokens in, {asked['osl']:,} out",
        model=answer["model"],
        cards=_cards(answer),
        on_top=("winner", "tokens/s per GPU", "tpot, ttft", "$ per million output tokens"),
        pictures=[*_wide(answer), *_narrow(answer)],
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
            "The winner's throughput when one parameter is off by its own error, by bound. Hollow: "
            "it then misses a limit. ★: another layout is best there."
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
