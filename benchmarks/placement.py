"""Solvers on a real trace: pooled balance and fan-out beside the published ones, then seconds per step, lost or won.

The trace is DeepSeek-V2-Lite's, split as its README says: planned on the first half of each topic, measured on
the rest.

Run: python benchmarks/placement.py [--trace FILE.npz] [--steps]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from moecast.placement import Placement, place
from moecast.sim import ModelShape, Plan, Workload, load_model, simulate
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace, balance_pooled, fan_out, import_npz

SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PUBLISHED = {"contiguous": "0.795 / 4.552", "eplb": "0.967 / 4.616"}
SOLVERS = ("contiguous", "round-robin", "eplb", "balance", "local-search")


def ranks_LE(plan: Plan) -> np.ndarray:
    """The rank of each expert, for a plan without replicas."""
    table = np.zeros((plan.layers, plan.experts), np.int64)
    for layer, rank, slot in np.argwhere(plan.slots_DLGP[0] >= 0):
        table[layer, plan.slots_DLGP[0, layer, rank, slot]] = rank
    return table


def pooled(planning: RoutingTrace, measuring: RoutingTrace, model: ModelShape) -> None:
    """Eight ranks, eight slots: balance and fan-out of all measured tokens taken as one step."""
    cluster = load_cluster("dgx-h200", nodes=1)
    workload = Workload(phase="prefill", tokens_per_rank=2000, steps=1)
    print("| solver | balance_pooled / fan-out | published | solver's seconds |\n|---|---|---|---:|")
    runs: list[tuple[str, float | None]] = [(solver, None) for solver in SOLVERS]
    place(cluster, model, planning, workload, solver="local-search", balance_weight=1.0, work_limit=1000)  # compiles
    for solver, weight in [*runs, ("local-search", 0.08), ("local-search", 0.25)]:
        found = place(cluster, model, planning, workload, solver=solver, balance_weight=weight, time_limit_s=10.0)
        table = ranks_LE(found.plan)
        numbers = f"{balance_pooled(measuring, table, n_ranks=8):.3f} / {fan_out(measuring, table):.3f}"
        name = solver if weight is None else f"{solver}, balance weight {weight}"
        print(f"| {name} | {numbers} | {PUBLISHED.get(name, '')} | {found.seconds:.2f} |")


KINDS = ("mixed", "one topic")


def per_step(planning: RoutingTrace, measuring: RoutingTrace, model: ModelShape) -> None:
    """32 GPUs, 3 slots a rank, rung fluid: plans made for one kind of step, measured on it and on the other."""
    cluster = load_cluster("dgx-h200", nodes=4, fabric="leaf-spine:2")
    print("| phase | planned for | measured on | solver | balance | pooled | fan-out | domains | step, ms | gain |")
    print("|---|---|---|---|---:|---:|---:|---:|---:|---:|")
    for phase, tokens in (("prefill", 256), ("decode", 24)):
        workloads = {
            kind: Workload(
                phase=phase, tokens_per_rank=tokens, steps=4, one_topic_per_step=kind == "one topic", reuse=True,
                from_phase="prefill",
            )
            for kind in KINDS
        }  # fmt: skip
        for planned, measured in (("mixed", "mixed"), ("one topic", "one topic"), ("mixed", "one topic")):
            base = 0.0
            for solver in SOLVERS:
                plan = _placed(cluster, model, planning, workloads[planned], solver).plan
                seen = simulate(
                    cluster,
                    model,
                    plan,
                    measuring,
                    workloads[measured],
                    network="fluid",
                    max_fluid_steps=4,
                    gains=False,
                )
                base = base or seen.step_time_s
                print(
                    f"| {phase} | {planned} | {measured} | {solver} | {seen.balance:.3f} "
                    f"| {seen.balance_pooled:.3f} | {seen.fan_out:.3f} | {seen.fan_out_domains:.3f} "
                    f"| {1e3 * seen.step_time_s:.3f} | {base / seen.step_time_s:.3f}× |",
                    flush=True,
                )


def _placed(cluster: Cluster, model: ModelShape, planning: RoutingTrace, workload: Workload, solver: str) -> Placement:
    return place(cluster, model, planning, workload, solver=solver, slots_per_rank=3, work_limit=1_000_000)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=SHARED / "traces" / "deepseek-v2-lite.npz")
    parser.add_argument("--steps", action="store_true", help="also the table per step (several minutes)")
    arguments = parser.parse_args()
    if not arguments.trace.exists():
        print(f"skipped: {arguments.trace} is absent (set MOECAST_SHARED)")
        return
    planning, measuring = import_npz(arguments.trace).split(0.5)
    model = load_model("deepseek-v2-lite")
    pooled(planning, measuring, model)
    if arguments.steps:
        print()
        per_step(planning, measuring, model)


if __name__ == "__main__":
    main()
