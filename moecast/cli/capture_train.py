"""`moecast capture train`: train a small MoE model here and record its routing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moecast.cli.plain import say

if TYPE_CHECKING:
    from moecast.traces.capture.own.run import Outcome


def train_command(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The trace to write, a .parquet file; a folder with --policy all.", show_default=False
        ),
    ] = None,
    size: Annotated[str, typer.Option("--size", help="cpu (as shipped), policies, gpu or tiny.")] = "cpu",
    policy: Annotated[
        str,
        typer.Option("--policy", help="How routers choose; `list` prints them, `all` trains one model for each."),
    ] = "aux-global",
    text: Annotated[
        Path | None,
        typer.Option("--text", help="A folder of <topic>/<file>.", show_default="Debian packages"),
    ] = None,
    cache: Annotated[Path, typer.Option("--cache", help="Packages and checkpoints.")] = Path(
        "~/.cache/moecast/capture"
    ),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads of torch.", show_default="torch's own choice")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps.", show_default="as the size says")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", help="End training early, so that it takes about this long.", show_default="no limit"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides weights, order and sampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Train a small MoE language model from scratch and record its routing on text it never read.

    With --policy all, --out is a folder: a trace is made for each policy that has none there yet.

    Example: moecast capture train --size tiny --text my-texts --out trace.parquet
    """
    from moecast.errors import MoecastError

    try:
        from moecast.traces.capture.own import summary
        from moecast.traces.capture.own.options import sized
        from moecast.traces.capture.own.policies import POLICIES
        from moecast.traces.capture.own.run import Material, read_material, run
    except ModuleNotFoundError as error:
        raise MoecastError(f'capture needs {error.name}; pip install "moecast[torch]"') from error

    cache = cache.expanduser()

    def trained(name: str, to: Path, material: Material | None = None, draws: int = 20) -> Outcome:
        chosen = sized(size, policy=name, seed=seed, steps=steps, minutes=minutes)
        return run(
            to, size=chosen, cache=cache, text=text, material=material, device=device, threads=threads, draws=draws
        )

    if policy == "list":
        _print_policies(as_json)
        return
    if out is None:
        raise MoecastError("is missing: where to write", field="--out")
    if policy != "all":
        outcome = trained(policy, out)
        say(json.dumps(summary.as_json(outcome), indent=2) if as_json else summary.as_text(outcome))
        return
    if not out.is_dir():
        raise MoecastError("with --policy all, name a folder that exists", file=out)
    found: dict[str, Any] = {}
    material = read_material(size=sized(size), cache=cache, text=text)
    for name in POLICIES:
        file = out / f"{name}.parquet"
        if file.exists():
            say(f"{name}: already there", err=True)
            continue
        say(f"{name}: {POLICIES[name].summary}", err=True)
        outcome = trained(name, file, material, draws=0)
        found[name] = summary.as_json(outcome)
        if not as_json:
            say(f"# {name}\n\n{summary.as_text(outcome)}\n")
    if as_json:
        say(json.dumps(found, indent=2))


def _print_policies(as_json: bool) -> None:
    from moecast.traces.capture.own.policies import POLICIES

    if as_json:
        told = {name: {"summary": policy.summary, "source": policy.source} for name, policy in POLICIES.items()}
        say(json.dumps(told, indent=2))
        return
    for name, policy in POLICIES.items():
        say(f"{name:<15}{policy.summary}\n{'':<15}{policy.source}")
