"""How long a step over many GPUs takes: a decode step of DeepSeek-V3, all 58 MoE layers, EP over all of them.

A line for each rung, each in a process of its own: CPU seconds to build the program (traffic, paths, flows) and to run
the rung, loops compiled before; the process's peak memory; (flow, link) pairs.

    python benchmarks/wide.py [--nodes 32] [--layers 58] [--rungs bound,fluid:0.3%]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

from moecast.sim import Exchange, Plan, Workload, draw_steps, find_rung, load_model, step_program
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import load_cluster

SEQUENCES = 32  # of each rank
WARM_UP = 2  # layers of the step that compiles the loops


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--rungs", default="bound,fluid:0.3%")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        ask(args.nodes, WARM_UP, args.one)
        print(ask(args.nodes, args.layers, args.one))
        return
    print(f"DeepSeek-V3, decode, {8 * args.nodes} GPUs, {args.layers} MoE layers")
    print(
        f"{'rung':>11} {'program CPU s':>13} {'rung CPU s':>10} {'step ms':>8} {'peak MiB':>8} {'pairs':>11}",
        flush=True,
    )
    for rung in args.rungs.split(","):
        given = ["--nodes", str(args.nodes), "--layers", str(args.layers), "--one", rung]
        subprocess.run([sys.executable, __file__, *given], check=True)


def ask(nodes: int, layers: int, network: str) -> str:
    """Time one step."""
    cluster, model, rung = load_cluster("dgx-h200", nodes=nodes), load_model("deepseek-v3"), find_rung(network)
    model = model.of_layers(model.moe_layer_ids[:layers])
    workload = Workload(phase="decode", tokens_per_rank=SEQUENCES, steps=1, context=4096)
    tokens = 2 * SEQUENCES * cluster.n_gpus
    trace = routing_by_law(
        parse_law("zipf:0.5"), model, tokens=tokens, sequence=2, phase="decode", position=4000, seed=0
    )
    step = draw_steps(trace, workload, ranks=cluster.n_gpus)[0]
    start = time.process_time()
    program = step_program(cluster, model, Plan.contiguous(model, cluster), trace, step)
    built = time.process_time()
    times = rung.run(program)
    done = time.process_time()
    pairs = sum(len(stage.fill().link_X) for stage in program.tasks if isinstance(stage, Exchange))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = f"{built - start:13.2f} {done - built:10.2f} {1e3 * times.step_time_s:8.3f}"
    return f"{network:>11} {spent} {peak:8.0f} {pairs:11,}"


if __name__ == "__main__":
    main()
