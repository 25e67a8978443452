"""Random MoE layers, small enough for Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from moecast.kernels import NO_CHOICE, ExpertWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    x_TH: Tensor
    weights: ExpertWeights
    experts_TK: Tensor
    gates_TK: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ExpertWeights, Tensor, Tensor]:
        return self.x_TH, self.weights, self.experts_TK, self.gates_TK


def make_case(
    *,
    tokens: int,
    experts: int,
    choices: int,
    hidden: int,
    width: int,
    missing: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Case:
    """A layer whose tokens choose different experts at random; a share `missing` of the choices is empty."""
    generator = torch.Generator().manual_seed(seed)
    experts_TK = torch.rand(tokens, experts, generator=generator).topk(choices, dim=1).indices
    absent_TK = torch.rand(tokens, choices, generator=generator) < missing
    marker_TK = torch.where(torch.rand(tokens, choices, generator=generator) < 0.5, -1, NO_CHOICE)
    return Case(
        x_TH=torch.randn(tokens, hidden, generator=generator).to(device, dtype),
        weights=ExpertWeights.random(
            experts=experts, hidden=hidden, width=width, seed=seed, dtype=dtype, device=device
        ),
        experts_TK=torch.where(absent_TK, marker_TK, experts_TK).to(device),
        gates_TK=torch.rand(tokens, choices, generator=generator).to(device),
    )


@st.composite
def layers(draw: st.DrawFn, *, most_tokens: int = 24) -> dict[str, int | float]:
    """Arguments of `make_case`: sizes that fit no tile, experts nobody chooses, choices not made."""
    experts = draw(st.integers(1, 12))
    return {
        "tokens": draw(st.integers(0, most_tokens)),
        "experts": experts,
        "choices": draw(st.integers(1, min(experts, 4))),
        "hidden": draw(st.integers(1, 80)),
        "width": draw(st.integers(1, 80)),
        "missing": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "seed": draw(st.integers(0, 2**16)),
    }
