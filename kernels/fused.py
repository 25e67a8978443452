"""The MoE layer in four launches: permute, gate-up with SwiGLU, down, weighted unpermute.

Axes: T token, K choice, R row sorted by expert, H hidden, I expert width.
"""

from __future__ import annotations

from torch import Tensor

from moecast.kernels.grouped_gemm import Tiling, choose_tiling, grouped_gemm
from moecast.kernels.permute import build_index, permute, unpermute
from moecast.kernels.weights import ExpertWeights


def moe_layer_fused(
    x_TH: Tensor, weights: ExpertWeights, experts_TK: Tensor, gates_TK: Tensor, *, tiling: Tiling | None = None
) -> Tensor:
    """Run the fused path of `moe_layer`, which checks its input.

    `tiling` overrides both products' tiles.

    Products are summed in float32; the activation between them is rounded to the type of `x_TH`.
    """
    tile = tiling.rows if tiling else tile_rows(experts_TK, weights)
    index = build_index(experts_TK, weights.experts, tile)
    rows_RH = permute(x_TH.contiguous(), index)
    hidden_RI = grouped_gemm(rows_RH, weights.gate_up_EUH.contiguous(), index, swiglu=True, tiling=tiling)
    rows_RH = grouped_gemm(hidden_RI, weights.down_EHI.contiguous(), index, tiling=tiling)
    return unpermute(rows_RH, index, gates_TK.contiguous())


def tile_rows(experts_TK: Tensor, weights: ExpertWeights) -> int:
    """Choose the height of the tiles that both products share: the choices an expert gets on average."""
    per_expert = experts_TK.numel() / weights.experts
    return choose_tiling(choices_per_expert=per_expert, dtype=weights.down_EHI.dtype, swiglu=True).rows
