"""How long a step over many GPUs takes: a decode step of DeepSeek-V3, all 58 MoE layers, EP over all of them.

A line for each rung, each in a process of its own, of the second time that it is asked there: CPU seconds to build the
program (traffic, paths, flows) and to run the rung; the process's peak memory, and by how much the step raised it;
(flow, link) pairs. `--simulate` prints instead what whole answers of `moecast.sim.simulate` take, with and without the
gains that name the bottleneck, and what a command takes besides. Loops are compiled before, in another process.

    python benchmarks/wide.py [--nodes 32] [--layers 58] [--ep 256] [--rungs bound,fluid:0.3%] [--simulate]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from moecast.sim import Exchange, Plan, Workload, draw_steps, find_rung, load_model, simulate, step_program
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import load_cluster

Found = TypeVar("Found")

SEQUENCES = 32  # of each rank
WARM_UP = 2  # layers of the step that compiles the loops
STEP = (
    f"{'rung':>11} {'program CPU s':>13} {'rung CPU s':>10} {'step ms':>8} {'peak MiB':>8} {'of it':>6} {'pairs':>11}"
)
WHOLE = f"{'rung':>11} {'CPU s':>6} {'with gains':>10} {'step ms':>8} {'peak MiB':>8} {'imports':>8} {'routing':>8}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--ep", type=int, help="ranks of an EP group; all of them without it")
    parser.add_argument("--rungs", default="bound,fluid:0.3%")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    ep = args.ep or 8 * args.nodes
    if args.one:
        print((answered if args.simulate else stepped)(Asked(args.nodes, args.layers, ep), args.one))
        return
    print(f"DeepSeek-V3, decode, {8 * args.nodes} GPUs in EP groups of {ep}, {args.layers} MoE layers")
    print(WHOLE if args.simulate else STEP, flush=True)
    for rung in args.rungs.split(","):
        for layers in (min(WARM_UP, args.layers), args.layers):
            given = ["--nodes", str(args.nodes), "--layers", str(layers), "--ep", str(ep), "--one", rung]
            given += ["--simulate"] if args.simulate else []
            out = subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True)
        print(out.stdout, end="", flush=True)


class Asked:
    """Cluster, model, plan and routing, and what the latter two took."""

    def __init__(self, nodes: int, layers: int, ep: int) -> None:
        self.imports_s = time.process_time()
        self.cluster, model = load_cluster("dgx-h200", nodes=nodes), load_model("deepseek-v3")
        self.model = model if layers == model.layers else model.of_layers(model.moe_layer_ids[:layers])
        self.plan = Plan.contiguous(self.model, self.cluster, ep=ep)
        self.workload = Workload(phase="decode", tokens_per_rank=SEQUENCES, steps=1, context=4096)
        tokens, law = 2 * SEQUENCES * self.cluster.n_gpus, parse_law("zipf:0.5")
        how = {"tokens": tokens, "sequence": 2, "phase": "decode", "position": 4000, "seed": 0}
        self.routing_s, self.trace = cpu_seconds(partial(routing_by_law, law, self.model, **how))


def stepped(asked: Asked, network: str) -> str:
    """Time one step: the program and the rung."""
    rung, step = find_rung(network), draw_steps(asked.trace, asked.workload, ranks=asked.plan.ranks)[0]
    before = peak_mib()
    build = partial(step_program, asked.cluster, asked.model, asked.plan, asked.trace, step)
    rung.run(build())
    built_s, program = cpu_seconds(build)
    run_s, times = cpu_seconds(partial(rung.run, program))
    peak = peak_mib()
    pairs = sum(len(task.fill().link_X) for task in program.tasks if isinstance(task, Exchange))
    spent = f"{built_s:13.2f} {run_s:10.2f} {1e3 * times.step_time_s:8.3f}"
    return f"{network:>11} {spent} {peak:8.0f} {peak - before:6.0f} {pairs:11,}"


def answered(asked: Asked, network: str) -> str:
    """Time whole answers."""
    question = asked.cluster, asked.model, asked.plan, asked.trace, asked.workload
    answer = partial(simulate, *question, network=network)
    answer(gains=False)
    spent_s, found = cpu_seconds(partial(answer, gains=False))
    peak = peak_mib()
    gains_s = "–"
    if network == "bound":  # about ten runs of the rung
        gains_s = f"{cpu_seconds(answer)[0]:.2f}"
    step_ms = 1e3 * found.step_times_s[0] if found.step_times_s else float("nan")
    besides = f"{asked.imports_s:8.2f} {asked.routing_s:8.2f}"
    return f"{network:>11} {spent_s:6.2f} {gains_s:>10} {step_ms:8.3f} {peak:8.0f} {besides}"


def cpu_seconds(run: Callable[[], Found]) -> tuple[float, Found]:
    """CPU seconds of the process, and what was found."""
    before = time.process_time()
    found = run()
    return time.process_time() - before, found


def peak_mib() -> float:
    """The process's highest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
