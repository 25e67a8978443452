"""Sequences of uneven lengths over ranks that share them: plain zig-zag against Zeppelin's split.

``python benchmarks/context_parallel.py`` prints the table of docs/schedules.md: forward and backward of one MoE layer
of Qwen3-30B-A3B on two nodes of eight H100s whose 16 ranks share all sequences, experts chosen evenly at random, by
fluid. Lengths are made, not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecast.sim import Exchange, PlacedModel, Plan, Step, find_rung, load_model
from moecast.sim.forward import ForwardPass
from moecast.sim.schedules.lay import settled
from moecast.sim.training.work import TrainingPass
from moecast.topology import load_cluster
from moecast.traces import RoutingTrace, TraceMeta

NODES, TOKENS, SEED = 2, 16 * 8192, 0
WAYS = (("zig-zag", "all-gather"), ("zig-zag", "ring"), ("contiguous", "ring"), ("zeppelin", "ring"))


def lengths() -> Iterator[tuple[str, list[int]]]:
    """Lengths that fill the tokens, by what they are like."""
    rng = np.random.default_rng(SEED)
    yield "one of 131,072", [TOKENS]
    yield "16 of 8,192", [TOKENS // 16] * 16
    yield "lognormal, median 1,000", filled(lambda: rng.lognormal(np.log(1000), 1.2))
    yield "half of the tokens in one, the rest of 1,024", [TOKENS // 2, *[1024] * (TOKENS // 2048)]
    yield "log-uniform, 256 to 65,536", filled(lambda: np.exp(rng.uniform(np.log(256), np.log(65536))))


def filled(draw: object) -> list[int]:
    """Draw lengths until the tokens are used up; the last is cut."""
    found: list[int] = []
    while (left := TOKENS - sum(found)) > 0:
        found.append(min(left, max(1, int(draw()))))  # type: ignore[operator]
    return found


def layer_of(sizes: list[int], split: str, exchange: str) -> tuple[float, float, float]:
    """Seconds of a layer forward and back, gigabytes that leave nodes for attention, fullest rank over the mean."""
    model, cluster = load_model("qwen3-30b-a3b").of_layers((0,)), load_cluster("dgx-h100", nodes=NODES)
    plan = Plan.contiguous(model, cluster).with_(cp=16, context_split=split, context_exchange=exchange)
    rng = np.random.default_rng(SEED)
    rows = rng.permuted(np.broadcast_to(np.arange(model.experts, dtype=np.uint16), (4096, model.experts)), axis=1)
    trace = RoutingTrace(
        meta=TraceMeta(model="even", layers=1, experts=model.experts, choices=model.choices),
        experts_TLK=rows[:, None, : model.choices],
        sequence_T=np.arange(4096, dtype=np.uint32),
        position_T=np.zeros(4096, np.uint32),
        phase_T=np.ones(4096, np.uint8),
        topic_T=np.full(4096, -1, np.int16),
    )
    step = Step(
        token_T=np.arange(TOKENS) % 4096,
        source_T=np.zeros(TOKENS, np.int32),
        context_T=np.concatenate([np.arange(n) + 1 for n in sizes]),
        phase="prefill",
    )
    forward = ForwardPass.of(PlacedModel.of(cluster, model, plan, phase="prefill"), trace, step)
    work = TrainingPass(step=forward)
    passes = [list(settled(work.forward(0))), list(settled(work.backward(0, weights=True)))]
    seconds = sum(find_rung("fluid").run(forward.program(tasks)).step_time_s for tasks in passes)
    domain_G, away = forward.placed.sites.domain_G, 0.0
    for task in (task for tasks in passes for task in tasks if isinstance(task, Exchange) and task.kind == "other"):
        flows = task.fill()
        away += flows.bytes_F[domain_G[flows.source_rank_F] != domain_G[flows.destination_rank_F]].sum()
    tokens_G = forward.tokens_at(0)
    return float(seconds), float(away) / 1e9, float(tokens_G.max() / tokens_G.mean())


def main() -> None:
    """Print the table."""
    print("| lengths | sequences | split, exchange | forward and back | leaves nodes | fullest rank |")
    print("|---|---:|---|---:|---:|---:|")
    for name, sizes in lengths():
        for split, exchange in WAYS:
            seconds, away, most = layer_of(sizes, split, exchange)
            print(
                f"| {name} | {len(sizes)} | {split}, {exchange} | {seconds * 1e3:.1f} ms | {away:.2f} GB | {most:.2f} |"
            )


if __name__ == "__main__":
    main()
