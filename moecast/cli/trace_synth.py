"""``moecast trace synth``: more routing like a trace's, at any length and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecast.cli import options


def synth_command(
    like: Annotated[
        Path,
        typer.Option(
            "--like",
            callback=options.shipped,
            help="The trace to fit: a file, a folder of shards, or `shipped`.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A .parquet file, or a new folder for shards.", show_default=False)
    ],
    tokens: Annotated[int, typer.Option("--tokens", help="How many tokens to make.", show_default=False)],
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Layers x experts x choices: 58x256x8.", show_default="the fitted trace's"),
    ] = None,
    phase: Annotated[
        str | None, typer.Option("--phase", help="Fit only train, prefill or decode.", show_default="all")
    ] = None,
    topics: options.Topics = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Fit a trace and make more routing like it, of any length and shape.

    The result says that it is synthetic, and like what: no model made its choices.

    Example: moecast trace synth --like shipped --shape 58x256x8 --tokens 100000 --out synthetic
    """
    from moecast.cli import render
    from moecast.cli import trace_tables as tables
    from moecast.cli.asked import parse_topics
    from moecast.errors import MoecastError
    from moecast.files import check_apart
    from moecast.traces import TraceWriter, check_target, describe_trace, fit_trace, hash_trace, iter_trace, synthesise
    from moecast.traces import parse_shape as parse

    if tokens < 1:
        raise MoecastError("must be at least 1", field="tokens", value=tokens)
    wanted, weights = (None if shape is None else parse(shape)), parse_topics(topics)
    check_apart({"--out": out}, {"--like": like})
    check_target(out)
    with render.progress("fitting", quiet=json) as advance:
        model = fit_trace(iter_trace(like, progress=advance), phase=phase, progress=advance)
    with render.progress("synthesising", quiet=json) as advance:
        # half of the way is making the donors' layers of another shape, half is making tokens of
        # them
        lifting, moved = render.two_halves(advance)
        batches = synthesise(
            model, shape=wanted, tokens=tokens, seed=seed, topics=weights, progress=moved, lifting=lifting
        )
        first = next(batches)
        with TraceWriter(out, first.meta) as writer:
            writer.append(first)
            for batch in batches:
                writer.append(batch)
    with render.progress("reading what was written", quiet=json) as advance:
        info, digest = describe_trace(out, progress=advance), hash_trace(out)
    if json:
        render.echo_json({**tables.info_json(info), "out": str(out), "content_hash": digest})
    else:
        render.console().print(tables.info_table(str(out), info, digest), tables.parts_table(info))
