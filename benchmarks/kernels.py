"""How close the MoE kernels come to what this machine can do: `python benchmarks/kernels.py [--tokens 4096]`.

On a GPU every launch of the fused path and the whole layer; on a CPU the plain reference only, since Triton's
interpreter measures nothing. The bound is the longer of the FLOPs at the rate of a large square product and the bytes
at the rate of a copy, both measured first, on the same device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moecast.kernels import ExpertWeights, moe_layer, softmax_top_k

# Hidden, expert width, experts, choices; source: the models' config.json.
SHAPES = {
    "olmoe-1b-7b": (2048, 1024, 64, 8),
    "deepseek-v2-lite": (2048, 1408, 64, 6),
    "qwen3-30b-a3b": (2048, 768, 128, 8),
    "gpt-oss-120b": (2880, 2880, 128, 4),
    "mixtral-8x7b": (4096, 14336, 8, 2),
}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What the device reaches at its best, measured."""

    flop_per_s: float
    memory_Bps: float

    def bound_s(self, flop: float, moved_bytes: float) -> float:
        """Return the least time for this work."""
        return max(flop / self.flop_per_s, moved_bytes / self.memory_Bps)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Median time of one call, caches cold on a GPU."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return 1e-3 * float(do_bench(function, return_mode="median"))
    function()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Time a large square product of random numbers and a large copy."""
    size, count = (8192, 1 << 30) if device.type == "cuda" else (1024, 1 << 27)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = seconds(lambda: a @ b, device)
    copy_s = seconds(lambda: target.copy_(source), device)
    return Peaks(flop_per_s=2 * size**3 / product_s, memory_Bps=2 * count / copy_s)


def line(name: str, taken_s: float, flop: float, moved_bytes: float, peaks: Peaks) -> None:
    """Print one measurement beside its bound."""
    bound_s = peaks.bound_s(flop, moved_bytes)
    print(
        f"  {name:<34}{1e6 * taken_s:>11,.1f} us{flop / taken_s / 1e12:>9.2f} TFLOP/s"
        f"{moved_bytes / taken_s / 1e12:>9.3f} TB/s   bound {1e6 * bound_s:>10,.1f} us  {bound_s / taken_s:>6.1%}"
    )


def measure_layer(shape: str, tokens: int, dtype: torch.dtype, device: torch.device, peaks: Peaks) -> None:
    """Measure one layer of one model with uniform routing."""
    hidden, width, experts, choices = SHAPES[shape]
    item = dtype.itemsize
    weights = ExpertWeights.random(experts=experts, hidden=hidden, width=width, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    x_TH = torch.randn(tokens, hidden, generator=generator).to(device, dtype)
    experts_TK, gates_TK = softmax_top_k(torch.randn(tokens, experts, generator=generator).to(device), choices)
    rows, hit = tokens * choices, len(experts_TK.unique())
    flop, weight_bytes = 6.0 * rows * hidden * width, 3 * hit * hidden * width * item
    print(
        f"{shape}: hidden {hidden}, width {width}, {experts} experts, top-{choices}; {tokens} tokens on {hit} experts"
    )
    if device.type == "cuda":
        measure_launches(x_TH, weights, experts_TK, gates_TK, hit, peaks)
    for path in ("triton", "reference") if device.type == "cuda" else ("reference",):
        taken = seconds(lambda p=path: moe_layer(x_TH, weights, experts_TK, gates_TK, path=p, check=False), device)  # type: ignore[misc]
        line(f"whole layer, {path}", taken, flop, weight_bytes + 2 * tokens * hidden * item, peaks)


def measure_launches(
    x_TH: Tensor, weights: ExpertWeights, experts_TK: Tensor, gates_TK: Tensor, hit: int, peaks: Peaks
) -> None:
    """Measure each step of the fused path by itself."""
    from moecast.kernels.fused import tile_rows
    from moecast.kernels.grouped_gemm import grouped_gemm
    from moecast.kernels.permute import build_index, permute, unpermute

    (tokens, hidden), width, item, device = x_TH.shape, weights.width, x_TH.element_size(), x_TH.device
    ids_TK, rows = experts_TK.to(torch.int32), experts_TK.numel()
    tile = tile_rows(experts_TK, weights)
    index = build_index(ids_TK, weights.experts, tile)
    x_RH = permute(x_TH, index)
    hidden_RI = grouped_gemm(x_RH, weights.gate_up_EUH, index, swiglu=True)
    y_RH = grouped_gemm(hidden_RI, weights.down_EHI, index)
    row_bytes = item * hidden
    steps: list[tuple[str, Callable[[], object], float, float]] = [
        ("index build", lambda: build_index(ids_TK, weights.experts, tile), 0, 8 * rows),
        (
            "permute with index build",
            lambda: permute(x_TH, build_index(ids_TK, weights.experts, tile)),
            0,
            (tokens + rows) * row_bytes,
        ),
        (
            "gate-up with SwiGLU",
            lambda: grouped_gemm(x_RH, weights.gate_up_EUH, index, swiglu=True),
            4.0 * rows * hidden * width,
            item * (rows * (hidden + width) + 2 * hit * hidden * width),
        ),
        (
            "down",
            lambda: grouped_gemm(hidden_RI, weights.down_EHI, index),
            2.0 * rows * hidden * width,
            item * (rows * (hidden + width) + hit * hidden * width),
        ),
        (
            "weighted unpermute",
            lambda: unpermute(y_RH, index, gates_TK),
            2.0 * rows * hidden,
            (tokens + rows) * row_bytes,
        ),
    ]
    for name, function, flop, moved_bytes in steps:
        line(name, seconds(function, device), flop, moved_bytes, peaks)


def main() -> None:
    """Print the table for this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all on a GPU, OLMoE on a CPU")
    parser.add_argument("--tokens", type=int, action="append", help="default: 128 and 4096 on a GPU, 256 on a CPU")
    parser.add_argument("--dtype", choices=TYPES, default="bf16" if cuda else "fp32")
    options = parser.parse_args()
    device, dtype = torch.device("cuda" if cuda else "cpu"), TYPES[options.dtype]
    name = torch.cuda.get_device_name() if cuda else "CPU: no GPU here, so the plain reference only"
    print(f"{name}, {options.dtype}, torch {torch.__version__}")
    peaks = measure_peaks(device, dtype)
    best = f"{peaks.flop_per_s / 1e12:.2f} TFLOP/s, {peaks.memory_Bps / 1e12:.3f} TB/s"
    print(f"peaks measured here: {best} (read + written)")
    for shape in options.shape or (list(SHAPES) if cuda else ["olmoe-1b-7b"]):
        for tokens in options.tokens or ([128, 4096] if cuda else [256]):
            measure_layer(shape, tokens, dtype, device, peaks)


if __name__ == "__main__":
    main()
