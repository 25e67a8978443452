"""How long a served run takes: 10,000 requests of 1k/1k, 1,024 in flight, on 64 GPUs of DeepSeek-V3, and its memory.

Run: python benchmarks/serving.py [REQUESTS] [IN FLIGHT] [ENGINE]

A million requests: python benchmarks/serving.py 1000000. Iterations in which nobody comes, ends or computes a prompt
are taken many at once, with the same result as one by one (tests/serving/test_conserved.py).
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace

from moecast.sim import Question, Workload, kernels_on, load_model
from moecast.sim.degrees import Degrees
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.sim.serving import Lengths, Serving, make_requests, parse_arrivals, serve
from moecast.topology import load_cluster

SEVERAL = 100_000
"""Up to so many requests a run is done twice: with and without iterations that are simulated to try the surrogate."""


def main() -> None:
    """Print CPU seconds, peak memory and what was served."""
    given = dict(zip(("requests", "users", "engine"), sys.argv[1:], strict=False))
    count, users = int(given.get("requests", 10_000)), int(given.get("users", 1024))
    cluster = kernels_on(load_cluster("dgx-h200", nodes=8), engine=given.get("engine", "sglang"))
    model = load_model("deepseek-v3")
    plan = Degrees(ep=64).contiguous(model.shape_LEK, model.moe_layer_ids, ranks=64)
    trace = routing_by_law(
        parse_law("zipf:0.4"), replace(model, name="zipf"), tokens=4096, sequence=1, phase="decode", position=0, seed=0
    )
    question = Question(
        cluster=cluster,
        model=model,
        plan=plan,
        trace=trace,
        workload=Workload(phase="decode", tokens_per_rank=1),
        network="bound",
        gains=False,
    )
    arrivals = parse_arrivals(f"closed:{users}")
    requests = make_requests(arrivals, Lengths(least_part=0.8), count)
    for tries in (0, 6) if count <= SEVERAL else (0,):
        start = time.process_time()
        served = serve(question, requests, arrivals=arrivals, serving=Serving(tries=tries))
        took_s, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        each_us, iterations = 1e6 * took_s / count, served.iterations
        print(
            f"{count:,} requests, {users:,} in flight: {took_s:.1f} CPU s, at most {peak:.2f} GiB, "
            f"{iterations:,} iterations, {each_us:.0f} us a request, {tries} tries"
        )
    print(served)


main()
