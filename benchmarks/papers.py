"""The papers' setups, forecast beside what the papers claim: MoETuner's and ExFlow's programs on routing that we have.

Nobody published Mixtral's routing. Its stand-in is made of a real trace of another model, lifted to Mixtral's shape
(`moecast trace synth`), with the loads as lifted or with some experts made hotter: what a program gains depends on it.
All plans are made on one half of the tokens and measured on the other.

Run: python benchmarks/papers.py [--trace FILE.npz] [--seconds 20]
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.placement import Budget, Limit
from moecast.placement.exflow import Exflow, fewest_crossings
from moecast.placement.moetuner import bandwidths, tune
from moecast.placement.transitions import crossing_share, slots_of_ranks
from moecast.sim import Plan, Workload, load_model, simulate
from moecast.topology import load_cluster
from moecast.traces import (
    RoutingTrace,
    concatenate,
    fit_trace,
    import_npz,
    load_LE,
    read_trace,
    shipped_trace_path,
    synthesise,
    transition_LEE,
)

SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TOKENS = 24_000
LAYERS, EXPERTS, SERVERS, SLOTS = 32, 8, 4, 2
SETUPS = (("8 H100, EP4 TP2", "dgx-h100", 1, 2, "+9.3 %"), ("16 H200, EP4 TP4", "dgx-h200", 2, 4, "+17.5 %"))
CLAIMED = {4: "56.4 %", 8: "71.5 %"}


def lifted(choices: int) -> tuple[RoutingTrace, RoutingTrace]:
    """Routing of Mixtral's shape: a half to plan on, and one to measure."""
    model = fit_trace(read_trace(shipped_trace_path()), phase="prefill")
    shape = f"{LAYERS}x{EXPERTS}x{choices}"
    made = concatenate(list(synthesise(model, shape=shape, tokens=TOKENS, seed=1)))
    return made.split(0.5)


def hotter(trace: RoutingTrace, share: float, seed: int = 0) -> RoutingTrace:
    """Send some tokens' first choice to one of two neighbours in each layer, where the token has neither of them.

    In order, the two stand on one rank: what MoETuner shows of a layer, whose experts 0 and 1 serve 64 % of the tokens.
    """
    rng = np.random.default_rng(seed)
    experts_TLK = trace.experts_TLK.copy()
    for layer in range(experts_TLK.shape[1]):
        first = 2 * int(rng.integers(0, EXPERTS // 2))
        for hot in (first, first + 1):
            free_T = ~(experts_TLK[:, layer] == hot).any(1) & (rng.random(len(experts_TLK)) < share / 2)
            experts_TLK[free_T, layer, 0] = hot
    return replace(trace, experts_TLK=experts_TLK)


def moetuner(seconds: float) -> None:
    """Prefill steps of Mixtral-8x7B with experts in order and as MoETuner places them."""
    model = load_model("mixtral-8x7b")
    print("| setup | routing | balance in order | MoETuner's | gain | claimed |\n|---|---|---:|---:|---:|---|")
    halves = lifted(2)
    for share in (0.0, 0.2, 0.4):
        planning, measuring = (hotter(half, share) for half in halves)
        routing = "as lifted" if share == 0 else f"two neighbours take {share:.0%} more of the tokens"
        for name, preset, nodes, width, claimed in SETUPS:
            fabric = "single-switch" if nodes > 1 else None
            cluster = load_cluster(preset, nodes=nodes, **({"fabric": fabric} if fabric else {}))
            gpus = tuple(range(SERVERS * width))
            order = Plan.contiguous(model, ep=SERVERS).with_(etp=width, tp=width, gpu_of_rank=gpus, dispatch="nccl")
            rank_LE, _ = tune(
                load_LE(planning),
                transition_LEE(planning),
                slots=SLOTS,
                bandwidth_GG=bandwidths(cluster, gpus[::width]),
                budget=Budget(Limit(time_s=seconds)),
            )
            slots_LGP = slots_of_ranks(rank_LE.astype(np.int32), np.full((LAYERS, SERVERS, SLOTS), -1, np.int32))
            workload = Workload(phase="prefill", tokens_per_rank=1024, steps=2)
            base, tuned = (
                simulate(cluster, model, plan, measuring, workload, network="fluid", gains=False)
                for plan in (order, order.with_(slots_DLGP=slots_LGP[None]))
            )
            print(
                f"| {name} | {routing} | {base.balance:.2f} | {tuned.balance:.2f} "
                f"| {base.step_time_s / tuned.step_time_s - 1:+.1%} | {claimed} |",
                flush=True,
            )


def exflow(traces: dict[str, tuple[RoutingTrace, RoutingTrace]], seconds: float) -> None:
    """Crossings of the second half in order, as published, strengthened; what is proved of the first."""
    print("| routing | GPUs | in order | as published | strengthened | proved on the first | CPU s | claimed |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for name, (planning, measuring) in traces.items():
        pairs_LEE, held_LEE = transition_LEE(planning), transition_LEE(measuring)
        experts = pairs_LEE.shape[1]
        for gpus in (4, 8):
            begin = time.process_time()
            order_LE = np.tile(np.arange(experts) // (experts // gpus), (len(pairs_LEE) + 1, 1)).astype(np.int32)
            shares, bound = [crossing_share(held_LEE, order_LE)], ""
            for strong in (False, True):
                ranks_LE, bound = solved(pairs_LEE, gpus, seconds, strong=strong)
                shares.append(crossing_share(held_LEE, ranks_LE))
            claimed = CLAIMED[gpus] if experts == EXPERTS else ""
            print(
                f"| {name} | {gpus} | {' | '.join(f'{share:.1%}' for share in shares)} | {bound} "
                f"| {time.process_time() - begin:.0f} | {claimed} |",
                flush=True,
            )


def solved(
    pairs_LEE: npt.NDArray[np.int64], gpus: int, seconds: float, *, strong: bool
) -> tuple[npt.NDArray[np.int32], str]:
    """As the solver does it: whole where that is small enough, else by halves."""
    budget = Budget(Limit(time_s=seconds))
    found = Exflow(strong=strong).ranks(pairs_LEE, np.zeros(gpus, np.int32), budget)
    return found.part_LE, f"≥ {found.bound:.1%}" if found.bound else "–"


def small_case() -> None:
    """4 layers of 8 experts on 4 ranks: who proves the fewest crossings, and after how long."""
    planning, _ = lifted(1)
    pairs_LEE = transition_LEE(planning)[:3]
    for strong in (True, False):
        begin = time.process_time()
        found = fewest_crossings(pairs_LEE, 4, Budget(Limit(time_s=30.0)), strong=strong)
        kind = "strengthened" if strong else "as published"
        print(f"4 layers of 8 experts, 4 GPUs, {kind}: {found.words()}, {time.process_time() - begin:.1f} CPU s")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=SHARED / "traces" / "deepseek-v2-lite.npz")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each program")
    arguments = parser.parse_args()
    small_case()
    print()
    moetuner(arguments.seconds)
    print()
    traces = {"Mixtral's shape, top 1, lifted": lifted(1)}
    if arguments.trace.exists():
        traces["DeepSeek-V2-Lite, real, all 6 x 6 pairs"] = import_npz(arguments.trace).split(0.5)
    exflow(traces, arguments.seconds)


if __name__ == "__main__":
    main()
