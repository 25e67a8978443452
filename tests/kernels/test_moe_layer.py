"""The fused path against the reference, and the reference against a loop over single tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import silu

from moecast.kernels import ExpertWeights, moe_layer, moe_layer_reference
from tests.kernels.cases import Case, layers, make_case

PATHS = ("reference", "triton")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.double().cpu(), b.double().cpu(), rtol=tolerance, atol=tolerance)


def one_token_at_a_time(case: Case) -> torch.Tensor:
    out = torch.zeros_like(case.x_TH, dtype=torch.float64)
    gate_up, down = case.weights.gate_up_EUH.double(), case.weights.down_EHI.double()
    for token, x in enumerate(case.x_TH.double()):
        for expert, weight in zip(case.experts_TK[token].tolist(), case.gates_TK[token].tolist(), strict=True):
            if expert in range(case.weights.experts):
                gate, up = (gate_up[expert] @ x).chunk(2)
                out[token] += weight * (down[expert] @ (silu(gate) * up))
    return out


@given(sizes=layers())
@settings(max_examples=50, deadline=None)
def test_reference_is_the_sum_over_single_tokens(sizes: dict[str, Any]) -> None:
    case = make_case(**sizes)
    close(moe_layer(*case.arguments, path="reference"), one_token_at_a_time(case))


@given(sizes=layers())
@settings(max_examples=15, deadline=None)
def test_fused_agrees_with_the_reference_in_float32(sizes: dict[str, Any], device: torch.device) -> None:
    case = make_case(**sizes, device=device)
    expected = moe_layer_reference(
        case.x_TH,
        case.weights,
        case.experts_TK.where(case.experts_TK < 65535, -1),
        case.gates_TK,
        accumulate=torch.float64,
    )
    close(moe_layer(*case.arguments, path="triton"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_agrees_in_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    case = make_case(tokens=20, experts=6, choices=3, hidden=72, width=40, missing=0.2, dtype=dtype, device=device)
    fused = moe_layer(*case.arguments, path="triton")
    assert fused.dtype == dtype
    close(fused, moe_layer(*case.arguments, path="reference"), tolerance=0.04 if dtype == torch.bfloat16 else 0.005)


def test_width_that_is_no_multiple_of_128(device: torch.device) -> None:
    case = make_case(tokens=3, experts=3, choices=2, hidden=2880, width=24, device=device)
    close(moe_layer(*case.arguments, path="triton"), moe_layer(*case.arguments, path="reference"), tolerance=3e-5)


def test_more_experts_than_choices_and_one_expert_with_all(device: torch.device) -> None:
    case = make_case(tokens=40, experts=300, choices=1, hidden=16, width=8, device=device)
    everyone = torch.full_like(case.experts_TK, 299)
    for experts_TK in (case.experts_TK, everyone):
        arguments = (case.x_TH, case.weights, experts_TK, case.gates_TK)
        close(moe_layer(*arguments, path="triton"), moe_layer(*arguments, path="reference"))


@pytest.mark.parametrize("path", PATHS)
def test_tokens_without_a_choice_are_zero(path: str, device: torch.device) -> None:
    case = make_case(tokens=5, experts=4, choices=2, hidden=16, width=16, missing=1.0, device=device)
    gates_TK = torch.full_like(case.gates_TK, float("nan"))
    assert not moe_layer(case.x_TH, case.weights, case.experts_TK, gates_TK, path=path).any()


@pytest.mark.parametrize("path", PATHS)
def test_no_tokens_give_no_rows(path: str, device: torch.device) -> None:
    case = make_case(tokens=0, experts=4, choices=2, hidden=16, width=16, device=device)
    assert moe_layer(*case.arguments, path=path).shape == (0, 16)


@pytest.mark.parametrize("path", PATHS)
def test_ids_as_a_trace_holds_them(path: str, device: torch.device) -> None:
    case = make_case(tokens=6, experts=4, choices=2, hidden=16, width=16, missing=0.5, device=device)
    ids_TK = case.experts_TK.where(case.experts_TK >= 0, 65535).to(torch.uint16)
    got = moe_layer(case.x_TH, case.weights, ids_TK, case.gates_TK, path=path)
    close(got, moe_layer(*case.arguments, path="reference"))


@pytest.mark.parametrize("path", PATHS)
def test_order_of_tokens_does_not_matter(path: str, device: torch.device) -> None:
    case = make_case(tokens=30, experts=5, choices=2, hidden=32, width=24, missing=0.2, device=device)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1)).to(device)
    moved = moe_layer(case.x_TH[order], case.weights, case.experts_TK[order], case.gates_TK[order], path=path)
    close(moved, moe_layer(*case.arguments, path=path)[order], tolerance=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_names_of_experts_do_not_matter(path: str, device: torch.device) -> None:
    case = make_case(tokens=30, experts=5, choices=2, hidden=32, width=24, device=device)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)  # new expert i is old expert order[i]
    renamed = moe_layer(
        case.x_TH, case.weights.select(order), order.argsort()[case.experts_TK], case.gates_TK, path=path
    )
    close(renamed, moe_layer(*case.arguments, path=path), tolerance=1e-6)


def test_same_input_same_bits(device: torch.device) -> None:
    case = make_case(tokens=20, experts=4, choices=2, hidden=32, width=24, device=device)
    assert torch.equal(moe_layer(*case.arguments, path="triton"), moe_layer(*case.arguments, path="triton"))


def test_separate_gate_and_up_matrices() -> None:
    joined = ExpertWeights.random(experts=2, hidden=8, width=4)
    gate, up = joined.gate_up_EUH.chunk(2, dim=1)
    assert torch.equal(ExpertWeights.from_separate(gate, up, joined.down_EHI).gate_up_EUH, joined.gate_up_EUH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_TH": torch.zeros(4, 9)}, r"x_TH is \(4, 9\), the experts take \[tokens, 8\]"),
        ({"experts_TK": torch.zeros(3, 2, dtype=torch.int64)}, "must both be"),
        ({"experts_TK": torch.full((4, 2), 3)}, "expert id 3: ids run from 0 to 2"),
        ({"experts_TK": torch.full((4, 2), -2)}, "expert id -2"),
        ({"experts_TK": torch.full((4, 2), 2**32)}, "expert id 4294967296"),  # 0 in 32 bits
        ({"experts_TK": torch.zeros(4, 2)}, "ids are whole numbers"),
        ({"x_TH": torch.zeros(4, 8, dtype=torch.float64)}, "both float32, bfloat16 or float16"),
    ],
)
def test_bad_input_is_named(change: dict[str, torch.Tensor], message: str) -> None:
    case = make_case(tokens=4, experts=3, choices=2, hidden=8, width=4)
    arguments = {"x_TH": case.x_TH, "experts_TK": case.experts_TK, "gates_TK": case.gates_TK} | change
    with pytest.raises(ValueError, match=message):
        moe_layer(weights=case.weights, **arguments)


def test_weights_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"it must be \(2, 8, 16\)"):
        ExpertWeights(gate_up_EUH=torch.zeros(2, 4, 16), down_EHI=torch.zeros(2, 16, 4))


@pytest.mark.parametrize("expert", [3, 60_000, 2**32])
def test_the_reference_knows_no_other_experts(expert: int) -> None:
    case = make_case(tokens=4, experts=3, choices=2, hidden=8, width=8)
    with pytest.raises(ValueError, match=f"expert id {expert}: ids run from 0 to 2"):
        moe_layer_reference(case.x_TH, case.weights, torch.full((4, 2), expert), case.gates_TK)
    nothing = moe_layer_reference(case.x_TH, case.weights, torch.full((4, 2), 65_535), case.gates_TK)
    assert not nothing.any()
