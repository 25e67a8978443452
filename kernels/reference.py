"""The MoE layer in plain PyTorch: what the fused path must agree with.

Axes: T token, K choice, E expert, H hidden, I expert width, U gate and up rows (2·I).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moecast.kernels.weights import ExpertWeights

NO_CHOICE = 65535  # as routing traces write it; -1 means the same here


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
        Expert ids; a negative id and 65535 are no choice.
    gates_TK
        Gate weights; that of no choice is not read.
    accumulate
        Products and sums are made in this type (float64 for a tighter reference) and rounded once,
        at the end.

    Returns
    -------
    [T, H] in the type of `x_TH`; zeros for tokens that chose nothing.

    Raises
    ------
    ValueError
        An id that is no expert's.
    """
    ids_TK = experts_TK.to(torch.int64)  # few operations exist for unsigned types
    wrong_TK = (ids_TK >= weights.experts) & (ids_TK != NO_CHOICE)
    if bool(wrong_TK.any()):
        raise ValueError(f"expert id {int(ids_TK[wrong_TK][0])}: ids run from 0 to {weights.experts - 1}")
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
