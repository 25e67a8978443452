"""``moecast serve``: what users of a served model see, request by request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecast.cli import options
from moecast.cli.asked import Asked
from moecast.cli.plain import say
from moecast.cli.prefill_options import PrefillAsked
from moecast.cli.question_options import takes_question
from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim.serving import ArrivalLaw, Lengths, Request

OF_STEPS = (
    "phase", "tokens_per_rank", "prefill_tokens", "speculate", "acceptance", "steps", "context", "one_topic_per_step",
    "request_placement",
    "reuse", "from_phase", "recorded_steps", "fluid_steps", "gains", "microbatches",
)  # fmt: skip
ROUNDS = 10
"""Requests of a closed loop, for each that is in flight, where their number is not given: as public runs have it."""
OPEN_REQUESTS = 1000


@takes_question(without=OF_STEPS, network="bound")
def serve_command(
    *,
    asked: Asked,
    apart: PrefillAsked,
    requests: Annotated[
        str,
        typer.Option(
            "--requests",
            help="closed:N (N users, each waiting for an answer), poisson:RATE/s, gamma:RATE/s,CV, "
            "or a file: Mooncake JSONL, Azure LLM inference or BurstGPT CSV, or own columns "
            "(--columns).",
        ),
    ] = "closed:64",
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Of a file: arrival=NAME,prompt=NAME,output=NAME, and per_s=1000 for ms."),
    ] = None,
    num_requests: Annotated[
        int | None,
        typer.Option("--num-requests", min=1, help="How many.", show_default="10 for each user; 1000; the whole file"),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option("--prompt-tokens", min=1, help="Of made requests, the longest.", show_default="--isl, else 1024"),
    ] = None,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", "--osl", min=1, help="Of made requests, the longest.")
    ] = 1024,
    length_ratio: Annotated[
        float, typer.Option("--length-ratio", help="Lengths are uniform between this part of the longest and it.")
    ] = 1.0,
    prefix_groups: Annotated[int, typer.Option("--prefix-groups", min=0, help="Prefixes that requests share.")] = 0,
    prefix_tokens: Annotated[int, typer.Option("--prefix-tokens", min=0, help="Tokens of each of them.")] = 0,
    batcher: Annotated[
        str | None, typer.Option("--batcher", help="Whose batching, or static.", show_default="the engine's")
    ] = None,
    max_batched_tokens: Annotated[
        int | None, typer.Option("--max-batched-tokens", min=1, help="Of an iteration.", show_default="the batcher's")
    ] = None,
    max_sequences: Annotated[
        int | None, typer.Option("--max-sequences", min=1, help="Running on a rank.", show_default="the batcher's")
    ] = None,
    kv_blocks: Annotated[
        int | None, typer.Option("--kv-blocks", min=1, help="Of a rank's cache.", show_default="what memory leaves")
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option("--block-tokens", min=1, help="Of a block.", show_default="the batcher's")
    ] = None,
    prefix_cache: Annotated[
        bool | None, typer.Option("--prefix-cache/--no-prefix-cache", help="Keep blocks.", show_default="the batcher's")
    ] = None,
    receive_every: Annotated[
        int,
        typer.Option(
            "--receive-every",
            min=1,
            help="Look for new requests after so many iterations without prompts (SGLang's --scheduler-recv-interval).",
        ),
    ] = 1,
    dp_dispatch: Annotated[
        str,
        typer.Option(
            "--dp-dispatch",
            help="To attention-DP ranks: round_robin, least_requests, least_tokens or instances_in_turn.",
        ),
    ] = "round_robin",
    cost: Annotated[str, typer.Option("--cost", help="surrogate, or exact: simulate every iteration.")] = "surrogate",
    draws: Annotated[int, typer.Option("--draws", min=1, help="Surrogate: simulated steps at each point.")] = 1,
    slo: Annotated[str | None, typer.Option("--slo", help="For goodput, as in ttft=2s,tpot=30ms.")] = None,
    gpu_hour: Annotated[float | None, typer.Option("--gpu-hour", min=0.0, help="Dollars of a GPU for an hour.")] = None,
    overload: Annotated[bool, typer.Option("--overload", help="Run rates that cannot be served, too.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the run as JSON here.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with its pictures here.")] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write requests and iterations for ui.perfetto.dev here.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Forecast what users see: time to first token, time per output token, throughput, goodput, and what limits them.

    Requests make the steps, batched as the engine does it (--engine). The JSON has the keys of
    `vllm bench serve`.

    Example: moecast serve question.yaml --engine vllm --requests closed:64 --slo ttft=2s,tpot=30ms
    """
    from moecast.cli import render
    from moecast.cli.inputs import read_inputs, read_question
    from moecast.cli.made import DEFAULT_ISL
    from moecast.files import check_outputs
    from moecast.sim.serving import Lengths, Serving, parse_slo, serve, serving_timeline, write_served
    from moecast.sim.serving.timeline import SPANS
    from moecast.sim.timeline import write_timeline

    check_outputs({"--out": out, "--report": report, "--timeline": timeline}, asked.files)
    apart.check_degrees(asked)
    promised = None if slo is None else parse_slo(slo)
    serving = Serving(
        batcher=batcher,
        max_batched_tokens=max_batched_tokens,
        max_sequences=max_sequences,
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        prefix_cache=prefix_cache,
        dp_dispatch=dp_dispatch,
        receive_every=receive_every,
        cost=cost,
        draws=draws,
        overload=overload,
    )
    lengths = Lengths(prompt=prompt_tokens or asked.isl or DEFAULT_ISL, output=output_tokens, least_part=length_ratio)
    inputs = read_inputs(asked.with_(reuse=True), quiet=json)
    # Requests have lengths of their own, and tokens of made routing are independent of the prompts
    # they are made in.
    inputs = replace(inputs, notes=tuple(note for note in inputs.notes if not note.endswith("(--isl)")))
    question = read_question(asked, inputs, gpus=apart.gpus_left(asked, inputs))
    prefill = apart.pool(asked, inputs, serving)
    weights = topic_weights(asked.topics, inputs.trace.topics)
    prefixes = (prefix_groups, prefix_tokens)
    arrivals, made = _requests(requests, columns, num_requests, lengths, prefixes, weights, asked.seed)
    with _told_when_interrupted(len(made)) as reached, render.progress("serving", quiet=json) as advance:
        served = serve(
            question,
            made,
            arrivals=arrivals,
            serving=serving,
            slo=promised,
            dollars_per_gpu_hour=gpu_hour,
            prefill=prefill,
            log_spans=SPANS if timeline is not None else 0,
            progress=reached.beside(advance),
        )
    if out is not None:
        write_served(served, out)
    if timeline is not None:
        write_timeline(serving_timeline(served), timeline)
    if report is not None:
        from moecast.report import write_serve_page

        write_serve_page(served, report)
    if json:
        render.echo_json(served.to_json())
    else:
        render.show_rows(served.table_title, served.table_rows(), served.table_notes())


@dataclass(slots=True)
class _Reached:
    """Requests that are at an end, as far as was told."""

    done: int = 0

    def beside(self, advance: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """Count, and move a bar if there is one."""

        def told(done: int, of: int) -> None:
            self.done = done
            if advance is not None:
                advance(done, of)

        return told


@contextmanager
def _told_when_interrupted(requests: int) -> Iterator[_Reached]:
    """After Ctrl-C say in a line how far a run came; files are written when it is over, so that nothing is left."""
    reached = _Reached()
    try:
        yield reached
    except KeyboardInterrupt:
        of = f"{reached.done:,} of {requests:,} requests"
        say(f"moecast: interrupted after {of}; nothing is written: fewer (--num-requests) take less time", err=True)
        raise typer.Exit(130) from None


def topic_weights(text: str | None, topics: tuple[str, ...]) -> tuple[float, ...]:
    """Weights of the trace's topics as `--topics` says them.

    Without it each request has one topic, all as likely.

    Raises
    ------
    MoecastError
        A topic that the trace does not have.
    """
    from moecast.cli.asked import parse_topics

    given = parse_topics(text)
    if given is None:
        return (1.0,) * len(topics)
    weights = given if isinstance(given, dict) else dict.fromkeys(given, 1.0)
    for name in weights:
        if name not in topics:
            rule = f"the trace's topics: {', '.join(topics) or 'none'}"
            raise MoecastError(rule, field="topics", value=name)
    return tuple(weights.get(name, 0.0) for name in topics)


def _requests(
    text: str,
    columns: str | None,
    count: int | None,
    lengths: Lengths,
    prefixes: tuple[int, int],
    topics: tuple[float, ...],
    seed: int,
) -> tuple[ArrivalLaw | None, tuple[Request, ...]]:
    """The requests of `--requests`: made under a law, or of a file, whose arrivals are its own."""
    from moecast.sim.serving import Sharing, make_requests, parse_arrivals, read_requests
    from moecast.sim.serving.arrivals import LAWS
    from moecast.sim.serving.recorded import parse_columns

    if text.partition(":")[0] in LAWS:
        if columns is not None:
            raise MoecastError("is of a file of requests", field="--columns", value=columns)
        law = parse_arrivals(text)
        number = count or (ROUNDS * law.concurrency if law.name == "closed" else OPEN_REQUESTS)
        sharing = Sharing(groups=prefixes[0], tokens=prefixes[1], topics=topics)
        return law, make_requests(law, lengths, number, sharing=sharing, seed=seed)
    own = None if columns is None else parse_columns(columns)
    return None, read_requests(Path(text), columns=own, most=count).requests
