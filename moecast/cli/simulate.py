"""``moecast simulate``: what one plan costs on one cluster, for one routing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options
from moecast.cli.asked import Asked
from moecast.cli.question_options import takes_question

if TYPE_CHECKING:
    from moecast.sim import Question


@takes_question()
def simulate_command(
    *,
    asked: Asked,
    out: Annotated[Path | None, typer.Option("--out", help="Write the prediction as JSON here.")] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write the first step for ui.perfetto.dev here.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Forecast a plan: step time and where it goes, tokens/s, latency, memory, balance, fan-out, the bottleneck.

    Without --plan it is the contiguous one: experts in order over all GPUs, as engines do by
    default. What is asked may stand in a question file; options change what the file says.

    Example: moecast simulate --cluster dgx-h200 --nodes 4 --model deepseek-v2-lite --trace
    t.parquet --phase prefill
    """
    from moecast.cli import render
    from moecast.cli.inputs import read_inputs, read_question
    from moecast.files import check_outputs
    from moecast.sim import simulate_question, write_prediction

    check_outputs({"--out": out, "--timeline": timeline}, asked.files)
    question = read_question(asked, read_inputs(asked, quiet=json))
    with render.progress("simulating", quiet=json) as advance:
        prediction = simulate_question(question, progress=advance)
    if out is not None:
        write_prediction(prediction, out)
    if timeline is not None:
        _write_timeline(timeline, question)
    if json:
        render.echo_json(prediction.to_json())
    else:
        render.show_prediction(prediction)


def _write_timeline(path: Path, asked: Question) -> None:
    """Write the first step of a workload as a Perfetto timeline."""
    from moecast.sim import draw_steps, step_timeline, write_timeline

    step = draw_steps(asked.trace, asked.workload, ranks=asked.plan.dp)[0]
    events = step_timeline(
        asked.cluster, asked.model, asked.plan, asked.trace, step, network=asked.network, seed=asked.seed
    )
    write_timeline(events, path)
