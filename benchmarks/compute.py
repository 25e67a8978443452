"""What the compute model predicts beside what others measured, and how long it takes: `python benchmarks/compute.py`.

The measured times are published kernel times on H100 and H200, the last row from AIConfigurator's tables (Apache-2.0).
This file fits nothing; the efficiencies and their sources stand in the hardware table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from moecast.sim import compute
from moecast.sim.cost import ExpertBlock, expert_roofline
from moecast.sim.drawn_steps import draw_steps
from moecast.sim.load_model import load_model
from moecast.sim.model import ModelShape
from moecast.sim.workload import Workload
from moecast.topology import Hardware, load_cluster
from moecast.traces import RoutingTrace, TraceMeta

Int = npt.NDArray[np.int64]

H100 = load_cluster("dgx-h100").hardware
H200 = load_cluster("dgx-h200").hardware
QWEN, LITE, V3 = load_model("qwen3-30b-a3b"), load_model("deepseek-v2-lite"), load_model("deepseek-v3")


def main() -> None:
    """Print both tables."""
    console = Console(width=130)
    published(console)
    speed(console)


def published(console: Console) -> None:
    """Lay predictions beside published times."""
    table = Table("published measurement", "measured", "predicted", "error", "remark", box=None)
    for row in rows():
        what, measured_s, predicted_s, remark = row
        error = f"{predicted_s / measured_s - 1:+.0%}"
        table.add_row(what, f"{measured_s * 1e6:.1f} us", f"{predicted_s * 1e6:.1f} us", error, remark)
    console.print(table)


def rows() -> list[tuple[str, float, float, str]]:
    """List what was measured, the time measured, the time predicted, and what to know of it."""
    balanced = np.full((1, 16), 4096 * 8 // 128)
    whole_flop = 2 * QWEN.expert_parameters * 32768 * 8
    return [
        (
            "plain grouped GEMM, H100, 8 x (4096, 768, 2048), CUTLASS",
            2 * 8 * 4096 * 768 * 2048 / 650e12,
            _one(
                expert_roofline.grouped_gemm_seconds(
                    ExpertBlock.of(QWEN), H100, _same(8, 4096), phase="prefill", inner=2048, outer=768
                )
            ),
            "the efficiency of grouped GEMMs stands on such rates",
        ),
        (
            "MoE layer, H100, qwen3-30b-a3b, 32768 tokens on one GPU, Triton",
            whole_flop / 523e12,
            _one(compute.expert_seconds(QWEN, H100, _same(128, 2048), phase="prefill")),
            "permuting counted, fused there",
        ),
        (
            "permute with index build, H200, 4096 tokens, k 8, hidden 7168",
            220e-6,
            _one(
                expert_roofline.permute_seconds(
                    ExpertBlock.of(replace(V3, weight_type="bf16")), H200, np.array([4096 * 8])
                )
            ),
            "best found",
        ),
        (
            "softmax + top-8, H100, 4096 x 128",
            6.3e-6,
            _one(compute.selection_seconds(H100, np.array([4096]), experts=128, choices=8)),
            "best found",
        ),
        (
            "softmax + top-8, H100, 8192 x 256",
            13.9e-6,
            _one(compute.selection_seconds(H100, np.array([8192]), experts=256, choices=8)),
            "best found",
        ),
        (
            "experts of one rank of EP8, H200, qwen3-30b-a3b, 4096 tokens, balanced",
            289e-6,
            _one(compute.expert_seconds(QWEN, H200, balanced, phase="prefill")),
            "measured: the layer given all 4096 tokens of the group; here: the rank's own 4096 rows",
        ),
    ]


def speed(console: Console) -> None:
    """Time the functions that solvers and the simulator call."""
    rng = np.random.default_rng(0)
    load_LGP = rng.integers(0, 2000, (26, 32, 3))
    tokens = np.full(32, 4096)
    trace = _trace(rng)
    workload = Workload(phase="prefill", tokens_per_rank=4096, steps=16, reuse=True)
    table = Table("call", "time", box=None)
    for name, call in (
        ("expert_seconds, 26 layers x 32 ranks x 3 slots", lambda: _experts(LITE, H200, load_LGP)),
        ("attention_seconds, 32 ranks", lambda: _attention(LITE, H200, tokens)),
        ("draw_steps, 32 ranks x 4096 tokens x 16 steps", lambda: draw_steps(trace, workload, ranks=32)),
    ):
        table.add_row(name, f"{_median_s(call) * 1e3:.2f} ms")
    console.print(table)


def _same(slots: int, tokens: int) -> Int:
    return np.full((1, slots), tokens)


def _one(seconds_G: npt.NDArray[np.float64]) -> float:
    return float(np.ravel(seconds_G)[0])


def _experts(model: ModelShape, hardware: Hardware, load_LGP: Int) -> None:
    compute.expert_seconds(model, hardware, load_LGP, phase="prefill", sms=108)


def _attention(model: ModelShape, hardware: Hardware, tokens_G: Int) -> None:
    compute.attention_seconds(model, hardware, phase="prefill", tokens_G=tokens_G, context_sum_G=tokens_G * 200)


def _trace(rng: np.random.Generator) -> RoutingTrace:
    """Make a trace of 213 sequences and 33 thousand tokens, as large as the shared one; its routing is empty."""
    lengths = rng.integers(20, 290, 213)
    tokens = int(lengths.sum())
    return RoutingTrace(
        meta=TraceMeta(model="m", layers=1, experts=2, choices=1),
        experts_TLK=np.zeros((tokens, 1, 1), np.uint16),
        sequence_T=np.repeat(np.arange(213), lengths).astype(np.uint32),
        position_T=np.concatenate([np.arange(n) for n in lengths]).astype(np.uint32),
        phase_T=np.ones(tokens, np.uint8),
        topic_T=np.full(tokens, -1, np.int16),
    )


def _median_s(call: Callable[[], object], repeats: int = 7) -> float:
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
