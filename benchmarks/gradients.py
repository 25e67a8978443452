"""What a training step gains from sending gradients and parameters beside microbatches.

    python benchmarks/gradients.py

DeepSeek-V2-Lite on two DGX H100, 4,096 even tokens a microbatch, four microbatches: by level of ZeRO with EP 8, and
with the chunks and the partition of FSMoE, where experts are whole and where they are cut over the GPUs of a host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moecast.sim import Plan, load_model
from moecast.sim.training import Recipe, time_training
from moecast.topology import load_cluster
from moecast.validate.published.training import even_routing

REDUCED: dict[str, Any] = {"overlap_grad_reduce": True}
BOTH: dict[str, Any] = REDUCED | {"overlap_param_gather": True}
TOKENS, MICROBATCHES = 4096, 4
MODEL = load_model("deepseek-v2-lite")


def milliseconds(plan: Plan, networks: Sequence[str], **values: Any) -> str:
    """A step's time by each of some rungs."""
    trace, step = even_routing(MODEL, dp=plan.dp, tokens=TOKENS, sequence=TOKENS)
    recipe = Recipe(sequence=TOKENS, batch=MICROBATCHES * plan.dp, **values)
    asked: dict[str, Any] = {"schedule": "1f1b", "steps": [step]}
    cluster = load_cluster("dgx-h100", nodes=2)
    timed = [time_training(cluster, MODEL, plan, trace, recipe, network=network, **asked) for network in networks]
    return " / ".join(f"{1e3 * found.times.step_time_s:.1f}" for found in timed)


def main() -> None:
    """Print both tables."""
    plan, rungs = Plan.contiguous(MODEL, ep=8, groups=2), ("bound", "fluid")
    print("| ZeRO | beside nothing | gradients beside | gradients and parameters beside |\n|---|---:|---:|---:|")
    for zero in (0, 1, 2, 3):
        cells = [milliseconds(plan, rungs, zero=zero, **values) for values in ({}, REDUCED)]
        cells += [milliseconds(plan, rungs, zero=zero, **BOTH) if zero else "–"]
        print("|", " | ".join([str(zero), *cells]), "|")
    orders = ("sequential", "fsmoe:2", "fsmoe:4")
    print("\n| | |", " | ".join(f"`{order}`" for order in orders), "|\n|---|---|---:|---:|---:|")
    whole = Plan.contiguous(MODEL, ep=16).with_(dispatch="per_domain")
    cut = Plan.contiguous(MODEL, ep=2).with_(etp=8, dp=0, gpu_of_rank=tuple(range(16)))
    for what, plan in (
        ("experts cut over a host's GPUs (EP 2, etp 8)", cut),
        ("whole experts, copies per domain", whole),
    ):
        for where, values in (("behind the step", {}), ("beside microbatches", REDUCED)):
            times = [milliseconds(plan, ("fluid",), moe_schedule=order, **values) for order in orders]
            print("|", " | ".join([what, where, *times]), "|")


if __name__ == "__main__":
    main()
