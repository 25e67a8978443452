"""A solver of one's own, judged beside moecast's: the hottest experts dealt to the ranks like cards, there and back.

Run: python docs/examples/own_solver.py
"""

import numpy as np

from moecast.placement import Budget, Objective, PlacementProblem, Solved, place
from moecast.sim import Workload, load_model
from moecast.topology import load_cluster
from moecast.traces import read_trace, shipped_trace_path


class Snake:
    """Of 8 ranks, rank 0 gets the hottest expert and the 16th hottest, rank 7 the 8th and the 9th."""

    name = "snake"

    def supports(self, problem: PlacementProblem) -> str | None:
        """One clause that says why not, or None."""
        return "needs one slot for each expert" if problem.spare_slots else None

    def solve(self, problem: PlacementProblem, objective: Objective, budget: Budget, *, seed: int = 0) -> Solved:
        """Fill int32 [layers, ranks, slots of a rank]; `objective` times plans, `budget` says when to stop."""
        slots_LGP = problem.empty_slots_LGP()
        order_LE = np.argsort(-problem.load_LE, axis=1, kind="stable")
        for slot in range(slots_LGP.shape[2]):
            dealt = order_LE[:, slot * problem.wanted.ep : (slot + 1) * problem.wanted.ep]
            slots_LGP[:, :, slot] = dealt[:, ::-1] if slot % 2 else dealt
        return Solved(slots_LGP=slots_LGP)


def main() -> None:
    """Place the shipped trace by three solvers."""
    cluster = load_cluster("dgx-h200", nodes=1)
    trace = read_trace(shipped_trace_path())
    meta = trace.meta
    model = load_model("deepseek-v2-lite").with_routing(
        meta.model, layers=meta.layers, experts=meta.experts, choices=meta.choices
    )
    workload = Workload(phase="decode", tokens_per_rank=16, steps=2)
    for solver in (Snake(), "contiguous", "balance"):
        found = place(cluster, model, trace, workload, solver=solver)
        print(f"{found.solver}: {1e6 * found.objective_s:.1f} us, at least {1e6 * found.bound_s:.1f} us")


if __name__ == "__main__":
    main()
