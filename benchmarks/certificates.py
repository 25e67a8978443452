"""How far certificates are from plans on a real trace: fan-out layer by layer, and the step time.

Planning tokens of DeepSeek-V2-Lite's trace (the first half of each topic), 8 ranks of 8 experts, no replicas. With
--nodes N, the step time on so many nodes of 8 GPUs in every dispatch mode instead. With --sets N, the fan-out over N
sets, such as domains.

Run: python benchmarks/certificates.py [--trace FILE.npz] [--first LAYER] [--last LAYER] [--sets N]
                                       [--step prefill|decode|stay] [--nodes N [--modes MODE,...]]
                                       [--moves MOST] [--prove SETS]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from moecast.placement import Objective, PlacementProblem, certificate_s, place
from moecast.placement.certificates import fan_out_bound
from moecast.sim import Plan, Workload, load_model
from moecast.topology import load_cluster
from moecast.traces import RoutingTrace, import_npz

SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TOKENS, RANKS, NODES = 4096, 8, 20_000_000
PROVE_NODES = 300_000  # of each layer's copies in a step time
STEPS = {
    "prefill": ({"phase": "prefill", "tokens_per_rank": 500, "steps": 1}, None),
    "stay": ({"phase": "prefill", "tokens_per_rank": 500, "steps": 1}, "stay"),
    "decode": ({"phase": "decode", "tokens_per_rank": 64, "steps": 1, "from_phase": "prefill"}, None),
}


MODES = "per_domain,per_rank,per_choice,nccl,stay"


def fan_outs(planning: RoutingTrace, first: int, last: int, sets: int) -> None:
    """Each layer: what is proved, the best plan met, and the gap; without a limit to loads, and with one."""
    rows = np.linspace(0, planning.n_tokens - 1, TOKENS).astype(int)
    _, experts, _ = planning.meta.shape_LEK
    print("| layer | fan-out ≥ | plan | gap | CPU s | loads ≤ 1.05: ≥ | plan | gap | CPU s |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for layer in range(first, last):
        cells = []
        for most_load in (None, 1.05):
            begin = time.process_time()
            found = fan_out_bound(
                planning.experts_TLK[rows, layer],
                experts,
                [experts // sets] * sets,
                most_load=most_load,
                most_nodes=NODES,
            )
            plan, seconds = found.plan_copies / found.tokens, time.process_time() - begin
            cells.append(f"{found.fan_out:.3f} | {plan:.3f} | {100 * found.gap:.1f} % | {seconds:.1f}")
        print(f"| {layer} | {' | '.join(cells)} |", flush=True)


def step_time(planning: RoutingTrace, kind: str, mode: str | None, nodes: int, moves: int, prove: int) -> None:
    """The gap of the best plan that local search finds, by counting choices alone and with copies proved."""
    cluster, model = load_cluster("dgx-h200", nodes=nodes), load_model("deepseek-v2-lite")
    workload, ranks = Workload(reuse=True, **STEPS[kind][0]), RANKS * nodes
    layers, experts, choices = planning.meta.shape_LEK
    wanted = Plan.contiguous(
        layers=layers, experts=experts, choices=choices, ep=ranks, slots_per_rank=experts // ranks
    ).with_(dispatch=mode)
    problem = PlacementProblem(cluster=cluster, model=model, trace=planning, workload=workload, wanted=wanted)
    objective = Objective(problem)
    found = place(
        cluster, model, planning, workload, solver="local-search", dispatch=mode, work_limit=moves
    ).plan.slots_DLGP[0]
    step_s, begin = objective.step_s(found), time.process_time()
    counted_s = certificate_s(problem, objective.judged)
    proved_s = certificate_s(problem, objective.judged, prove_nodes=prove)
    gaps = [f"{1e3 * bound_s:.2f} | {100 * (1 - bound_s / step_s):.1f} %" for bound_s in (counted_s, proved_s)]
    name = f"{kind}, {mode}" if mode and mode != kind else kind
    print(f"| {name} | {1e3 * step_s:.2f} | {' | '.join(gaps)} | {time.process_time() - begin:.0f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=SHARED / "traces" / "deepseek-v2-lite.npz")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=26)
    parser.add_argument("--sets", type=int, default=RANKS)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--modes", default=MODES)
    parser.add_argument("--moves", type=int, default=4_000_000)
    parser.add_argument("--prove", type=int, default=PROVE_NODES)
    arguments = parser.parse_args()
    if not arguments.trace.exists():
        print(f"skipped: {arguments.trace} is absent (set MOECAST_SHARED)")
        return
    planning, _ = import_npz(arguments.trace).split(0.5)
    if not arguments.step and arguments.nodes == 1:
        fan_outs(planning, arguments.first, arguments.last, arguments.sets)
        return
    print("| step | plan, ms | counted, ms | gap | proved, ms | gap | CPU s |\n|---|---:|---:|---:|---:|---:|---:|")
    if arguments.nodes == 1:
        step_time(planning, arguments.step, STEPS[arguments.step][1], 1, arguments.moves, arguments.prove)
        return
    for kind in [arguments.step] if arguments.step else ["prefill", "decode"]:
        for mode in arguments.modes.split(","):
            step_time(planning, kind, mode, arguments.nodes, arguments.moves, arguments.prove)


if __name__ == "__main__":
    main()
