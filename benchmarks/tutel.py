"""Tutel's question as a study: which parallelism and pipelining degree wins, and what adapting them at run time gains.

A prefill of two layers of DeepSeek-V2-Lite (64 experts, top 6), rung `bound`, from 16 to 2,048 GPUs of DGX H100 over
InfiniBand. Parallelism: EP over 8 to 64 ranks, experts whole or cut by width over 2 to 8; each group of ranks has all
experts, and there are as many groups as GPUs allow. Experts are spread over at least `--spread` ranks, as models need
that do not fit on fewer: 235 billion parameters in training, of 16 bytes each, take 64 GPUs. Sending: a copy per rank
or per domain. Pipelining: the MoE layer in 1, 2, 4 or 8 chunks.

Groups of ranks exchange nothing with each other, so a choice takes on all GPUs what the slowest of its groups takes:
about what one takes alone. On more than `--whole` GPUs each choice is timed on one group alone first, and on all GPUs
only where that is within 5 % of the best (and of the best in one chunk, and of the best with whole experts).

Then 64 GPUs over a real trace with drift, one kind of text after another: the best of all choices that is kept, beside
the best of each window, which is what adapting gains when it costs nothing (Tutel, arXiv 2206.03382, claims zero cost).

    python benchmarks/tutel.py [--trace FILE.npz] [--gpus 16,64,256,1024,2048] [--tokens 4096] [--spread 64]
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from moecast.errors import MoecastError
from moecast.sim import ModelShape, Plan, Workload, load_model, simulate
from moecast.sim.degrees import Degrees
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import Cluster, load_cluster
from moecast.traces import RoutingTrace, import_npz

SHARED = Path(os.environ.get("MOECAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LAYERS, WINDOWS, NEAR = 2, 12, 0.05
EPS, ETPS, DISPATCHES, CHUNKS = (8, 16, 32, 64), (1, 2, 4, 8), ("per_rank", "per_domain"), (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to run an MoE layer."""

    ep: int
    etp: int
    dispatch: str
    chunks: int

    def __str__(self) -> str:
        return f"ep{self.ep} etp{self.etp} {self.dispatch}, {self.chunks} chunks"

    def plan(self, model: ModelShape, ranks: int) -> Plan:
        """Experts in order."""
        plan = Degrees(ep=self.ep, etp=self.etp).contiguous(model.shape_LEK, model.moe_layer_ids, ranks=ranks)
        return plan.with_(dispatch=self.dispatch, schedule=f"chunked:{self.chunks}")


def choices(ranks: int, spread: int) -> Iterator[Choice]:
    """All that divide so many ranks and spread experts enough."""
    for ep, etp, dispatch, chunks in itertools.product(EPS, ETPS, DISPATCHES, CHUNKS):
        if min(spread, ranks) <= ep * etp <= ranks:
            yield Choice(ep=ep, etp=etp, dispatch=dispatch, chunks=chunks)


def times_s(
    cluster: Cluster, model: ModelShape, trace: RoutingTrace, tokens: int, of: Iterable[Choice], *, group: bool = False
) -> dict[Choice, float]:
    """Seconds of a layer by choice, `group`: of one group of ranks alone; those that are refused are left out."""
    work = Workload(phase="prefill", tokens_per_rank=tokens, steps=1, reuse=True)
    found = {}
    for choice in of:
        try:
            plan = choice.plan(model, choice.ep * choice.etp if group else cluster.n_gpus)
            forecast = simulate(cluster, model, plan, trace, work, network="bound", gains=False)
        except (MoecastError, ValueError):
            continue
        found[choice] = forecast.layer_time_s
    return found


def near_best(found: dict[Choice, float]) -> list[Choice]:
    """Choices within 5 % of the best, of the best in one chunk, and of the best with whole experts."""
    near: dict[Choice, None] = {}
    for kind in (found, [one for one in found if one.chunks == 1], [one for one in found if one.etp == 1]):
        least = min((found[one] for one in kind), default=0.0)
        near |= dict.fromkeys(one for one in kind if found[one] <= (1 + NEAR) * least)
    return list(near)


def sizes(model: ModelShape, gpus: list[int], tokens: int, spread: int, whole_gpus: int) -> None:
    """Which choice wins by size, and what those would lose that win at another."""
    print("| GPUs | best | ms a layer | best in one chunk | best with whole experts | choices | timed whole | CPU s |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    law = parse_law("gamma:0.8")
    trace = routing_by_law(law, model, tokens=16_384, sequence=64, phase="prefill", position=0, seed=0)
    for n in gpus:
        start = time.process_time()
        cluster, every = load_cluster("dgx-h100", nodes=n // 8), list(choices(n, spread))
        asked = every if n <= whole_gpus else near_best(times_s(cluster, model, trace, tokens, every, group=True))
        found = times_s(cluster, model, trace, tokens, asked)
        best = min(found, key=found.__getitem__)
        plain = min(seconds for choice, seconds in found.items() if choice.chunks == 1)
        whole = min(seconds for choice, seconds in found.items() if choice.etp == 1)
        print(
            f"| {n:,} | {best} | {1e3 * found[best]:.3f} | {plain / found[best] - 1:+.1%} "
            f"| {whole / found[best] - 1:+.1%} "
            f"| {len(every)} | {len(found)} | {time.process_time() - start:.0f} |",
            flush=True,
        )


def adapting(model: ModelShape, path: Path, tokens: int, spread: int, ranks: int = 64) -> None:
    """The best choice that is kept beside the best of each window of a drifting trace."""
    recorded = import_npz(path, model=model.name)
    meta = replace(recorded.meta, layers=LAYERS, layer_ids=model.moe_layer_ids)
    whole = replace(recorded, meta=meta, experts_TLK=recorded.experts_TLK[:, :LAYERS])
    cluster = load_cluster("dgx-h100", nodes=ranks // 8)
    per_window = []
    for topic in range(len(whole.topics)):
        part = whole.select(whole.topic_T == topic)
        cuts = [part.n_tokens * i // (WINDOWS // 4) for i in range(WINDOWS // 4 + 1)]
        per_window += [
            times_s(cluster, model, part.select(slice(a, b)), tokens, choices(ranks, spread))
            for a, b in itertools.pairwise(cuts)
        ]
    kept = min(per_window[0], key=lambda choice: sum(window[choice] for window in per_window))
    static_s = sum(window[kept] for window in per_window)
    adaptive_s = sum(min(window.values()) for window in per_window)
    winners = {min(window, key=window.__getitem__) for window in per_window}
    print(
        f"\n{ranks} GPUs, {len(per_window)} windows of a real trace, one kind of text after another: kept {kept}, "
        f"{1e3 * static_s / len(per_window):.3f} ms a layer; the best of each window "
        f"{1e3 * adaptive_s / len(per_window):.3f} ms ({adaptive_s / static_s - 1:+.2%}), {len(winners)} of "
        f"{len(per_window[0])} choices win somewhere"
    )


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=SHARED / "traces" / "deepseek-v2-lite.npz")
    parser.add_argument("--gpus", default="16,64,256,1024,2048")
    parser.add_argument("--tokens", type=int, default=4096, help="a rank")
    parser.add_argument("--spread", type=int, default=64, help="ranks that hold the experts of a group at the least")
    parser.add_argument("--whole", type=int, default=256, help="GPUs up to which every choice is timed on all")
    args = parser.parse_args()
    model = load_model("deepseek-v2-lite")
    model = model.of_layers(model.moe_layer_ids[:LAYERS])
    sizes(model, [int(n) for n in args.gpus.split(",")], args.tokens, args.spread, args.whole)
    adapting(model, args.trace, args.tokens, args.spread)


if __name__ == "__main__":
    main()
