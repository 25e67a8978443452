"""What a router's policy does to a cluster: the committed trace of each policy, measured on 8 ranks.

All were recorded from the same small model trained on the same text, so rows differ by the policy (and by what it made
the model learn). Prints the table of docs/traces.md, then those of docs/own-model.md.

    python benchmarks/policies.py [--ranks 8] [--folder FOLDER] [--phase prefill --phase decode] [--seconds]

`--seconds` forecasts steps instead: planned on half of each topic, measured on the other, by the rung fluid.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moecast.placement import place
from moecast.sim import ModelShape, Workload, load_model, simulate
from moecast.topology import load_cluster
from moecast.traces import (
    NO_CHOICE,
    RoutingTrace,
    TraceProfile,
    affinity,
    contiguous_ranks_LE,
    load_balance,
    load_LE,
    packed_ranks_LE,
    profile_trace,
    read_trace,
    shipped_policies,
    shipped_trace_path,
    trace_stats,
)

# The order in which they are explained; others follow by name.
ORDER = (
    "none", "aux-micro", "aux-global", "aux-free", "group-limited", "sinkhorn",
    "capacity", "null-experts", "top-p", "expert-choice", "stochastic",
)  # fmt: skip

# Of how many experts affinity asks whether the next choice is among them.
LIKELIEST = 4


def main() -> None:
    """Print the tables of each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="traces by policy; default: those that come with moecast")
    parser.add_argument("--phase", action="append", choices=("prefill", "decode"))
    parser.add_argument("--seconds", action="store_true", help="forecast steps on two dgx-h200")
    arguments = parser.parse_args()
    files = traces_in(arguments.folder)
    for phase in arguments.phase or ("prefill", "decode"):
        sys.stdout.write(f"{phase}, {16 if arguments.seconds else arguments.ranks} ranks\n\n")
        found = {name: read_trace(path, phase=phase) for name, path in files.items()}
        if arguments.seconds:
            write_rows(
                ["policy", "contiguous", "balance", "dispatch", "expert", "idle", "eplb", "local-search"],
                ([name, *seconds_row(trace, phase)] for name, trace in found.items()),
            )
            continue
        profiles = {name: profile_trace(trace, n_ranks=arguments.ranks) for name, trace in found.items()}
        write_rows(
            ["policy", "held-out loss", "balance", "fan-out", "affinity", "drift, topics", "drift, windows"],
            ([name, *glance_row(profile)] for name, profile in profiles.items()),
        )
        write_rows(
            ["policy", "K", "choices", "5–95 %", "max ÷ mean", "Gini", "balance", "packed", "step balance", "fan-out"],
            ([name, *load_row(found[name], profile)] for name, profile in profiles.items()),
        )
        write_rows(
            ["policy", "loss", "id", "context", "topic", "next layer", "bits", "topics apart"],
            ([name, *meaning_row(profile)] for name, profile in profiles.items()),
        )
        if phase == "prefill":
            write_rows(*position_rows(profiles))


def traces_in(folder: Path | None) -> dict[str, Path]:
    """Each policy's trace, in the order of the text."""
    if folder is None:
        files = {name: shipped_trace_path(name) for name in shipped_policies()}
    else:
        files = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    return {name: files[name] for name in (*ORDER, *files) if name in files}


def glance_row(profile: TraceProfile) -> list[str]:
    """What there is to know at a glance; drift between topics, and between windows of the trace in order."""
    assert profile.stats.transition_LEE is not None
    return [
        f"{profile.meta.source['loss_nats_per_token']['held_out']:.2f}",
        f"{profile.stats.balance_pooled:.3f}",
        f"{profile.stats.fan_out:.2f}",
        f"{affinity(profile.stats.transition_LEE, choices=LIKELIEST).affinity:.3f}",
        f"{profile.drift.topics.distance:.3f}",
        f"{profile.drift.windows.distance:.3f}",
    ]


def load_row(trace: RoutingTrace, profile: TraceProfile) -> list[str]:
    """How even the loads are, and how far choices reach."""
    ranks = profile.n_ranks
    load, made_TL = profile.stats.load_LE, (trace.experts_TLK != NO_CHOICE).sum(axis=2)
    planning, measuring = trace.split(0.5)
    packed = load_balance(load_LE(measuring), packed_ranks_LE(load_LE(planning), ranks), ranks)
    return [
        str(trace.meta.choices),
        f"{made_TL.mean():.2f}",
        "–".join(f"{edge:.0f}" for edge in np.percentile(made_TL, (5, 95))),
        f"{np.mean(load.max(axis=1) / load.mean(axis=1)):.2f}",
        f"{profile.stats.gini:.3f}",
        f"{profile.stats.balance_pooled:.3f}",
        f"{packed:.3f}",
        f"{step_balance(trace, ranks):.3f}",
        f"{profile.stats.fan_out:.2f}",
    ]


def step_balance(trace: RoutingTrace, ranks: int) -> float:
    """Balance of experts in order, per recorded forward pass and layer, then averaged."""
    rank_LE = contiguous_ranks_LE(trace.meta, ranks)
    assert trace.step_T is not None
    order_T = np.argsort(trace.step_T, kind="stable")
    cuts = np.flatnonzero(np.diff(trace.step_T[order_T])) + 1
    passes = (trace.select(rows) for rows in np.split(order_T, cuts))
    return float(np.mean([trace_stats(part, rank_of_expert_LE=rank_LE).balance_pooled for part in passes]))


def meaning_row(profile: TraceProfile) -> list[str]:
    """What choices depend on, and how loads move."""
    found, source = profile.dependence, profile.meta.source
    assert found.token_id_L is not None
    assert found.sequence_L is not None
    assert found.topic_L is not None
    assert profile.stats.transition_LEE is not None
    # The same number of likeliest experts for all: K of the file differs.
    following = affinity(profile.stats.transition_LEE, choices=LIKELIEST)
    return [
        f"{source['loss_nats_per_token']['held_out']:.2f}",
        f"{np.nanmean(found.token_id_L):.3f}",
        f"{np.nanmean(found.sequence_L):.3f}",
        f"{np.nanmean(found.topic_L):.3f}",
        f"{following.affinity:.3f}",
        f"{following.information:.3f}",
        f"{profile.drift.topics.distance:.3f}",
    ]


def seconds_row(trace: RoutingTrace, phase: str) -> list[str]:
    """A step under the contiguous plan, and what the plans of two solvers gain over it."""
    cluster = load_cluster("dgx-h200", nodes=2, fabric="leaf-spine:2")
    model = ModelShape.from_config(trace.meta.config, name=trace.meta.model).with_dims(load_model("deepseek-v2-lite"))
    planning, measuring = trace.split(0.5)
    tokens = {"prefill": 512, "decode": 16}[phase]
    workload = Workload(phase=phase, tokens_per_rank=tokens, steps={"prefill": 2, "decode": 3}[phase])
    predictions = {}
    for solver in ("contiguous", "eplb", "local-search"):
        plan = place(cluster, model, planning, workload, solver=solver, slots_per_rank=3).plan
        predictions[solver] = simulate(cluster, model, plan, measuring, workload, network="fluid", gains=False)
    base = predictions.pop("contiguous")
    parts = (base.breakdown_s[part] for part in ("dispatch", "expert", "idle"))
    gains = (f"{base.compared_s / other.compared_s:.2f}×" for other in predictions.values())
    times = [f"{1e6 * base.compared_s:.1f} µs", f"{base.balance:.2f}", *(f"{1e6 * part:.1f} µs" for part in parts)]
    return [*times, *gains]


def position_rows(profiles: dict[str, TraceProfile]) -> tuple[list[str], Iterable[list[str]]]:
    """Choices made per token by position, of the policies that leave any empty."""
    places = next(iter(profiles.values())).positions
    head = [
        f"{first}–{last}" if last > first else f"{first}"
        for first, last in zip(places.first_P, places.last_P, strict=True)
    ]
    return ["choices by position", *head], (
        [name, *(f"{made:.2f}" for made in profile.meta.choices * (1 - profile.positions.empty_P))]
        for name, profile in profiles.items()
        if np.nanmax(profile.positions.empty_P) > 0
    )


def write_rows(head: list[str], rows: Iterable[list[str]]) -> None:
    """A Markdown table, or nothing where it has no rows."""
    found = list(rows)
    if not found:
        return
    for row in (head, ["---"] * len(head), *found):
        sys.stdout.write(f"| {' | '.join(row)} |\n")
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
