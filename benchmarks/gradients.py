"""What a training step gains from sending gradients and parameters beside microbatches.

    python benchmarks/gradients.py

DeepSeek-V2-Lite on two DGX H100, EP 8, 4,096 even tokens a microbatch, four microbatches.
"""

from __future__ import annotations

from typing import Any

from moecast.sim import Plan, load_model
from moecast.sim.training import Recipe, time_training
from moecast.topology import load_cluster
from moecast.validate.published.training import even_routing

REDUCED: dict[str, Any] = {"overlap_grad_reduce": True}
BOTH: dict[str, Any] = REDUCED | {"overlap_param_gather": True}
TOKENS, MICROBATCHES = 4096, 4


def main() -> None:
    """Print a row for each level of ZeRO."""
    cluster, model = load_cluster("dgx-h100", nodes=2), load_model("deepseek-v2-lite")
    plan = Plan.contiguous(model, ep=8, groups=2)
    trace, step = even_routing(model, dp=plan.dp, tokens=TOKENS, sequence=TOKENS)

    def milliseconds(**values: Any) -> str:
        recipe = Recipe(sequence=TOKENS, batch=MICROBATCHES * plan.dp, **values)
        timed = [
            time_training(
                cluster, model, plan, trace, recipe, schedule="1f1b", steps=[step], network=network
            ).times.step_time_s
            for network in ("bound", "fluid")
        ]
        return " / ".join(f"{1e3 * seconds:.1f}" for seconds in timed)

    print("| ZeRO | beside nothing | gradients beside | gradients and parameters beside |\n|---|---:|---:|---:|")
    for zero in (0, 1, 2, 3):
        last = milliseconds(zero=zero, **BOTH) if zero else "–"
        print(f"| {zero} | {milliseconds(zero=zero)} | {milliseconds(zero=zero, **REDUCED)} | {last} |")


if __name__ == "__main__":
    main()
