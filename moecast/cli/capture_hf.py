"""`moecast capture hf`: run a Hugging Face model on text and record its routing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moecast.cli import options
from moecast.cli.plain import say


def hf_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, or a hub id such as mistralai/Mixtral-8x7B-v0.1.")
    ],
    text: Annotated[
        list[Path],
        typer.Option("--text", help="A text file, or a folder of <topic>/<file>; may be repeated.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A new folder for shards, or a .parquet file.", show_default=False)
    ],
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of text, shared evenly between the topics.")
    ] = 65_536,
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Tokens of a sequence at most.")
    ] = 1024,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences of a forward pass.")] = 4,
    generate: Annotated[
        int, typer.Option("--generate", min=0, help="Decode tokens after each sequence, which is then a prompt.")
    ] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="Of what is generated; 0 takes the likeliest token.")
    ] = 1.0,
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto for all there are (needs accelerate).")
    ] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.", show_default="main")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="A folder or hub id.", show_default="the model's own")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Read only the model's config and draw weights; the trace says so."),
    ] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Keep the gate weights.")] = False,
    shard_tokens: Annotated[
        int | None,
        typer.Option(
            "--shard-tokens", min=1, help="Tokens of a shard: what a kill can cost.", show_default="1/16 of the run"
        ),
    ] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Run a Hugging Face MoE model on text and record which experts every token chooses.

    Every sequence of the text is prefill; with --generate, the model goes on from each, which is
    decode.

    Example: moecast capture hf allenai/OLMoE-1B-7B-0924 --text texts/ --generate 32 --out trace
    """
    from moecast.cli import render
    from moecast.cli import trace_tables as tables
    from moecast.errors import MoecastError
    from moecast.traces import describe_trace, hash_trace

    try:
        from moecast.traces.capture.hf.load import ModelSource, quiet
        from moecast.traces.capture.hf.run import RunConfig, run
    except ModuleNotFoundError as error:
        raise MoecastError(f'capture hf needs {error.name}; pip install "moecast[hf]"') from error
    source = ModelSource(
        name=model,
        tokenizer=tokenizer,
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        random_weights=random_weights,
        seed=seed,
    )
    config = RunConfig(
        max_tokens=max_tokens,
        sequence_length=sequence_length,
        batch_size=batch_size,
        generate=generate,
        temperature=temperature,
        weights=weights,
        shard_tokens=shard_tokens,
        seed=seed,
    )
    try:
        with quiet(), render.progress("capturing", quiet=json) as advance:
            outcome = run(source, text, out, config, advance=advance)
    except KeyboardInterrupt:
        say(f"moecast: interrupted; {_kept(out)}", err=True)
        raise typer.Exit(130) from None
    info, digest = describe_trace(out), hash_trace(out)
    if json:
        facts = {"out": str(out), "content_hash": digest, "seconds": round(outcome.seconds, 3)}
        render.echo_json({**tables.info_json(info), **facts})
        return
    console = render.console()
    console.print(tables.info_table(str(out), info, digest), tables.parts_table(info))
    console.print(f"{outcome.tokens:,} tokens in {outcome.steps:,} passes, {outcome.seconds:.1f} s")


def _kept(out: Path) -> str:
    """What an interrupted run leaves behind."""
    from moecast.traces import describe_trace

    if not out.is_dir() or not any(out.iterdir()):
        return "nothing is kept"
    return f"{out} holds the {describe_trace(out).tokens:,} tokens so far"
