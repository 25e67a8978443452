"""What capturing costs: forward passes of a Hugging Face model with and without `capture_routing`, turn about.

Run it with `python benchmarks/capture_hf.py [--device cuda] [--layers 8 --experts 64 --hidden 256]`. The model is
OLMoE's with random weights. Work with and without alternates in one process; the best of several runs counts, in CPU
seconds (one thread) or, on a GPU, in seconds. "With" is all of it: hooks, copies, opening the trace and writing it.
"Share" is what the capture's own functions take of "with", by a clock around them: it does not suffer from other work
on the machine as the difference of two long times does. On a GPU it includes waiting for the pass to end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import OlmoeConfig, OlmoeForCausalLM

from moecast.traces import describe_trace
from moecast.traces.capture.hf.routing import Options, RoutingCapture

PASSES = 2


def build(layers: int, experts: int, hidden: int, device: str) -> OlmoeForCausalLM:
    """OLMoE with random weights; top 8."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=experts,
        num_experts_per_tok=8,
        max_position_embeddings=2048,
        eos_token_id=None,
    )
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return OlmoeForCausalLM(config).to(device=device, dtype=dtype).eval()


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device's work included."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    start = clock()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


class Clocked(RoutingCapture):
    """A capture that adds up the seconds spent in it, but for the hooks on layers, which only keep two references."""

    spent = 0.0
    clock = staticmethod(time.process_time)

    def _begin(self, *args: Any) -> None:
        start = self.clock()
        super()._begin(*args)
        Clocked.spent += self.clock() - start

    def _end(self, *args: Any) -> None:
        start = self.clock()
        super()._end(*args)
        Clocked.spent += self.clock() - start

    def __exit__(self, *args: Any) -> None:
        start = self.clock()
        super().__exit__(*args)
        Clocked.spent += self.clock() - start


def best(
    model: OlmoeForCausalLM, work: Callable[[], object], device: str, runs: int
) -> tuple[float, float, float, float]:
    """Seconds of `work` without and with the capture, turn about, seconds in the capture, and bytes for a token."""
    without = captured = inside = float("inf")
    Clocked.clock = staticmethod(time.perf_counter if device.startswith("cuda") else time.process_time)
    folder = Path(tempfile.mkdtemp())

    def capture(out: Path) -> None:
        Clocked.spent = 0.0
        with Clocked(model, out, Options(), topic="random"):
            for _ in range(PASSES):
                work()

    def plain() -> None:
        for _ in range(PASSES):
            work()

    try:
        capture(folder / "warm")
        for run in range(runs):
            without = min(without, timed(plain, device))
            captured = min(captured, timed(lambda: capture(folder / str(run)), device))  # noqa: B023  called at once
            inside = min(inside, Clocked.spent)
        info = describe_trace(folder / "0")
        return without / PASSES, captured / PASSES, inside / PASSES, info.file_bytes / info.tokens
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in (("layers", 8), ("experts", 64), ("hidden", 256), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = build(options.layers, options.experts, options.hidden, options.device)
    table = Table(title=f"OLMoE, {options.layers} × {options.experts} × 8, width {options.hidden}, {options.device}")
    for column in ("work", "tokens", "without, ms", "with, ms", "ratio", "share", "µs a token", "bytes a token"):
        table.add_column(column, justify="right")

    def prefill(rows: int, length: int) -> Callable[[], object]:
        ids_BQ = torch.randint(3, 8192, (rows, length), device=options.device)
        return lambda: model(ids_BQ, use_cache=False)

    def generate(rows: int, new: int) -> Callable[[], object]:
        ids_BQ = torch.randint(3, 8192, (rows, 16), device=options.device)
        return lambda: model.generate(ids_BQ, max_new_tokens=new, do_sample=False, pad_token_id=0)

    with torch.inference_mode():
        for name, tokens, work in (
            ("prefill 1 × 512", 512, prefill(1, 512)),
            ("prefill 4 × 512", 2048, prefill(4, 512)),
            ("generate 1 × 16", 16 + 15, generate(1, 16)),
            ("generate 32 × 16", 32 * (16 + 15), generate(32, 16)),
        ):
            without, captured, inside, size = best(model, work, options.device, options.runs)
            table.add_row(
                name,
                str(tokens),
                *(f"{1e3 * s:.1f}" for s in (without, captured)),
                f"{captured / without:.3f}",
                f"{inside / captured:.1%}",
                f"{1e6 * inside / tokens:.1f}",
                f"{size:.0f}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
