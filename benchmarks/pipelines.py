"""How long a training step over many GPUs takes: DeepSeek-V3 on nodes of 8 H100, 4096 tokens a microbatch.

Routing is even. A line for each question, each in a process of its own: CPU seconds to lay the step out and to run the
rung, loops compiled before; the process's peak memory; tasks.

    python benchmarks/pipelines.py [--schedule dualpipe --gpus 2048 --pp 16 --ep 64 --microbatches 20 --network bound]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace

from moecast.sim import Plan, find_rung, load_model
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.schedules.pipeline import find_pipeline_schedule
from moecast.sim.training import Recipe, draw_microbatches, training_program
from moecast.sim.training.simulate import with_chunks_of
from moecast.topology import load_cluster

TOKENS = 4096  # of a microbatch on each rank: one sequence


@dataclass(frozen=True, kw_only=True)
class Job:
    """One question."""

    schedule: str = "dualpipe"
    gpus: int = 2048
    pp: int = 16
    ep: int = 64
    microbatches: int = 40
    network: str = "bound"


TABLE = (
    Job(microbatches=32),  # the fewest that 16 stages take
    Job(),
    Job(schedule="1f1b", gpus=64, pp=8, ep=8, microbatches=20, network="fluid"),
)


def main() -> None:
    """Print the table, or one line of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Job):
        parser.add_argument(f"--{field.name}", type=type(field.default))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    if given.pop("one"):
        job = replace(Job(), **given)
        ask(replace(job, gpus=2 * job.ep, pp=2, microbatches=4))  # compiles the loops
        print(ask(job), flush=True)
        return
    print(
        f"{'':>38} {'laid out, CPU s':>15} {'rung, CPU s':>11} {'peak MiB':>8} {'tasks':>7} {'step s':>8}", flush=True
    )
    for job in [replace(Job(), **given)] if given else TABLE:
        options = [f"--{field.name}={getattr(job, field.name)}" for field in fields(Job)]
        subprocess.run([sys.executable, __file__, "--one", *options], check=True)


def ask(job: Job) -> str:
    """Time one step."""
    cluster, model = load_cluster("dgx-h100", nodes=max(job.gpus // 8, 1)), load_model("deepseek-v3")
    groups = job.gpus // job.pp // job.ep
    plan = Plan.contiguous(model, ep=job.ep, groups=groups)
    plan = plan.with_(pp=job.pp, dp=0, gpu_of_rank=tuple(range(job.gpus)))
    plan = with_chunks_of(plan, job.schedule)
    recipe = Recipe(sequence=TOKENS, batch=job.microbatches * plan.layout.dp)
    one_layer = model.of_layers(model.moe_layer_ids[:1])  # all layers alike
    trace = routing_by_law(
        parse_law("uniform"), one_layer, tokens=4 * TOKENS, sequence=TOKENS, phase="prefill", position=0, seed=0
    )
    steps = draw_microbatches(trace, recipe, ranks=plan.layout.dp, drawn=1, from_phase=None, seed=0)
    schedule = find_pipeline_schedule(job.schedule)
    start = time.process_time()
    program = training_program(cluster, model, plan, recipe, schedule=schedule, trace=trace, steps=steps)
    laid = time.process_time()
    step_s = find_rung(job.network).run(program).step_time_s
    done = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    what = f"{job.schedule}, {job.gpus} GPUs, {job.microbatches} mb, {job.network}"
    return f"{what:>38} {laid - start:15.1f} {done - laid:11.1f} {peak:8.0f} {len(program.tasks):7,} {step_s:8.3f}"


if __name__ == "__main__":
    main()
