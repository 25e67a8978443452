"""Local search against the exact least step time: small cases, in which every placement is timed.

One layer, so that all its placements can be timed by the rung that judges plans: every way to fill the slots of 2 to 4
ranks with 4 to 8 experts, replicas and empty slots included, no expert twice on a rank.

Run: python benchmarks/small_cases.py [--cases 300] [--first 0] [--most 400]; a case of eight experts on four ranks has
2,520 placements, and takes as long as all others of its ten neighbours.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator

import numpy as np

from moecast.placement import Budget, Objective, PlacementProblem, find_solver
from moecast.sim import Plan, Workload, load_model
from moecast.topology import load_cluster
from moecast.traces import PHASES, RoutingTrace, TraceMeta

SHAPES = ((6, 2, 3), (6, 3, 2), (5, 3, 2), (4, 3, 2), (5, 2, 3), (8, 2, 4), (8, 4, 2))  # experts, ranks, slots
MODES = ("per_choice", "per_rank", "per_domain", "nccl")


def case(number: int) -> PlacementProblem:
    """Make one small problem; the steps are the trace's own, so that a search sees those that it is judged on."""
    rng = np.random.default_rng(number)
    experts, ranks, slots = SHAPES[rng.integers(len(SHAPES))]
    choices, per_rank = int(rng.integers(2, 4)), int(rng.choice([4, 32, 256]))
    phase, across = str(rng.choice(["prefill", "decode"])), bool(rng.integers(2))
    wanted = Plan.contiguous(layers=1, experts=experts, choices=choices, ep=ranks, slots_per_rank=slots).with_(
        dispatch=str(rng.choice(MODES)), gpu_of_rank=tuple(8 * (r % 2) + r if across else r for r in range(ranks))
    )
    return PlacementProblem(
        cluster=load_cluster("dgx-h100", nodes=2, fabric="single-switch"),
        model=load_model("olmoe-1b-7b").with_routing("small", layers=1, experts=experts, choices=choices),
        trace=_trace(rng, experts=experts, choices=choices, ranks=ranks, per_rank=per_rank, phase=phase),
        workload=Workload(phase=phase, tokens_per_rank=per_rank, steps=2, steps_mode="as-recorded"),
        wanted=wanted,
    )


def _trace(
    rng: np.random.Generator, *, experts: int, choices: int, ranks: int, per_rank: int, phase: str
) -> RoutingTrace:
    """Two recorded steps; some experts are hot, and some are chosen together."""
    tokens = 2 * ranks * per_rank
    score = (
        rng.normal(scale=1.0, size=(1, experts))
        + rng.normal(scale=1.5, size=(4, experts))[rng.integers(4, size=tokens)]
    )
    score = score + rng.gumbel(size=(tokens, experts))
    at = np.arange(tokens)
    decode = phase == "decode"
    return RoutingTrace(
        meta=TraceMeta(model="small", layers=1, experts=experts, choices=choices),
        experts_TLK=np.argsort(-score, axis=1)[:, None, :choices].astype(np.uint16),
        sequence_T=(at if decode else at // 4).astype(np.uint32),
        position_T=(np.zeros(tokens) if decode else at % 4).astype(np.uint32),
        phase_T=np.full(tokens, PHASES.index(phase), np.uint8),
        topics=(),
        topic_T=np.full(tokens, -1, np.int16),
        step_T=(at // (ranks * per_rank)).astype(np.uint32),
        source_rank_T=(at // per_rank % ranks).astype(np.uint16),
        token_id_T=None,
        weights_TLK=None,
    )


def every_filling(experts: int, slots_G: np.ndarray) -> Iterator[np.ndarray]:
    """All ways to fill ranks' slots, every expert somewhere and none twice on a rank: int32 [G, P]."""
    spare = int(slots_G.sum()) > experts
    per_rank = [
        [
            held
            for size in range(0 if spare else slots, slots + 1)
            for held in itertools.combinations(range(experts), size)
        ]
        for slots in slots_G.tolist()
    ]
    for rows in itertools.product(*per_rank):
        if len({expert for row in rows for expert in row}) == experts:
            table = np.full((len(rows), int(slots_G.max())), -1, np.int32)
            for rank, row in enumerate(rows):
                table[rank, : len(row)] = row
            yield table


def gap(problem: PlacementProblem, tables: list[np.ndarray]) -> float:
    """How much longer the search's step takes than the least of all placements, as a part of the least."""
    objective = Objective(problem)
    found_s = objective.step_s(find_solver("local-search").solve(problem, objective, Budget()).slots_LGP)
    return found_s / min(objective.step_s(table[None]) for table in tables) - 1


def main() -> None:
    """Print the gaps' mean and worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--most", type=int, default=10_000, help="leave out cases with more placements than that")
    arguments = parser.parse_args()
    gaps, timed, begin = [], 0, time.process_time()
    for number in range(arguments.first, arguments.first + arguments.cases):
        problem = case(number)
        tables = list(every_filling(problem.wanted.experts, problem.slots_G))
        if len(tables) > arguments.most:
            continue
        gaps.append(gap(problem, tables))
        timed += len(tables)
        if gaps[-1] > 0.005:
            print(f"case {number}: {gaps[-1]:.2%} above the least of {len(tables)} placements", flush=True)
        if len(gaps) % 20 == 0:
            _say(gaps, timed, time.process_time() - begin)
    _say(gaps, timed, time.process_time() - begin)


def _say(gaps: list[float], timed: int, seconds: float) -> None:
    print(
        f"{len(gaps)} cases, {timed} placements timed: mean gap {np.mean(gaps):.3%}, worst {max(gaps):.2%}, "
        f"{np.mean(np.array(gaps) < 1e-9):.0%} exact; {seconds:.0f} CPU s",
        flush=True,
    )


if __name__ == "__main__":
    main()
