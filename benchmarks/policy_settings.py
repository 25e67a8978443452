"""What a router policy's settings do: short trainings of the model behind the shipped policies, seen in held-out text.

Prints the table of docs/own-model.md that asks how many transport plans make loads even at inference. A SETTING is a
policy, and fields of it to replace: none, sinkhorn:probability=0.3, sinkhorn:through_potentials=False. A trace that is
already in the folder is not made again.

    python benchmarks/policy_settings.py --out FOLDER [--cache FOLDER] [--steps 120] [--seed 0] [SETTING ...]
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from pathlib import Path

import numpy as np
from policies import write_rows

from moecast.traces import contiguous_ranks_LE, load_LE, read_trace, trace_stats
from moecast.traces.capture.own.options import sized
from moecast.traces.capture.own.policies import Policy, policy_named
from moecast.traces.capture.own.run import Material, Size, read_material, run

SETTINGS = (
    "none",
    "aux-global",
    *(f"sinkhorn:probability={share}" for share in (0.01, 0.1, 0.3, 1.0)),
    "sinkhorn:through_potentials=False",
)
RANKS = 8


def main() -> None:
    """Train what is not there yet, and print a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/moecast/capture"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cache, material, rows = arguments.cache.expanduser(), None, []
    arguments.out.mkdir(parents=True, exist_ok=True)
    for setting in arguments.settings or SETTINGS:
        stem = f"{setting.replace(':', '-')}-{arguments.steps}-{arguments.seed}"
        file = arguments.out / f"{stem}.parquet"
        if not file.exists():
            size = size_of(setting, name=stem, steps=arguments.steps, seed=arguments.seed)
            material = material or read_material(size=size, cache=cache)
            make(file, size, material, cache)
        rows.append([setting, *row_of(file)])
    write_rows(["setting", "loss", "unevenness in training", "Gini", "max ÷ mean", "balance"], rows)


def policy_of(setting: str) -> Policy:
    """The policy that a setting describes."""
    name, _, fields = setting.partition(":")
    pairs = [field.split("=") for field in fields.split(",") if field]
    return dataclasses.replace(policy_named(name), **{key: ast.literal_eval(value) for key, value in pairs})  # type: ignore[type-var]


def size_of(setting: str, *, name: str, steps: int, seed: int) -> Size:
    """The size `policies` with this policy, recording prefill only; `name` names its checkpoint."""
    size = sized("policies", steps=steps, seed=seed)
    model = dataclasses.replace(size.train.model, policy=policy_of(setting))
    return dataclasses.replace(
        size,
        name=name,
        train=dataclasses.replace(size.train, model=model),
        capture=dataclasses.replace(size.capture, decode_sequences=0),
    )


def make(file: Path, size: Size, material: Material, cache: Path) -> None:
    """Train on one thread, so that the result does not depend on the machine's cores."""
    sys.stderr.write(f"{file.stem}\n")
    run(file, size=size, cache=cache, material=material, threads=1, draws=0)


def row_of(file: Path) -> list[str]:
    """Loss, the loads in training, and the loads at inference."""
    trace = read_trace(file)
    load, source = load_LE(trace), trace.meta.source
    stats = trace_stats(trace, rank_of_expert_LE=contiguous_ranks_LE(trace.meta, RANKS))
    return [
        f"{source['loss_nats_per_token']['held_out']:.2f}",
        f"{source['unevenness_last_50_steps']:.2f}",
        f"{stats.gini:.3f}",
        f"{np.mean(load.max(axis=1) / load.mean(axis=1)):.2f}",
        f"{stats.balance_pooled:.3f}",
    ]


if __name__ == "__main__":
    main()
