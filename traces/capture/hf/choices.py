"""From what each MoE layer told in one forward pass to the trace's arrays, in one copy off each device.

Axes: T token, L MoE layer, E expert, K choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moecast.errors import MoecastError
from moecast.traces import NO_CHOICE
from moecast.traces.capture.hf.layers import Choices, MoeLayer

Experts = npt.NDArray[np.uint16]
Weights = npt.NDArray[np.float16]


def gather(
    layers: Sequence[MoeLayer], told: Sequence[Choices], kept_T: npt.NDArray[np.bool_], *, weights: bool
) -> tuple[Experts, Weights | None]:
    """Expert ids and, if wanted, gate weights [T, L, K] of the tokens kept.

    K is the widest layer's.

    Raises
    ------
    MoecastError
        A layer told an id that is no expert of it.
    """
    width_L = [index_TK.shape[-1] for index_TK, _ in told]
    ids_TLK = _stacked([index_TK for index_TK, _ in told], max(width_L), torch.int32)
    weights_TLK = None
    if weights or any(layer.null_weights for layer in layers):
        weights_TLK = _stacked([weights_TK for _, weights_TK in told], max(width_L), torch.float32)
    if not kept_T.all():
        ids_TLK = ids_TLK[kept_T]
        weights_TLK = None if weights_TLK is None else weights_TLK[kept_T]
    for at, (layer, width) in enumerate(zip(layers, width_L, strict=True)):
        ids_TK = ids_TLK[:, at]
        ids_TK[:, width:] = NO_CHOICE
        if layer.null_weights and weights_TLK is not None:
            ids_TK[weights_TLK[:, at] == 0] = NO_CHOICE
        _check(layer, ids_TK)
    kept = weights_TLK.astype(np.float16) if weights and weights_TLK is not None else None
    return ids_TLK.astype(np.uint16), kept


def _check(layer: MoeLayer, ids_TK: npt.NDArray[np.int32]) -> None:
    """Turn null experts into no choice; fail on other ids that are no expert."""
    outside_TK = ids_TK.view(np.uint32) >= layer.experts  # negative ids are huge without their sign
    if not outside_TK.any():
        return
    if layer.null_ids:
        ids_TK[outside_TK & (ids_TK >= 0)] = NO_CHOICE
    if (ids_TK[outside_TK] != NO_CHOICE).any():
        raise MoecastError(f"told an expert outside 0…{layer.experts - 1}", field=layer.name)


def _stacked(told: Sequence[torch.Tensor], width: int, dtype: torch.dtype) -> npt.NDArray[Any]:
    """Stack what the layers told to [T, L, K] on the CPU; layers may lie on several devices."""
    rows_LTK = [t.reshape(-1, t.shape[-1]) for t in told]
    if any(t.shape[-1] != width for t in rows_LTK):
        rows_LTK = [nn.functional.pad(t, (0, width - t.shape[-1])) for t in rows_LTK]
    out_TLK = np.empty((len(rows_LTK[0]), len(told), width), torch.empty(0, dtype=dtype).numpy().dtype)
    for device in dict.fromkeys(t.device for t in rows_LTK):
        places = [i for i, t in enumerate(rows_LTK) if t.device == device]
        out_TLK[:, places] = torch.stack([rows_LTK[i] for i in places], dim=1).to(dtype).cpu().numpy()
    return out_TLK
