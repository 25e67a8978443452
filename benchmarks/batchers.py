"""CPU seconds of all calls of the batchers of 64 ranks, over 10,000 requests in a closed loop of 1,024.

    python benchmarks/batchers.py [--batcher vllm] [--requests 10000] [--concurrency 1024] [--ranks 64]

Ranks step together; where all of them are quiet the steps are taken at once, as the event loop does it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from moecast.sim.serving.batchers import Batcher, find_batcher
from moecast.sim.serving.request import Request


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batcher", default="vllm")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=1024)
    parser.add_argument("--ranks", type=int, default=64)
    options = parser.parse_args()
    print(f"{'tokens':>12} {'steps':>8} {'CPU s':>7}")
    for least in (1024, 800):
        policy = find_batcher(options.batcher)
        batchers = [policy.start(policy.limits(kv_blocks=4000)) for _ in range(options.ranks)]
        seconds, steps = serve(batchers, lengths(options.requests, least), options.concurrency)
        print(f"{f'{least}–1024':>12} {steps:>8} {seconds:>7.2f}")


def lengths(requests: int, least: int) -> list[tuple[int, int]]:
    """Tokens of prompts and answers, from `least` to 1,024."""
    rng = np.random.default_rng(0)
    return [(int(prompt), int(output)) for prompt, output in rng.integers(least, 1025, (requests, 2))]


def serve(batchers: list[Batcher], tokens: list[tuple[int, int]], concurrency: int) -> tuple[float, int]:
    """CPU seconds and steps until every request is at an end; each goes to the rank with fewest."""
    quiet, behind, load = ([0] * len(batchers) for _ in range(3))
    at: dict[int, int] = {}
    free, ended, steps = concurrency, 0, 0
    start_s = time.process_time()
    while ended < len(tokens):
        while free and len(at) < len(tokens):
            rank = load.index(min(load))
            catch_up(batchers[rank], behind, rank)
            prompt, output = tokens[len(at)]
            batchers[rank].add(Request(id=len(at), arrival_s=0.0, prompt_tokens=prompt, output_tokens=output))
            quiet[rank] = min(quiet[rank], batchers[rank].quiet_steps())
            at[len(at)] = rank
            load[rank] += 1
            free -= 1
        busy = [rank for rank, batcher in enumerate(batchers) if batcher.running or batcher.waiting]
        leap = max(1, min(quiet[rank] for rank in busy))
        for rank in busy:
            if quiet[rank] >= leap:
                quiet[rank] -= leap
                behind[rank] += leap
                continue
            catch_up(batchers[rank], behind, rank)
            for request in batchers[rank].done(batchers[rank].schedule()):
                load[at[request]] -= 1
                free += 1
                ended += 1
            quiet[rank] = batchers[rank].quiet_steps()
        steps += leap
    return time.process_time() - start_s, steps


def catch_up(batcher: Batcher, behind: list[int], rank: int) -> None:
    """Tell a batcher of the quiet steps that went by."""
    if behind[rank]:
        batcher.advance(behind[rank])
        behind[rank] = 0


if __name__ == "__main__":
    main()
