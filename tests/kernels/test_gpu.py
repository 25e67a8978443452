"""What only a GPU can show: compiled kernels at real widths, and capture in a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from moecast.kernels import moe_layer
from tests.kernels.cases import make_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# (hidden, width, experts, choices) of DeepSeek-V2-Lite, gpt-oss-120b with 16 of its experts, and Qwen3-30B-A3B.
SHAPES = [(2048, 1408, 64, 6), (2880, 2880, 16, 4), (2048, 768, 128, 8)]


@pytest.mark.parametrize(("hidden", "width", "experts", "choices"), SHAPES)
@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_real_widths_in_bf16(hidden: int, width: int, experts: int, choices: int, tokens: int) -> None:
    case = make_case(
        tokens=tokens,
        experts=experts,
        choices=choices,
        hidden=hidden,
        width=width,
        missing=0.05,
        dtype=torch.bfloat16,
        device="cuda",
    )
    fused, reference = (moe_layer(*case.arguments, path=path).float() for path in ("triton", "reference"))
    torch.testing.assert_close(fused, reference, rtol=0.03, atol=0.03)


def test_layer_can_be_captured_in_a_graph() -> None:
    case = make_case(tokens=64, experts=16, choices=4, hidden=256, width=128, dtype=torch.bfloat16, device="cuda")
    eager = moe_layer(*case.arguments, path="triton", check=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = moe_layer(*case.arguments, path="triton", check=False)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, eager)
