"""How long it takes to forecast one whole step: DeepSeek-V2-Lite on 32 H200 (4 nodes, leaf-spine 2:1), EP32.

Traffic, program and network rung together; a line for each phase and rung: warm (the fastest of three runs) and cold
(a fresh process with an empty numba cache, compilation included). The routing is real where the shared trace is at hand
(MOECAST_SHARED), drawn with reuse, else made up.

    python benchmarks/step.py [--nodes 4] [--tokens 4096] [--no-cold]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from moecast.sim import PlacedModel, Plan, Step, Workload, draw_steps, find_rung, load_model, simulate_step
from moecast.sim.forward import ForwardPass
from moecast.sim.schedules import program_of
from moecast.topology import Cluster, load_cluster
from moecast.traces import PHASES, RoutingTrace, TraceMeta, import_npz

MODEL = "deepseek-v2-lite"
SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--fabric", default="leaf-spine:2")
    parser.add_argument("--tokens", type=int, default=4096, help="per rank in prefill; decode takes 128 sequences")
    parser.add_argument("--no-cold", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("PHASE", "RUNG"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    cluster = load_cluster("dgx-h200", nodes=args.nodes, fabric=args.fabric)
    trace = shared_trace() or made_up_trace()
    if args.one:
        question = ask(cluster, trace, args.one[0], args.tokens)
        print(json.dumps(seconds_of(lambda: simulate_step(*question, network=args.one[1]), runs=1)))
        return
    print(f"{MODEL} on {cluster.name}, EP{cluster.n_gpus}, routing: {trace.meta.model}, {os.cpu_count()} cores")
    for phase in ("prefill", "decode"):
        question = ask(cluster, trace, phase, args.tokens)
        print_parts(question)
        for rung in ("bound", "fluid"):
            _, times = simulate_step(*question, network=rung)
            warm = seconds_of(partial(simulate_step, *question, network=rung), runs=3)
            cold = "" if args.no_cold else f", cold {cold_seconds(phase, rung):.1f} s"
            print(f"  {rung:8} step {times.step_time_s * 1e3:9.3f} ms: forecast in {warm:.3f} s warm{cold}")


def ask(cluster: Cluster, trace: RoutingTrace, phase: str, tokens: int) -> tuple[Any, ...]:
    """Make the arguments of `simulate_step`."""
    model = load_model(MODEL)
    plan = Plan.contiguous(
        layers=model.layers,
        experts=model.experts,
        choices=model.choices,
        ep=cluster.n_gpus,
        layer_ids=model.moe_layer_ids,
    )
    workload = Workload(
        phase=phase, tokens_per_rank=tokens if phase == "prefill" else 128, steps=1, reuse=True, from_phase="prefill"
    )
    return cluster, model, plan, trace, draw_steps(trace, workload, ranks=plan.ranks)[0]


def print_parts(question: tuple[Any, ...]) -> None:
    """Print what the parts of a warm forecast take."""
    cluster, model, plan, trace, step = question
    step: Step
    placed = PlacedModel.of(cluster, model, plan, phase=step.phase)
    forward = ForwardPass.of(placed, trace, step)
    program = program_of(forward)
    choices = step.n_tokens * model.layers * model.choices
    parts = {
        "layout": seconds_of(lambda: PlacedModel.of(cluster, model, plan, phase=step.phase), runs=3),
        "traffic": seconds_of(lambda: ForwardPass.of(placed, trace, step), runs=3),
        "program": seconds_of(lambda: program_of(forward), runs=3),
        "bound": seconds_of(lambda: find_rung("bound").run(program), runs=3),
    }
    text = ", ".join(f"{part} {seconds * 1e3:.1f} ms" for part, seconds in parts.items())
    print(f"{step.phase}, {step.n_tokens // plan.ranks} tokens per rank, {len(program.tasks)} stages: {text}")
    print(f"  traffic counts {choices / parts['traffic'] / 1e6:.0f} M choices/s on one core")


def seconds_of(run: Callable[[], object], *, runs: int) -> float:
    """Time the fastest of several runs."""
    seconds = []
    for _ in range(runs):
        before = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - before)
    return min(seconds)


def cold_seconds(phase: str, rung: str) -> float:
    """Time one run in a new process that must compile everything first."""
    with tempfile.TemporaryDirectory() as cache:
        answer = subprocess.run(
            [sys.executable, str(Path(__file__)), *sys.argv[1:], "--one", phase, rung],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(json.loads(answer.stdout))


def shared_trace() -> RoutingTrace | None:
    """Read the shared trace of DeepSeek-V2-Lite, where it is at hand."""
    path = SHARED / "traces" / f"{MODEL}.npz"
    return import_npz(path, model=MODEL) if path.exists() else None


def made_up_trace() -> RoutingTrace:
    """Make skewed random routing of the same sizes."""
    model, tokens = load_model(MODEL), 20_000
    rng = np.random.default_rng(0)
    score = rng.gumbel(size=(tokens, model.layers, model.experts)) + rng.normal(size=(model.layers, model.experts)) / 2
    return RoutingTrace(
        meta=TraceMeta(model="made up", layers=model.layers, experts=model.experts, choices=model.choices),
        experts_TLK=np.argsort(-score, axis=2)[:, :, : model.choices].astype(np.uint16),
        sequence_T=(np.arange(tokens) // 200).astype(np.uint32),
        position_T=(np.arange(tokens) % 200).astype(np.uint32),
        phase_T=np.full(tokens, PHASES.index("prefill"), np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )


if __name__ == "__main__":
    main()
