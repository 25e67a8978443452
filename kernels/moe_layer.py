"""The MoE layer behind one interface: the fused Triton path where it compiles, plain PyTorch elsewhere.

Axes: T token, K choice, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moecast.kernels.device import choose_path
from moecast.kernels.reference import NO_CHOICE, moe_layer_reference
from moecast.kernels.weights import ExpertWeights


def moe_layer(
    x_TH: Tensor,
    weights: ExpertWeights,
    experts_TK: Tensor,
    gates_TK: Tensor,
    *,
    path: str = "auto",
    check: bool = True,
) -> Tensor:
    """Each token's gate-weighted sum over the SwiGLU experts it chose.

    Parameters
    ----------
    x_TH
        Tokens, float32, bfloat16 or float16.
    weights
        The experts, of the same type and on the same device.
    experts_TK
        Expert ids of any integer type; -1 and 65535 are no choice.
    gates_TK
        Gate weights; used as float32.
    path
        "auto": Triton on a CUDA device, PyTorch elsewhere; "reference" or "triton" force one.
    check
        Whether ids are checked to be in range, which waits for the GPU; leave it out in timed
        loops. Unchecked ids out of range are undefined.

    Returns
    -------
    [T, H] in the type of `x_TH`, summed in float32; zeros for tokens without a choice.

    Raises
    ------
    ValueError
        Shapes, types or devices do not fit together, an id is out of range, or the path cannot run
        here.
    """
    _check_shapes(x_TH, weights, experts_TK, gates_TK)
    chosen = choose_path(path, x_TH.device)
    ids_TK = _plain_ids(experts_TK, weights.experts, check=check)
    if chosen == "reference" or x_TH.shape[0] == 0 or experts_TK.shape[1] == 0:
        return moe_layer_reference(x_TH, weights, ids_TK, gates_TK)
    from moecast.kernels.fused import moe_layer_fused  # Triton is imported by those who run it

    return moe_layer_fused(x_TH, weights, ids_TK, gates_TK)


def _plain_ids(experts_TK: Tensor, experts: int, *, check: bool) -> Tensor:
    # few operations exist for unsigned types, and a cast to 32 bits would wrap an id that is out of
    # range
    ids_TK = experts_TK.to(torch.int64)
    ids_TK = torch.where(ids_TK == NO_CHOICE, -1, ids_TK)
    if check and bool(((ids_TK < -1) | (ids_TK >= experts)).any()):
        wrong = ids_TK[(ids_TK < -1) | (ids_TK >= experts)][0].item()
        raise ValueError(f"expert id {wrong}: ids run from 0 to {experts - 1}, or are -1 or {NO_CHOICE} for no choice")
    return ids_TK.to(torch.int32)


def _check_shapes(x_TH: Tensor, weights: ExpertWeights, experts_TK: Tensor, gates_TK: Tensor) -> None:
    if x_TH.ndim != 2 or x_TH.shape[1] != weights.hidden:
        raise ValueError(f"x_TH is {tuple(x_TH.shape)}, the experts take [tokens, {weights.hidden}]")
    if experts_TK.ndim != 2 or experts_TK.shape[0] != x_TH.shape[0] or experts_TK.shape != gates_TK.shape:
        raise ValueError(
            f"experts_TK {tuple(experts_TK.shape)} and gates_TK {tuple(gates_TK.shape)} must both "
            f"be [{x_TH.shape[0]} tokens, choices]"
        )
    if experts_TK.is_floating_point():
        raise ValueError(f"experts_TK is {experts_TK.dtype}, ids are whole numbers")
    if x_TH.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x_TH.dtype != weights.down_EHI.dtype:
        raise ValueError(
            f"x_TH is {x_TH.dtype}, the experts {weights.down_EHI.dtype}: both float32, bfloat16 or float16"
        )
    devices = {tensor.device for tensor in (x_TH, weights.down_EHI, experts_TK, gates_TK)}
    if len(devices) > 1:
        raise ValueError(f"tensors are on {', '.join(sorted(map(str, devices)))}: put them on one device")
