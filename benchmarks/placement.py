"""Solvers on a real trace: pooled balance and fan-out beside the published ones, then seconds per step, lost or won.

The trace is DeepSeek-V2-Lite's, split as its README says: planned on the first half of each topic, measured on the
rest. All weights of balance of a fixed list are shown, so that none is chosen by what it measures.

Run: python benchmarks/placement.py [--trace FILE.npz] [--steps] [--scale FILE.parquet --nodes N --slots N --model M]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from moecast.placement import Placement, place
from moecast.sim import ModelShape, Plan, Workload, load_model, simulate
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace, balance_pooled, fan_out, import_npz, read_trace

SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PUBLISHED = {"contiguous": "0.795 / 4.552", "eplb": "0.967 / 4.616"}
SOLVERS = ("contiguous", "round-robin", "eplb", "balance", "local-search")
# One grid for both kinds of plan, from 1/8 to 1 by equal factors: no row is chosen by what it shows.
STEP = 2**0.25
WEIGHTS = tuple(STEP**k for k in range(-12, 1))
GOALS = {"": ((0.905, 3.425), (0.95, 3.53)), "topic": ((0.85, 3.95), (0.875, 4.05))}
"""Balance (robust: of the worst topic) at least, fan-out at most."""
MOST_CPU_S = 25.0


def ranks_LE(plan: Plan) -> np.ndarray:
    """The rank of each expert, for a plan without replicas."""
    table = np.zeros((plan.layers, plan.experts), np.int64)
    for layer, rank, slot in np.argwhere(plan.slots_DLGP[0] >= 0):
        table[layer, plan.slots_DLGP[0, layer, rank, slot]] = rank
    return table


def measured(tokens: RoutingTrace, plan: Plan) -> tuple[float, float, float]:
    """Pooled balance, fan-out, and the worst topic's pooled balance, all tokens of it taken as one step."""
    table = ranks_LE(plan)
    topics = [tokens.select(tokens.topic_T == topic) for topic in np.unique(tokens.topic_T[tokens.topic_T >= 0])]
    worst = min(balance_pooled(topic, table, n_ranks=plan.ep) for topic in topics)
    return balance_pooled(tokens, table, n_ranks=plan.ep), fan_out(tokens, table), worst


def pooled(planning: RoutingTrace, measuring: RoutingTrace, model: ModelShape) -> None:
    """Eight ranks, eight slots: balance and fan-out of all measured tokens taken as one step, weight by weight."""
    print("| solver | balance / fan-out | worst topic's balance | published | CPU s | meets |")
    print("|---|---|---:|---|---:|---|")
    _pooled_plan(planning, model, solver="local-search", balance_weight=1.0, work_limit=1000)  # compiles
    for solver in SOLVERS:
        _pooled_row(planning, measuring, model, solver, PUBLISHED.get(solver, ""), solver=solver, time_limit_s=10.0)
    for robust in GOALS:
        for weight in WEIGHTS:
            name = (f"robust {robust}, " if robust else "") + f"W {weight:.3f}"
            _pooled_row(planning, measuring, model, name, "", balance_weight=weight, robust=robust or None)


def _pooled_plan(planning: RoutingTrace, model: ModelShape, **asked: Any) -> Placement:
    workload = Workload(phase="prefill", tokens_per_rank=2000, steps=1)
    return place(load_cluster("dgx-h200", nodes=1), model, planning, workload, **asked)


def _pooled_row(
    planning: RoutingTrace,
    measuring: RoutingTrace,
    model: ModelShape,
    name: str,
    published: str,
    **asked: Any,
) -> None:
    begin_s = time.process_time()
    plan = _pooled_plan(planning, model, **asked).plan
    seconds = time.process_time() - begin_s
    balance, copies, worst = measured(measuring, plan)
    robust = asked.get("robust") or ""
    met = [
        f"{least} / {most}"
        for least, most in GOALS[robust]
        if (worst if robust else balance) >= least and copies <= most and seconds <= MOST_CPU_S
    ]
    row = f"| {name} | {balance:.3f} / {copies:.3f} | {worst:.3f} | {published} | {seconds:.1f} "
    print(row + f"| {', '.join(met)} |", flush=True)


def scale(file: Path, model: ModelShape, nodes: int, slots: int) -> None:
    """Large problems: planned on the first half, timed by ``fluid`` on a step of the rest; EPLB where slots divide."""
    planning, measuring = read_trace(file).split(0.5)
    cluster = load_cluster("dgx-h200", nodes=nodes)
    workload = Workload(phase="prefill", tokens_per_rank=512, steps=2, reuse=True)
    print("| solver | CPU s | clock s | balance | pooled | fan-out | domains | step, ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for solver, least in (("eplb", None), ("balance", None), ("local-search", None), ("local-search", 0.99)):
        if solver == "eplb" and slots % cluster.n_gpus:
            continue
        begin_s, clock_s = time.process_time(), time.monotonic()
        found = place(cluster, model, planning, workload, solver=solver, slots=slots, balance_at_least=least)
        seconds, clock_s = time.process_time() - begin_s, time.monotonic() - clock_s
        seen = simulate(
            cluster, model, found.plan, measuring, workload, network="fluid", max_fluid_steps=1, gains=False
        )
        name = solver if least is None else f"{solver}, balance at least {least}"
        print(
            f"| {name} | {seconds:.1f} | {clock_s:.1f} | {seen.balance:.3f} | {seen.balance_pooled:.3f} "
            f"| {seen.fan_out:.3f} | {seen.fan_out_domains:.3f} | {1e3 * seen.step_time_s:.2f} |",
            flush=True,
        )


KINDS = ("mixed", "one topic")
ROBUST = "local-search, robust topic"
MEASURED_STEPS = 4


def per_step(planning: RoutingTrace, measuring: RoutingTrace, model: ModelShape, fabric: int, phase: str) -> None:
    """32 GPUs, 3 slots a rank, rung fluid: plans made for one kind of step, measured on it and on the other."""
    cluster = load_cluster("dgx-h200", nodes=4, fabric=f"leaf-spine:{fabric}")
    workloads = {kind: _workload(phase, one_topic=kind == "one topic") for kind in KINDS}
    plans: dict[tuple[str, str], Plan] = {}
    for planned, seen_on in (("mixed", "mixed"), ("one topic", "one topic"), ("mixed", "one topic")):
        base = 0.0
        for solver in (*SOLVERS, ROBUST) if planned == "mixed" else SOLVERS:
            begin_s = time.process_time()
            if (planned, solver) not in plans:
                plans[planned, solver] = _placed(cluster, model, planning, workloads[planned], solver).plan
            placed_s = time.process_time()
            seen = simulate(
                cluster,
                model,
                plans[planned, solver],
                measuring,
                workloads[seen_on],
                network="fluid",
                max_fluid_steps=MEASURED_STEPS,
                gains=False,
            )
            base = base or seen.step_time_s
            print(
                f"| {fabric}:1 | {phase} | {planned} | {seen_on} | {solver} | {seen.balance:.3f} "
                f"| {seen.fan_out:.3f} | {seen.fan_out_domains:.3f} "
                f"| {1e3 * seen.step_time_s:.3f} | {base / seen.step_time_s:.3f}× |",
                flush=True,
            )
            timed_s = time.process_time() - placed_s
            print(f"  placed in {placed_s - begin_s:.1f} CPU s, timed in {timed_s:.1f}", file=sys.stderr, flush=True)


def _workload(phase: str, *, one_topic: bool) -> Workload:
    tokens = {"prefill": 256, "decode": 24}[phase]
    return Workload(
        phase=phase, tokens_per_rank=tokens, steps=4, one_topic_per_step=one_topic, reuse=True, from_phase="prefill"
    )


def _placed(cluster: Cluster, model: ModelShape, planning: RoutingTrace, workload: Workload, solver: str) -> Placement:
    # those that look at loads alone are timed here and not also while they are placed
    searching = solver.startswith("local-search")
    return place(
        cluster,
        model,
        planning,
        workload,
        solver="local-search" if searching else solver,
        network="" if searching else "bound",
        robust="topic" if solver == ROBUST else None,
        slots_per_rank=3,
        work_limit=1_000_000,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=SHARED / "traces" / "deepseek-v2-lite.npz")
    parser.add_argument("--steps", action="store_true", help="only the table per step (several minutes)")
    parser.add_argument("--fabrics", type=int, nargs="*", default=[2, 4], help="its fabrics, 2 meaning 2:1")
    parser.add_argument("--phases", nargs="*", default=["prefill", "decode"], help="its phases")
    parser.add_argument("--scale", type=Path, help="a trace that `moecast trace synth` made: only the table of scale")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--slots", type=int, default=288)
    parser.add_argument("--model", default="deepseek-v3")
    arguments = parser.parse_args()
    if arguments.scale is not None:
        scale(arguments.scale, load_model(arguments.model), arguments.nodes, arguments.slots)
        return
    if not arguments.trace.exists():
        print(f"skipped: {arguments.trace} is absent (set MOECAST_SHARED)")
        return
    planning, measuring = import_npz(arguments.trace).split(0.5)
    model = load_model("deepseek-v2-lite")
    if not arguments.steps:
        pooled(planning, measuring, model)
        return
    print("| fabric | phase | planned for | measured on | solver | balance | fan-out | domains | step, ms | gain |")
    print("|---|---|---|---|---|---:|---:|---:|---:|---:|")
    for fabric in arguments.fabrics:
        for phase in arguments.phases:
            per_step(planning, measuring, model, fabric, phase)


if __name__ == "__main__":
    main()
