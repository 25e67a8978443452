"""The experts' matrices of one MoE layer.

Axes: E expert, H hidden, I expert width, U gate rows followed by up rows (2·I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertWeights:
    """SwiGLU experts: ``down(silu(gate(x)) · up(x))``, one per entry of E.

    Parameters
    ----------
    gate_up_EUH
        Gate and up projections on top of each other: rows 0 to I-1 are the gate's, the rest the
        up's. Checkpoints with separate matrices go through `from_separate`.
    down_EHI
        Down projections.
    """

    gate_up_EUH: Tensor
    down_EHI: Tensor

    def __post_init__(self) -> None:
        """Check that the two agree in experts, widths, type and device."""
        gate_up, down = self.gate_up_EUH, self.down_EHI
        if gate_up.ndim != 3 or down.ndim != 3:
            raise ValueError(f"weights have 3 axes, not {gate_up.ndim} (gate_up_EUH) and {down.ndim} (down_EHI)")
        experts, hidden, width = down.shape
        if tuple(gate_up.shape) != (experts, 2 * width, hidden):
            raise ValueError(
                f"gate_up_EUH is {tuple(gate_up.shape)}, with down_EHI {tuple(down.shape)} it must "
                f"be {(experts, 2 * width, hidden)}"
            )
        if gate_up.dtype != down.dtype or gate_up.device != down.device:
            raise ValueError(
                f"gate_up_EUH is {gate_up.dtype} on {gate_up.device}, down_EHI {down.dtype} on {down.device}"
            )

    @property
    def experts(self) -> int:
        """E: how many experts."""
        return int(self.down_EHI.shape[0])

    @property
    def hidden(self) -> int:
        """H: width of a token."""
        return int(self.down_EHI.shape[1])

    @property
    def width(self) -> int:
        """I: inner width of an expert."""
        return int(self.down_EHI.shape[2])

    @classmethod
    def from_separate(cls, gate_EIH: Tensor, up_EIH: Tensor, down_EHI: Tensor) -> ExpertWeights:
        """Join separate gate and up matrices, as Mixtral, Qwen3-MoE and DeepSeek checkpoints hold them."""
        return cls(gate_up_EUH=torch.cat([gate_EIH, up_EIH], dim=1), down_EHI=down_EHI)

    @classmethod
    def random(
        cls,
        *,
        experts: int,
        hidden: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> ExpertWeights:
        """Draw normal weights scaled by 1/√fan-in (outputs have the size of inputs), the same on every device."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            values: Tensor = torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
            return values.to(device=device, dtype=dtype)

        return cls(gate_up_EUH=normal(experts, 2 * width, hidden), down_EHI=normal(experts, hidden, width))

    def select(self, expert_ids: Tensor) -> ExpertWeights:
        """Take the weights of some experts, in the order given; an id may repeat (replicas)."""
        ids = expert_ids.to(self.down_EHI.device, torch.long)
        return ExpertWeights(gate_up_EUH=self.gate_up_EUH[ids], down_EHI=self.down_EHI[ids])
