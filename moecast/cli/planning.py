"""What `moecast plan` reads and prints around the search itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.cli.asked import Asked
    from moecast.cli.render import Advance
    from moecast.placement.layouts import FoundServing, LayoutAnswers, ServingLayout, ServingQuestion, Slo
    from moecast.placement.layouts.launch import Launch
    from moecast.processes import Workers

MADE_SEQUENCE = 64
"""Tokens of a sequence of made routing."""
MANY_GPUS = 16
"""A process takes some seconds to start: searches on fewer GPUs are done by one."""
MODES = {"agg": ("agg",), "disagg": ("disagg",), "both": ("agg", "disagg")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What an hour of a GPU costs, in dollars: by a part of its name, or of any."""

    of_name: dict[str, float]

    def of(self, gpu: str) -> float | None:
        """The price of a GPU; None where nobody gave one.

        Raises
        ------
        MoecastError
            There are prices, and none is of this GPU.
        """
        if not self.of_name:
            return None
        for name, price in self.of_name.items():
            if name.lower() in gpu.lower():
                return price
        rule = f"none is of the cluster's GPU, {gpu}"
        raise MoecastError(rule, field="--price", value=", ".join(self.of_name))


def parse_prices(texts: Sequence[str]) -> Prices:
    """Read ``h100=2.5/h`` and ``2.5/h``.

    Raises
    ------
    MoecastError
        Not a price of an hour.
    """
    found = {}
    for text in texts:
        match = re.fullmatch(r"\s*(?:([\w .-]+)=)?\s*\$?([0-9]+(?:\.[0-9]+)?)\s*/\s*h\s*", text)
        if match is None or float(match[2]) <= 0:
            rule = "a GPU and dollars an hour, as in h100=2.5/h"
            raise MoecastError(rule, field="--price", value=text)
        found[(match[1] or "").strip()] = float(match[2])
    return Prices(of_name=found)


JOBS = ("serving", "training")


def check_job(job: str) -> None:
    """Refuse what is not searched.

    Raises
    ------
    MoecastError
        Anything but serving and training.
    """
    if job not in JOBS:
        raise MoecastError("serving, or training", field="--for", value=job)


def parse_slo(text: str) -> Slo:
    """Read ``ttft=2s,tpot=30ms``; what is left out has no limit.

    Raises
    ------
    MoecastError
        Another name, the same one twice, or no time.
    """
    from moecast.placement.layouts import Slo
    from moecast.units import parse

    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name.strip() not in ("ttft", "tpot") or f"{name.strip()}_s" in found:
            rule = "ttft and tpot, each once: ttft=2s,tpot=30ms"
            raise MoecastError(rule, field="--slo", value=part)
        seconds = parse(re.sub(r"(?<=[0-9.])(?=[a-zA-Zµμ])", " ", value.strip()), "time", field=f"--slo {name.strip()}")
        if seconds <= 0:
            rule = "a limit is more than nothing"
            raise MoecastError(rule, field=f"--slo {name.strip()}", value=value)
        found[f"{name.strip()}_s"] = seconds
    return Slo(**found)


def parse_modes(text: str) -> tuple[str, ...]:
    """Read what is served by what.

    Raises
    ------
    MoecastError
        None of them.
    """
    if text not in MODES:
        raise MoecastError(f"one of {', '.join(MODES)}", field="--serve", value=text)
    return MODES[text]


def read_serving_question(asked: Asked, *, osl: int, quiet: bool) -> ServingQuestion:
    """Read cluster, model and routing; even routing is made where none is named.

    Raises
    ------
    MoecastError
        As of `read_inputs`.
    """
    from moecast.cli import made
    from moecast.cli.plan_inputs import read_plan_inputs
    from moecast.placement.layouts import ServingQuestion

    # Prompts' length is the question's; a recorded trace has its own.
    without = {"isl": None} if asked.routing is None else {}
    drawn = asked.with_(phase="prefill", tokens_per_rank=1, steps=1, reuse=True, **without)
    inputs = read_plan_inputs(asked, drawn=drawn, types=asked.types, sequence=MADE_SEQUENCE, quiet=quiet)
    return ServingQuestion(
        cluster=inputs.cluster,
        model=inputs.model,
        trace=inputs.trace,
        isl=asked.isl or made.DEFAULT_ISL,
        osl=osl,
        from_phase=asked.from_phase,
        memory_fraction=asked.memory_fraction,
        seed=asked.seed,
    )


def jobs_for(gpus: int, asked: int | None) -> int:
    """How many processes search; `asked` None: one, and of large jobs one for each core."""
    from moecast.threads import thread_count

    if asked is not None:
        return asked
    return thread_count() if gpus >= MANY_GPUS else 1


def told(advance: Advance | None) -> Callable[[str, int, int], None] | None:
    """Tell a progress bar, which says what part it is of: each counts anew, and some take minutes."""
    if advance is None:
        return None
    said = ""

    def tell(what: str, done: int, of: int) -> None:
        nonlocal said
        if what != said:
            said = what
            advance.say(what)
        advance(done, max(of, done, 1))

    return tell


def answer(
    found: FoundServing,
    workers: Workers[LayoutAnswers],
    asked: Asked,
    *,
    hourly: float | None,
    plan_file: Path | None,
) -> dict[str, Any]:
    """All that is said, as plain JSON values."""
    from moecast.placement.layouts.told import KIND, winner_interval
    from moecast.placement.layouts.why import why_it_wins
    from moecast.placement.layouts.winner_step import winner_timeline
    from moecast.sim.accuracy import layouts_apart
    from moecast.sim.describe import describe_trace, element_types

    question = workers.given.question
    files = {} if plan_file is None else {name: str(path) for name, path in engine_files(plan_file).items()}
    value: dict[str, Any] = {"kind": KIND, "for": "serving", **found.to_json()}
    value["question"] = {
        "cluster": question.cluster.name,
        "model": question.model.name,
        "isl": question.isl,
        "osl": question.osl,
        "element_types": element_types(question.model),
        "engine": question.cluster.hardware.engine,
        "trace": describe_trace(question.trace),
        "seed": question.seed,
    }
    value["winner"]["interval"] = winner_interval(question, found)
    value["why"] = why_it_wins(question, found, workers)
    value["timeline"] = winner_timeline(question, found)
    if value["runner_up"] is not None:
        other = found.runner_up.steady if found.runner_up else found.winner
        steady = not (found.winner.split or other.split)
        apart = layouts_apart(1 / (1 - value["runner_up"]["behind"]), steady=steady)
        value["runner_up"]["measured"] = f"{apart.text}, by {apart.why}"
    value["launch"] = _launch(found, question, files)
    if hourly is not None:
        for one in (value["winner"], *value["front"], *value["placed"]):
            one["dollars_per_million_tokens"] = hourly / 3600 / one["tokens_per_s_per_gpu"] * 1e6
        value["price_per_gpu_hour"] = hourly
    value["notes"] = [*question.cluster.notes, *(f"override: {override}" for override in asked.overrides)]
    return value


def engine_files(plan_file: Path) -> dict[str, Path]:
    """Where the placement of a plan is written for each engine."""
    from moecast.placement.engines import engine_path

    return {name: engine_path(plan_file, name) for name in ("sglang", "trtllm", "vllm")}


def _launch(found: FoundServing, question: ServingQuestion, files: dict[str, str]) -> list[dict[str, Any]]:
    """What starts the winner: the question's engine, or, where it names none, each."""
    from moecast.placement.layouts.abilities import ENGINES

    steady, named = found.winner, question.cluster.hardware.engine
    usable = files if steady.decode.ep > 1 and steady.decode.etp == 1 and steady.decode.pp == 1 else {}
    roles = (("decode", steady.decode), ("prefill", steady.prefill)) if steady.split else (("", steady.decode),)
    return [
        {"role": role} | {name: getattr(one, name) for name in one.__dataclass_fields__}
        for role, layout in roles
        for one in _started(layout, question, role, usable if role != "prefill" else {})
        if named not in ENGINES or one.engine == named
    ]


def _started(
    layout: ServingLayout, question: ServingQuestion, role: str, placement: dict[str, str]
) -> tuple[Launch, ...]:
    from moecast.placement.layouts.launch import launches
    from moecast.placement.layouts.mappings import started_by

    model, ranks = question.model, layout.plan(question.model).layout
    return launches(
        layout,
        experts=model.experts,
        n_layers=model.n_layers,
        role=role,
        placement=placement,
        started_by=started_by(ranks, question.cluster, layout.mapping.name),
    )


def write_winner(found: FoundServing, question: ServingQuestion, path: Path) -> None:
    """Write the winner's plan, and its placement for each engine that can hold it."""
    from moecast.placement.engines import write_engine_file
    from moecast.sim import write_plan

    write_plan(found.plan, path)
    for name, file in engine_files(path).items():
        try:
            write_engine_file(replace(found.plan), file, engine=name, model=question.model)
        except MoecastError:  # an engine that cannot hold the plan gets no file
            continue


def to_text(value: dict[str, Any]) -> str:
    """The JSON file's text."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def show(value: dict[str, Any]) -> None:
    """Print what was found: the winner and why, the front, what to run."""
    from rich.table import Table
    from rich.text import Text

    from moecast.cli import plan_beside, render

    out, asked = render.console(), value["question"]
    title = f"{asked['model']} on {value['gpus']} GPUs of {asked['cluster']}, {asked['isl']} in, {asked['osl']} out"
    render.show_rows(f"{title} ({value['model']})", winner_rows(value), _notes(value))
    table = Table(title=Text("front"), title_justify="left", title_style="bold")
    for name in ("tpot", "ttft", "tokens/s per GPU", "layout"):
        table.add_column(name, justify="left" if name == "layout" else "right", overflow="fold")
    for one in value["front"]:
        table.add_row(*map(Text, (*_numbers(one), one["name"])))
    out.print(table)
    for more in plan_beside.tables(value):
        out.print(more)
    show_launch(value["launch"])


def show_brief(rows: Sequence[tuple[str, str]], launch: Sequence[dict[str, Any]]) -> None:
    """Print the winner alone: what it is, its numbers, how far from the best it may be, and what to run."""
    from moecast.cli import render

    told = [f"{name}: {text.partition('. ')[0]}" for name, text in rows]  # of an interval not what it rests on
    last = [name for name, _ in rows].index("certificate")
    for line in (told[0], "; ".join(told[1:last]), told[last]):
        render.console().print(line, markup=False, soft_wrap=True, highlight=False)
    show_launch(launch)


def show_launch(launch: Sequence[dict[str, Any]]) -> None:
    """Print what starts each engine, and what of the layout it has no option for."""
    from moecast.cli import render

    out = render.console()
    for one in launch:
        role = f" ({one['role']})" if one["role"] else ""
        out.print(f"[bold]{one['engine']}{role}[/bold]", highlight=False)
        out.print(one["command"], markup=False, soft_wrap=True, highlight=False)
        if one["config"]:
            out.print(one["config"].rstrip(), markup=False, highlight=False)
        if one["cannot"]:
            out.print(f"has no option for: {one['cannot']}", markup=False, highlight=False)


def _numbers(one: dict[str, Any]) -> tuple[str, str, str]:
    from moecast.units import format_s

    return format_s(one["tpot_s"]), format_s(one["ttft_s"]), f"{one['tokens_per_s_per_gpu']:,.0f}"


def winner_rows(value: dict[str, Any]) -> list[tuple[str, str]]:
    """The winner, why it wins, how far from the best it is, and what lies behind it, in words."""
    from moecast.placement.layouts.abilities import ENGINES
    from moecast.placement.layouts.mappings import OF_RANKS, mapping_told
    from moecast.placement.layouts.told import interval_rows
    from moecast.units import format_percent

    winner, searched, other = value["winner"], value["searched"], value["runner_up"]
    tpot, ttft, rate = _numbers(winner)
    rows = [("winner", winner["name"]), ("tokens/s per GPU", rate), ("tpot, ttft", f"{tpot}, {ttft}")]
    if "dollars_per_million_tokens" in winner:
        rows.append(("$ per million output tokens", f"{winner['dollars_per_million_tokens']:.3g}"))
    rows += interval_rows(winner["interval"])
    gap = format_percent(value["certificate"]["gap"])
    rows.append(("certificate", f"no layout of the searched space beats this by more than {gap}, {OF_RANKS}"))
    rows.append(("ranks on GPUs", mapping_told(value["mapping"])))
    rows += [("why: " + line["what"], line["told"]) for line in value["why"]]
    if other is not None:
        wins = format_percent(other["faster_step"])
        told = f"{format_percent(other['behind'])} behind; wins if its steps were {wins} shorter"
        told += f". Measured, 80 % of such differences: {other['measured']}"
        rows.append(("runner-up", f"{other['name']}: {told}"))
    engine = value["question"]["engine"]
    of = f" that {engine} has options for" if engine in ENGINES else ""
    counts = f"{searched['legal']:,} layouts{of}, {searched['fit']:,} fit, {searched['within']:,} could meet the limits"
    timed = f"{searched['scored']:,} timed by bound, {len(value['placed'])} by {value['network']}"
    rows.append(("searched", f"{counts}, {timed}"))
    for gpus, near in searched["nearest_that_do_not_fit"].items():
        rows.append(
            (f"does not fit on {gpus}", f"{near['missing_bytes'] / 2**30:.1f} GiB too little: {near['layout']}")
        )
    return rows


def _notes(value: dict[str, Any]) -> list[str]:
    missed = [name for name, most in value["slo"].items() if most is not None and value["winner"][name] > most]
    over = [f"warning: by {value['network']} the winner misses the limit on {name[:-2]}" for name in missed]
    return [*value["notes"], *over]
