"""The page of a search for a training layout: speed against memory, what it hangs on, its pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecast.report import plan_figures, plan_training_figures
from moecast.report.html import Picture
from moecast.report.plan_content import PlanContent


def training_content(answer: Mapping[str, Any]) -> PlanContent:
    """What is shown of a search, as `moecast plan --for training --json` prints it."""
    asked = answer["question"]
    job = f"{asked['batch']:,} sequences of {asked['sequence']:,} tokens a step, {asked['precision']}"
    return PlanContent(
        lead=f"{answer['gpus']:,} GPUs of {asked['cluster']}, {job}",
        model=f"A training step with {asked['optimizer']}; routing: {asked['trace']['model']}",
        cards=_cards(answer),
        on_top=("winner", "step", "tokens/s per GPU", "model TFLOP/s per GPU", "$ per million tokens"),
        pictures=_pictures(answer),
    )


def _cards(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers to see first."""
    winner = answer["winner"]
    cards = [
        (f"{winner['step_time_s']:.3g} s", "a step"),
        (f"{winner['tokens_per_s_per_gpu']:,.0f}", "tokens/s of a GPU"),
        (f"{winner['model_tflops_per_gpu']:,.0f}", "model TFLOP/s of a GPU"),
    ]
    if "dollars_per_million_tokens" in winner:
        cards.append((f"${winner['dollars_per_million_tokens']:.3g}", "per million tokens"))
    gap = f"{100 * answer['certificate']['gap']:.0f} %"
    return [*cards, (gap, "the most by which any layout searched could be faster")]


def _pictures(answer: Mapping[str, Any]) -> list[Picture]:
    pictures = [
        Picture(
            title="Speed against memory",
            caption="Line: layouts that none of those timed whole beats in both. Hover for what they are.",
            figure=plan_training_figures.front(answer),
        )
    ]
    if answer["sensitivity"] is not None:
        pictures.append(_tornado(answer))
    return [*pictures, _pipeline(answer["passes"]), _memory(answer)]


def _tornado(answer: Mapping[str, Any]) -> Picture:
    moves, now = answer["sensitivity"]["moves"], answer["winner"]["tokens_per_s_per_gpu"]
    return Picture(
        title="What the answer hangs on",
        caption="The winner's speed when one parameter is off by its own error, by its layers. ★: another is best.",
        figure=plan_figures.tornado(moves, now, axis="tokens/s of a GPU"),
    )


def _pipeline(passes: Mapping[str, Any]) -> Picture:
    shown = (
        f"{passes['microbatches']} of {passes['of']} microbatches" if passes["microbatches"] < passes["of"] else "All"
    )
    caption = (
        f"{shown}, each pass as long as its layers take by themselves. White: waiting. Gradients and optimizer follow."
    )
    return Picture(title="The winner's pipeline", caption=caption, figure=plan_training_figures.pipeline(passes))


def _memory(answer: Mapping[str, Any]) -> Picture:
    told = [("the winner", answer["winner"])]
    if answer["runner_up"] is not None:
        told.append(("the runner-up", answer["runner_up"]))
    held = [(name, one["memory_bytes"]) for name, one in told]
    full = [
        (name, {part: of.get(part, 0) for part in dict.fromkeys(p for _, o in held for p in o)}) for name, of in held
    ]
    colours = plan_training_figures.parts_of(of for _, of in held)
    return Picture(title="Memory", caption="The fullest rank", figure=plan_figures.memory(full, colours))
