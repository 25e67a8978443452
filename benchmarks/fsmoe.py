"""What running the two networks at once gains a prefill: FSMoE's chunks beside plain chunks.

    python benchmarks/fsmoe.py

DeepSeek-V2-Lite on two DGX H100, 4,096 tokens a rank of even routing, by `fluid`: with experts cut over the GPUs of a
host, as FSMoE has them, and with whole experts and copies per domain.
"""

from __future__ import annotations

from moecast.sim import Plan, Workload, draw_steps, find_rung, load_model, step_program
from moecast.sim.made_routing import parse_law, routing_by_law
from moecast.topology import load_cluster

TOKENS = 4096
SCHEDULES = ("sequential", "chunked:2", "fsmoe:2", "chunked:4", "fsmoe:4")
MODEL = load_model("deepseek-v2-lite")


def milliseconds(plan: Plan, schedule: str) -> float:
    """A prefill step's time."""
    how = {"tokens": 16 * TOKENS, "sequence": TOKENS, "phase": "prefill", "position": 0, "seed": 0}
    trace = routing_by_law(parse_law("uniform"), MODEL, **how)
    step = draw_steps(trace, Workload(phase="prefill", tokens_per_rank=TOKENS, steps=1), ranks=plan.layout.dp)[0]
    program = step_program(load_cluster("dgx-h100", nodes=2), MODEL, plan.with_(schedule=schedule), trace, step)
    return 1e3 * find_rung("fluid").run(program).step_time_s


def main() -> None:
    """Print the table."""
    whole = Plan.contiguous(MODEL, ep=16).with_(dispatch="per_domain")
    cut = Plan.contiguous(MODEL, ep=2).with_(etp=8, dp=0, gpu_of_rank=tuple(range(16)))
    print("| |", " | ".join(f"`{schedule}`" for schedule in SCHEDULES), "|\n|---|" + "---:|" * len(SCHEDULES))
    for what, plan in (("experts cut over a host's GPUs (EP 2, etp 8)", cut), ("whole experts", whole)):
        print("|", what, "|", " | ".join(f"{milliseconds(plan, schedule):.1f}" for schedule in SCHEDULES), "|")


if __name__ == "__main__":
    main()
