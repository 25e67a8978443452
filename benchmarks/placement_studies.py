"""What placements are worth in three studies: requests placed by topic, the per-step oracle, spare slots on 8 GPUs.

All plans are made on the first half of a trace's tokens and measured on the second, by the rung fluid.

Run: python benchmarks/placement_studies.py [--part requests|oracle|spare] [--trace FILE.npz]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moecast.placement import Objective, PlacementProblem, place
from moecast.placement.advice import Advice
from moecast.sim import ModelShape, Prediction, Workload, load_model, simulate
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace, concatenate, fit_trace, import_npz, read_trace, shipped_trace_path, synthesise

SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
WORK = 300_000

Halves = tuple[RoutingTrace, RoutingTrace]


def searched(solver: str) -> dict[str, int]:
    """How long a search goes on; others take no limit."""
    return {"work_limit": WORK} if solver == "local-search" else {}


def between_nodes(seen: Prediction, cluster: Cluster) -> float:
    """Bytes dispatched from node to node."""
    node_G = cluster.domain_of_gpu_G
    return float((np.array(seen.traffic_SD) * (node_G[:, None] != node_G)).sum())


def requests(traces: dict[str, tuple[ModelShape, Halves]]) -> None:
    """Sequences on any rank, and on ranks of their topic: what a rank sends away, and the step."""
    print(
        "| trace | GPUs, phase | solver | remote fan-out | by topic | | between nodes, by topic | step, ms | by topic |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for name, (model, (planning, measuring)) in traces.items():
        for nodes, phase, tokens in ((1, "prefill", 512), (4, "prefill", 128)):
            cluster = load_cluster("dgx-h200", nodes=nodes, **({"fabric": "leaf-spine:2"} if nodes > 1 else {}))
            for solver in ("eplb", "local-search"):
                any_, topic = (
                    placed_by(cluster, model, planning, measuring, placed, phase, tokens, solver)
                    for placed in ("any", "topic")
                )
                far = between_nodes(topic, cluster) / max(between_nodes(any_, cluster), 1) - 1 if nodes > 1 else None
                print(
                    f"| {name} | {cluster.n_gpus}, {phase} | {solver} | {any_.remote_fan_out:.3f} "
                    f"| {topic.remote_fan_out:.3f} | {topic.remote_fan_out / any_.remote_fan_out - 1:+.1%} "
                    f"| {'' if far is None else f'{far:+.1%}'} "
                    f"| {1e3 * any_.step_time_s:.2f} | {1e3 * topic.step_time_s:.2f} |",
                    flush=True,
                )


def placed_by(
    cluster: Cluster,
    model: ModelShape,
    planning: RoutingTrace,
    measuring: RoutingTrace,
    placed: str,
    phase: str,
    tokens: int,
    solver: str,
) -> Prediction:
    """Plan for one way to place requests, and measure with the same."""
    workload = Workload(
        phase=phase, tokens_per_rank=tokens, steps=4, reuse=True, from_phase="prefill", request_placement=placed
    )
    found = place(
        cluster, model, planning, workload, solver=solver, dispatch="per_rank", network="bound", **searched(solver)
    )
    return simulate(cluster, model, found.plan, measuring, workload, network="fluid", max_fluid_steps=2, gains=False)


def oracle(traces: dict[str, tuple[ModelShape, Halves]]) -> None:
    """How much of the speed of an oracle that balances every step for nothing a static plan has."""
    cluster = load_cluster("dgx-h200")
    print("| trace | steps | slots | in order | eplb | balance | local-search |\n|---|---|---:|---:|---:|---:|---:|")
    for name, (model, (planning, measuring)) in traces.items():
        for phase, tokens, one_topic in (("prefill", 512, False), ("prefill", 512, True), ("decode", 16, False)):
            workload = Workload(
                phase=phase,
                tokens_per_rank=tokens,
                steps=4,
                reuse=True,
                from_phase="prefill",
                one_topic_per_step=one_topic,
            )
            for slots in (8, 9):
                reached = [
                    f"{share_of_oracle(cluster, model, planning, measuring, workload, solver, slots):.1%}"
                    for solver in ("contiguous", "eplb", "balance", "local-search")
                ]
                kind = f"{phase}, {'one topic' if one_topic else 'mixed'}"
                print(f"| {name} | {kind} | {slots} | {' | '.join(reached)} |", flush=True)


def share_of_oracle(
    cluster: Cluster,
    model: ModelShape,
    planning: RoutingTrace,
    measuring: RoutingTrace,
    workload: Workload,
    solver: str,
    slots: int,
) -> float:
    """The plan made on the planning half, its oracle timed on the measuring half."""
    found = place(
        cluster, model, planning, workload, solver=solver, slots_per_rank=slots, network="bound", **searched(solver)
    )
    problem = PlacementProblem(
        cluster=cluster, model=model, trace=measuring, workload=workload, wanted=found.plan, network="fluid"
    )
    return Advice.of(problem, Objective(problem), found.plan.slots_DLGP[0]).reached


def routings(model: ModelShape) -> Iterator[tuple[str, Halves]]:
    """Routing of DeepSeek-V3's shape: lifted from the shipped trace, and more and more uneven."""
    yield "shipped, lifted", lifted("58x256x8", 40_000).split(0.5)
    for law in ("zipf:0.5", "zipf:0.8"):
        trace = routing_by_law(parse_law(law), model, tokens=40_000, sequence=512, phase="prefill", position=0, seed=1)
        yield law, trace.split(0.5)


def spare() -> None:
    """8 GPUs, EP8, prefill: EPLB without spare slots, with 64, and with these used by what each step needs."""
    cluster, model = load_cluster("dgx-h200"), load_model("deepseek-v3")
    print("| routing | balance in order | EPLB, none spare | 64 spare | 64 spare, lplb |\n|---|---:|---:|---:|---:|")
    for name, (planning, measuring) in routings(model):
        asked = (("contiguous", 32, "round_robin"), ("eplb", 32, "round_robin"), ("eplb", 40, "round_robin"),
                 ("eplb", 40, "lplb"))  # fmt: skip
        base, *plans = (on_one_node(cluster, model, planning, measuring, *plan) for plan in asked)
        gains = " | ".join(
            f"{base.step_time_s / plan.step_time_s - 1:+.1%}, balance {plan.balance:.2f}" for plan in plans
        )
        print(f"| {name} | {base.balance:.2f} | {gains} |", flush=True)
    print("| published: DSv4-Pro, 8 MI355, prefill 8192, requests/s | | +17 % | +24 % (naive) | +34 % (biased) |")


def on_one_node(
    cluster: Cluster,
    model: ModelShape,
    planning: RoutingTrace,
    measuring: RoutingTrace,
    solver: str,
    slots: int,
    rule: str,
) -> Prediction:
    """A prefill step under a plan; experts go to any rank, whatever groups the router has."""
    workload = Workload(phase="prefill", tokens_per_rank=2048, steps=1, reuse=True)
    found = place(
        cluster,
        model,
        planning,
        workload,
        solver=solver,
        slots_per_rank=slots,
        network="bound",
        replica_rule=rule,
        expert_groups=1 if solver == "eplb" else None,
    )
    return simulate(cluster, model, found.plan, measuring, workload, network="bound", gains=False)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("requests", "oracle", "spare"), help="one of the tables (all three)")
    parser.add_argument("--trace", type=Path, default=SHARED / "traces" / "deepseek-v2-lite.npz")
    arguments = parser.parse_args()
    lite = load_model("deepseek-v2-lite")
    traces = {"shipped, lifted to 26 layers": (lite, lifted("26x64x6", 33_000).split(0.5))}
    if arguments.trace.exists():
        traces["DeepSeek-V2-Lite"] = (lite, import_npz(arguments.trace).split(0.5))
    if arguments.part in (None, "requests"):
        requests(traces)
    if arguments.part in (None, "oracle"):
        oracle(traces)
    if arguments.part in (None, "spare"):
        spare()


def lifted(shape: str, tokens: int) -> RoutingTrace:
    """The shipped trace's prefill routing, lifted to another shape."""
    fitted = fit_trace(read_trace(shipped_trace_path()), phase="prefill")
    return concatenate(list(synthesise(fitted, shape=shape, tokens=tokens, seed=1)))


if __name__ == "__main__":
    main()
