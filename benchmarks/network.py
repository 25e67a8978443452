"""How long the network rungs take for one step: DeepSeek-V2-Lite's 26 MoE layers on 32 GPUs, two exchanges each.

Prints a line for each rung and dispatch shape: warm (the fastest of three runs) and cold (a fresh process with an empty
numba cache, compilation included). `--tolerance` prints instead what a tolerance costs and saves: one exchange of
uneven sizes, exact and within tolerances, CPU seconds beside the error. Where the exact answer would take hours,
`--no-exact` compares with the least tolerance.

    python benchmarks/network.py [--nodes 4] [--layers 26] [--no-cold]
    python benchmarks/network.py --tolerance --nodes 16 [--sizes lognormal]
    python benchmarks/network.py --tolerance --nodes 128 --no-exact --tolerances 0.1,2
    python benchmarks/network.py --drawn 500 --nodes 3

`--drawn` draws steps whose ranks start apart, over ports of different speeds, and prints how often a tolerance's errors
are larger than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moecast.sim.network import RUNGS, Bound, Fluid
from moecast.sim.program import Compute, Exchange, Flows, StepProgram
from moecast.topology import Cluster, load_cluster

SHAPES = ("per_rank", "per_domain")
COPY_BYTES = 7168.0

Sizes = Callable[[np.random.Generator, int], np.ndarray]
SIZES: dict[str, Sizes] = {
    "lognormal": lambda rng, n: 64 * rng.lognormal(0.0, 1.0, (n, n)),
    "pareto": lambda rng, n: 64 * rng.pareto(1.5, (n, n)),
    "popular": lambda rng, n: rng.poisson(64 * rng.gamma(4.0, 0.25, (1, n)), (n, n)),
    "zipf": lambda rng, n: rng.multinomial(64 * n, rng.permutation(zipf(n)), n),
}
"""Copies from each rank to each: all different, some huge, or as popular as the receiver is."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--fabric", default="leaf-spine:2")
    parser.add_argument("--no-cold", action="store_true")
    parser.add_argument("--tolerance", action="store_true")
    parser.add_argument("--tolerances", default="0.1,0.3,1,2,5,10", help="in percent")
    parser.add_argument("--sizes", choices=sorted(SIZES), default="lognormal")
    parser.add_argument("--no-exact", action="store_true")
    parser.add_argument("--drawn", type=int, default=0, help="steps of uneven exchanges, instead of one exchange")
    parser.add_argument("--one", nargs=2, metavar=("RUNG", "SHAPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    cluster = load_cluster("dgx-h200", nodes=args.nodes, fabric=args.fabric)
    if args.tolerance:
        tolerances = [float(percent) / 100 for percent in args.tolerances.split(",")]
        write_tolerances(cluster, SIZES[args.sizes], tolerances if args.no_exact else [0.0, *tolerances])
        return
    if args.drawn:
        write_drawn(cluster, args.drawn)
        return
    if args.one:
        print(json.dumps(measure(cluster, args.layers, *args.one, runs=1)))
        return
    print(f"{cluster.n_gpus} ranks, {args.layers} layers, 2 exchanges each, {args.fabric}, {os.cpu_count()} cores")
    print(f"{'rung':8} {'shape':12} {'flows':>8} {'warm s':>9} {'cold s':>9} {'step ms':>9}")
    for shape in SHAPES:
        for rung in RUNGS:
            warm = measure(cluster, args.layers, rung.name, shape, runs=4)
            cold = "-" if args.no_cold else f"{measure_cold(rung.name, shape)['seconds']:.2f}"
            print(
                f"{rung.name:8} {shape:12} {warm['flows']:8.0f} {warm['seconds']:9.4f} {cold:>9} {warm['step_ms']:9.4f}"
            )


def write_tolerances(cluster: Cluster, sizes: Sizes, tolerances: list[float]) -> None:
    """Print what tolerances cost and save on an exchange of uneven sizes, beside the first of them."""
    Fluid(tolerance=0.1).run(uneven_program(load_cluster("dgx-h200", nodes=1), sizes))  # compiles
    program = uneven_program(cluster, sizes)
    print(f"{cluster.n_gpus} ranks, {cluster.n_gpus**2} flows of uneven sizes, {os.cpu_count()} cores")
    print(f"{'rung':>11} {'CPU s':>8} {'exchange us':>12} {'its error':>9} {'mean rank':>9} {'worst rank':>10}")
    exact_G = np.zeros(0)
    for rung in (Fluid(tolerance=tolerance) for tolerance in tolerances):
        before = time.process_time()
        leave_G = rung.run(program).leave_SG[0]
        cpu_s = time.process_time() - before
        exact_G = exact_G if len(exact_G) else leave_G
        error_G = np.abs(leave_G / exact_G - 1)
        print(
            f"{rung.name:>11} {cpu_s:8.2f} {1e6 * leave_G.max():12.1f} {leave_G.max() / exact_G.max() - 1:9.2%} "
            f"{error_G.mean():9.2%} {error_G.max():10.2%}"
        )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def write_drawn(cluster: Cluster, count: int) -> None:
    """Print errors of steps drawn at random, in times of the tolerance: of the last end, and of the worst rank."""
    last, worst, early = [], [], 0.0
    for seed in range(count):
        rng = np.random.default_rng(seed)
        program, tolerance = drawn_program(cluster, rng), float(10 ** rng.uniform(-2.7, -1))
        least, exact, found = (rung.run(program).leave_SG for rung in (Bound(), Fluid(), Fluid(tolerance=tolerance)))
        last.append(abs(found[-1].max() / exact[-1].max() - 1) / tolerance)
        worst.append(np.abs(found / exact - 1).max() / tolerance)
        early = max(early, float((least / found).max()) - 1)
    print(f"{count} steps of {cluster.n_gpus} ranks, tolerances from 0.2 to 10 %; errors in times of the tolerance")
    print(f"{'':>12} {'median':>8} {'90 %':>8} {'99 %':>8} {'largest':>8}")
    for name, errors in (("last end", last), ("worst rank", worst)):
        row = " ".join(f"{np.quantile(errors, part):8.3f}" for part in (0.5, 0.9, 0.99, 1.0))
        print(f"{name:>12} {row}")
    print(f"a leave before the bound: at most {early:.1e} of it")


def drawn_program(cluster: Cluster, rng: np.random.Generator) -> StepProgram:
    """One to three uneven exchanges, each after computing for up to about as long, over ports of different speeds."""
    ranks, sigma, apart = cluster.n_gpus, rng.uniform(0, 1.5), rng.uniform(0, 1.0)
    tasks: list[Compute | Exchange] = []
    for layer in range(int(rng.integers(1, 4))):
        sends_SD = 64 * rng.lognormal(0.0, sigma, (ranks, ranks)) * COPY_BYTES
        alone_s = sends_SD.sum() / ranks / 50e9
        tasks.append(Compute(kind="attention", layer=layer, seconds_R=rng.uniform(0, apart * alone_s, ranks)))
        tasks.append(uneven_exchange(cluster, sends_SD, layer))
    capacity_J = cluster.capacity_J * rng.uniform(0.5, 2.0, len(cluster.capacity_J))
    return StepProgram(
        tasks=tuple(tasks), n_ranks=ranks, capacity_J=capacity_J, link_names_J=tuple(cluster.link_names_J)
    )


def uneven_program(cluster: Cluster, sizes: Sizes) -> StepProgram:
    """Make a program of one exchange."""
    ranks = cluster.n_gpus
    exchange = uneven_exchange(cluster, sizes(np.random.default_rng(0), ranks) * COPY_BYTES, 0)
    return StepProgram(
        tasks=(exchange,), n_ranks=ranks, capacity_J=cluster.capacity_J, link_names_J=tuple(cluster.link_names_J)
    )


def uneven_exchange(cluster: Cluster, sends_SD: np.ndarray, layer: int) -> Exchange:
    """Make an exchange of what each rank sends to each."""
    return Exchange(
        kind="dispatch",
        layer=layer,
        flows=direct_flows(cluster, sends_SD),
        setup_s=0.0,
        barrier=False,
        group_R=np.zeros(cluster.n_gpus, np.int32),
    )


def zipf(n: int) -> np.ndarray:
    """Parts of `n` ranks in what is sent, after their place to the power of .8."""
    part_G = np.arange(1, n + 1) ** -0.8
    return part_G / part_G.sum()


def measure(cluster: Cluster, layers: int, rung_name: str, shape: str, *, runs: int) -> dict[str, float]:
    """Time the fastest of several runs of one rung."""
    rung = next(rung for rung in RUNGS if rung.name == rung_name)
    program = step_program(cluster, layers, shape)
    seconds = []
    for _ in range(runs):
        before = time.perf_counter()
        times = rung.run(program)
        seconds.append(time.perf_counter() - before)
    flows = sum(stage.fill().n for stage in program.tasks if isinstance(stage, Exchange))
    return {"seconds": min(seconds), "step_ms": times.step_time_s * 1e3, "flows": flows}


def measure_cold(rung: str, shape: str) -> dict[str, float]:
    """One run in a new process that must compile everything first."""
    with tempfile.TemporaryDirectory() as cache:
        answer = subprocess.run(
            [sys.executable, str(Path(__file__)), *sys.argv[1:], "--one", rung, shape],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def step_program(cluster: Cluster, layers: int, shape: str) -> StepProgram:
    """Make a decode-like step: attention, dispatch, experts, combine at every layer; uneven work and traffic."""
    rng = np.random.default_rng(0)
    ranks = cluster.n_gpus
    flows_of = {"per_rank": direct_flows, "per_domain": relayed_flows}[shape]
    group_G = np.zeros(ranks, np.int32)
    stages: list[Compute | Exchange] = []
    for layer in range(layers):
        sends_SD = rng.poisson(64 * rng.gamma(4.0, 0.25, (1, ranks)), (ranks, ranks)) * COPY_BYTES
        stages += [
            Compute(kind="attention", layer=layer, seconds_R=rng.normal(60e-6, 3e-6, ranks)),
            Exchange(
                kind="dispatch",
                layer=layer,
                flows=flows_of(cluster, sends_SD),
                setup_s=5e-6,
                barrier=False,
                group_R=group_G,
            ),
            Compute(kind="expert", layer=layer, seconds_R=rng.normal(80e-6, 10e-6, ranks)),
            Exchange(
                kind="combine",
                layer=layer,
                flows=flows_of(cluster, 2 * sends_SD.T),
                setup_s=5e-6,
                barrier=False,
                group_R=group_G,
            ),
        ]
    return StepProgram(
        tasks=tuple(stages), n_ranks=ranks, capacity_J=cluster.capacity_J, link_names_J=tuple(cluster.link_names_J)
    )


def direct_flows(cluster: Cluster, sends_SD: np.ndarray) -> Flows:
    """One flow for each pair of ranks."""
    source_F, destination_F = (a.ravel().astype(np.int32) for a in np.indices(sends_SD.shape))
    return _flows(cluster, sends_SD.ravel(), source_F, destination_F, waiter_F=destination_F)


def relayed_flows(cluster: Cluster, sends_SD: np.ndarray) -> Flows:
    """One flow from each rank to its peer of the same index in every other domain, which feeds the last legs."""
    domain_G, index_G = cluster.domain_of_gpu_G, cluster.index_in_domain_G
    source_F, destination_F, waiter_F, bytes_F, parent_F = [], [], [], [], []
    for source in range(cluster.n_gpus):
        for domain in range(cluster.n_domains):
            members = np.flatnonzero(domain_G == domain)
            relay, parent = source, -1
            if domain_G[source] != domain:
                relay, parent = cluster.gpu_at(domain, int(index_G[source])), len(bytes_F)
                source_F.append(source)
                destination_F.append(relay)
                waiter_F.append(-1)
                bytes_F.append(0.6 * sends_SD[source, members].sum())
                parent_F.append(-1)
            source_F += [relay] * len(members)
            destination_F += members.tolist()
            waiter_F += members.tolist()
            bytes_F += sends_SD[source, members].tolist()
            parent_F += [parent] * len(members)
    arrays = (np.asarray(a, np.int32) for a in (source_F, destination_F, waiter_F))
    source, destination, waiter = arrays
    return _flows(cluster, np.asarray(bytes_F), source, destination, waiter_F=waiter, parent_F=np.asarray(parent_F))


def _flows(
    cluster: Cluster,
    bytes_F: np.ndarray,
    source_F: np.ndarray,
    destination_F: np.ndarray,
    *,
    waiter_F: np.ndarray,
    parent_F: np.ndarray | None = None,
) -> Flows:
    parent_F = np.full(len(bytes_F), -1) if parent_F is None else parent_F
    routes = cluster.routes(source_F, destination_F)
    return Flows(
        bytes_F=bytes_F.astype(np.float64),
        source_rank_F=source_F,
        destination_rank_F=destination_F,
        waiter_F=waiter_F,
        offsets_F1=routes.offsets_F1,
        link_X=routes.link_X,
        share_X=routes.share_X,
        latency_F=routes.latency_F,
        parent_offsets_F1=np.concatenate(([0], np.cumsum(parent_F >= 0))),
        parent_R=parent_F[parent_F >= 0].astype(np.int32),
        feed_delay_F=np.where(parent_F >= 0, 3e-6, 0.0),
        feed_tail_F=np.where(parent_F >= 0, 2e-6, 0.0),
    )


if __name__ == "__main__":
    main()
