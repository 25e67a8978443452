"""What `moecast plan --for training` says of what it found: as JSON, and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from moecast.cli.asked import Asked
    from moecast.placement.layouts.training import FoundTraining, TrainingLayout, TrainingQuestion

HELD = ("schedule", "microbatch", "recompute", "zero")
"""Options of `moecast train` that a layout decides, beside its degrees."""


def answer(
    found: FoundTraining, question: TrainingQuestion, asked: Asked, *, hourly: float | None, plan_file: Path | None
) -> dict[str, Any]:
    """All that is said, as plain JSON values."""
    from moecast.placement.layouts.told import KIND
    from moecast.placement.layouts.training.why import why_it_wins
    from moecast.placement.layouts.training.winner_passes import winner_passes
    from moecast.sim.describe import describe_trace

    recipe, cluster = question.recipe, question.cluster
    value: dict[str, Any] = {"kind": KIND, "for": "training", **found.to_json()}
    value["question"] = {
        "cluster": cluster.name,
        "model": question.model.name,
        "sequence": recipe.sequence,
        "batch": recipe.batch,
        "precision": recipe.precision.name,
        "optimizer": recipe.optimizer.name,
        "host_s": recipe.host.fixed_s,
        "trace": describe_trace(question.trace),
        "microbatches_drawn": question.drawn,
        "seed": question.seed,
    }
    value["why"] = why_it_wins(found)
    value["passes"] = winner_passes(question, found)
    value["again"] = again(found.winner.layout, plan_file)
    value["launch"] = _launch(found, question)
    if hourly is not None:
        rows = (value["winner"], *value["timed"], *value["front"], *filter(None, [value["runner_up"]]))
        for one in rows:
            one["dollars_per_million_tokens"] = hourly / 3600 / one["tokens_per_s_per_gpu"] * 1e6
        value["price_per_gpu_hour"] = hourly
    told = found.winner.prediction
    left = ", ".join(asked.unused)
    value["notes"] = [
        *cluster.notes,
        *told.labels,
        *(f"warning: {warning}" for warning in told.warnings),
        *(f"override: {override}" for override in asked.overrides),
        *([f"not of a layout: {left}"] if left else []),
    ]
    return value


def _launch(found: FoundTraining, question: TrainingQuestion) -> list[dict[str, Any]]:
    """What starts the winner, and the best that Megatron-LM has a schedule for, where that is another."""
    from moecast.placement.layouts.mappings import started_by
    from moecast.placement.layouts.training.find import ENGINES_OWN
    from moecast.placement.layouts.training.launch import megatron

    each = question.cluster.n_gpus // question.cluster.n_nodes
    asked = [("winner", found.winner), ("best of Megatron-LM's schedules", found.best_of(ENGINES_OWN))]
    launch: list[dict[str, Any]] = []
    for role, one in asked:
        if one is None or (launch and one is found.winner):
            continue
        ranks, name = one.layout.plan(question.model).layout, one.layout.mapping.name
        by = started_by(ranks, question.cluster, name)
        start = megatron(one.layout, question.recipe, question.model, gpus_of_node=each, started_by=by)
        named = {name: getattr(start, name) for name in start.__dataclass_fields__}
        launch.append({"role": f"{role}: {one.layout.name()}", **named})
    return launch


def show(value: dict[str, Any]) -> None:
    """Print what was found: the winner and why, the best, what to run."""
    from rich.table import Table
    from rich.text import Text

    from moecast.cli import planning, render
    from moecast.units import format_bytes, format_s

    asked = value["question"]
    title = f"{asked['model']} on {value['gpus']} GPUs of {asked['cluster']}"
    title += f", {asked['batch']} sequences of {asked['sequence']}, {asked['precision']}"
    render.show_rows(f"{title} (a training step)", winner_rows(value), value["notes"])
    table = Table(title=Text("the best that were timed whole"), title_justify="left", title_style="bold")
    for name in ("step", "tokens/s per GPU", "TFLOP/s", "memory", "layout"):
        table.add_column(name, justify="left" if name == "layout" else "right", overflow="fold")
    for one in value["timed"]:
        table.add_row(
            *map(
                Text,
                (
                    format_s(one["step_time_s"]),
                    f"{one['tokens_per_s_per_gpu']:,.0f}",
                    f"{one['model_tflops_per_gpu']:,.0f}",
                    format_bytes(one["memory_bytes"]["total"]),
                    one["name"],
                ),
            )
        )
    render.console().print(table)
    if value["sensitivity"] is not None:
        render.console().print(_moves_table(value["sensitivity"]["moves"]))
    planning.show_launch(value["launch"])
    render.console().print(f"asked alone: {value['again']}", markup=False, soft_wrap=True, highlight=False)


def _moves_table(moves: list[dict[str, Any]]) -> Table:
    from moecast.cli.plan_beside import table_of
    from moecast.placement.layouts.told import LISTED
    from moecast.units import format_s

    rows = []
    for move in moves[:LISTED]:
        for end in move["ends"]:
            change = f"{format_s(end['step_time_s'])} ({'+' if end['change'] >= 0 else ''}{100 * end['change']:.1f} %)"
            best = end["best"] if end["another"] else "the winner"
            rows.append((f"{move['parameter']}, {end['end']}", change, best))
    names = ("parameter", "winner's step (speed)", "best there")
    return table_of("if this is off by its own error", names, rows)


def winner_rows(value: dict[str, Any]) -> list[tuple[str, str]]:
    """The winner, why it wins, how far from the best it is, and what lies behind it, in words."""
    from moecast.placement.layouts.mappings import OF_RANKS, mapping_told
    from moecast.units import format_bytes, format_percent, format_s

    winner, other = value["winner"], value["runner_up"]
    memory = winner["memory_bytes"]
    rows = [
        ("winner", winner["name"]),
        ("layers of the stages", winner["layout"]["layers_of_stages"]),
        ("step", format_s(winner["step_time_s"])),
        ("80 % interval", "–" if not winner["interval_s"] else " to ".join(map(format_s, winner["interval_s"]))),
        ("tokens/s per GPU", f"{winner['tokens_per_s_per_gpu']:,.0f}"),
        ("model TFLOP/s per GPU", f"{winner['model_tflops_per_gpu']:,.0f}"),
    ]
    if "dollars_per_million_tokens" in winner:
        rows.append(("$ per million tokens", f"{winner['dollars_per_million_tokens']:.3g}"))
    parts = [
        f"{name} {format_bytes(size)}" for name, size in memory.items() if name not in ("total", "usable", "capacity")
    ]
    held = f"{format_bytes(memory['total'])} of {format_bytes(memory['usable'])} usable: {', '.join(parts)}"
    rows.append(("memory of the fullest rank", held))
    gap = format_percent(value["certificate"]["gap"])
    rows.append(("certificate", f"no layout of the searched space is faster than this by more than {gap}, {OF_RANKS}"))
    rows.append(("ranks on GPUs", mapping_told(value["mapping"])))
    rows += [("why: " + line["what"], line["told"]) for line in value["why"]]
    if other is not None:
        wins = format_percent(other["faster_step"])
        told = f"{format_percent(other['slower'])} slower; wins if its step were {wins} shorter"
        rows.append(("runner-up", f"{other['name']}: {told}"))
    return rows + _searched_rows(value)


def _searched_rows(value: dict[str, Any]) -> list[tuple[str, str]]:
    searched = value["searched"]
    counts = f"{searched['legal']:,} layouts, {searched['fit']:,} fit, {searched['left_out_by_floors']:,} cannot win"
    timed = f"{searched['scored']:,} scored by their layers, {len(value['timed'])} timed whole by {value['network']}"
    rows = [("searched", f"{counts}, {timed}")]
    for pp, near in searched["nearest_that_do_not_fit"].items():
        missing = f"{near['missing_bytes'] / 2**30:.1f} GiB too little: {near['layout']}"
        rows.append((f"does not fit with PP{pp}", missing))
    return rows


def again(layout: TrainingLayout, plan_file: Path | None) -> str:
    """What asks the winner alone, beside the question's own options."""
    degrees = {name: getattr(layout, name) for name in ("tp", "cp", "pp", "ep", "etp")} | {"vpp": layout.virtual}
    if layout.mapped and not plan_file:  # no option says which GPU a rank has
        plan_file = Path("the file of --write-plan")
    named = [f"--plan {plan_file}"] if plan_file else [f"--{name} {of}" for name, of in degrees.items() if of > 1]
    named += [f"--dispatch {layout.dispatch}"] if layout.dispatch and not plan_file else []
    held = " ".join(f"--{name} {getattr(layout, name)}" for name in HELD)
    return " ".join(["moecast train", *named, held])
