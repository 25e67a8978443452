"""The MoE layer in plain PyTorch: what the fused path must agree with.

Axes: T token, K choice, E expert, H hidden, I expert width, U gate and up rows (2·I).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moecast.kernels.weights import ExpertWeights


def moe_layer_reference(
    x_TH: Tensor,
    weights: ExpertWeights,
    experts_TK: Tensor,
    gates_TK: Tensor,
    *,
    accumulate: torch.dtype = torch.float32,
) -> Tensor:
    """Each token's gate-weighted sum over the experts it chose, one expert after the other.

    Parameters
    ----------
    x_TH
        Tokens.
    weights
        The experts.
    experts_TK
        Expert ids; a negative id is no choice.
    gates_TK
        Gate weights; that of no choice is not read.
    accumulate
        Products and sums are made in this type (float64 for a tighter reference) and rounded once, at the end.

    Returns
    -------
    [T, H] in the type of `x_TH`; zeros for tokens that chose nothing.
    """
    wide_TH = x_TH.to(accumulate)
    out_TH = torch.zeros_like(wide_TH)
    for expert in range(weights.experts):
        token_R, choice_R = (experts_TK == expert).nonzero(as_tuple=True)
        if len(token_R) == 0:
            continue
        gate_RI, up_RI = (wide_TH[token_R] @ weights.gate_up_EUH[expert].to(accumulate).T).chunk(2, dim=-1)
        y_RH = (functional.silu(gate_RI) * up_RI) @ weights.down_EHI[expert].to(accumulate).T
        out_TH.index_add_(0, token_R, gates_TK[token_R, choice_R, None].to(accumulate) * y_RH)
    return out_TH.to(x_TH.dtype)
