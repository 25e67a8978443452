"""The experts of one rank on the rows it received: the fused kernels where they compile, plain PyTorch elsewhere.

Axes: R row, P slot, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from moecast.errors import MoecastError
from moecast.kernels import ExpertWeights, moe_layer
from moecast.sim import ModelShape, Plan
from moecast.validate.job import Job

CHECKED_ROWS = 32
TOLERANCE = 0.03  # of bfloat16 sums; float32 stays far below


class Repeats(Protocol):
    """How often something is run and timed."""

    @property
    def repeats(self) -> int:
        """Timed runs."""
        ...

    @property
    def warmup(self) -> int:
        """Runs before that."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertWork:
    """Random weights for each slot of a rank, the same at every layer: time does not depend on their values."""

    weights: ExpertWeights

    @classmethod
    def of(cls, model: ModelShape, plan: Plan, device: torch.device) -> ExpertWork:
        """Make weights of the model's widths: bfloat16 on a GPU, float32 on a CPU."""
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = ExpertWeights.random(
            experts=plan.max_slots, hidden=model.hidden, width=model.expert_intermediate, dtype=dtype, device=device
        )
        return cls(weights=weights)

    def median_s(self, job: Job, slot_R: npt.NDArray[np.int32], repeats: Repeats) -> float:
        """Time the experts on rows of which each goes to one slot.

        The first rows are held against the reference.

        Raises
        ------
        MoecastError
            The kernels disagree with the reference.
        """
        generator = torch.Generator().manual_seed(len(slot_R))
        x_RH = torch.randn(len(slot_R), self.weights.hidden, generator=generator)
        x_RH = x_RH.to(job.device, self.weights.down_EHI.dtype)
        slot_R1 = torch.from_numpy(slot_R.astype(np.int64))[:, None].to(job.device)
        gate_R1 = torch.ones(len(slot_R), 1, device=job.device)

        def run() -> torch.Tensor:
            return moe_layer(x_RH, self.weights, slot_R1, gate_R1, check=False)

        some = slice(0, CHECKED_ROWS)
        expected = moe_layer(x_RH[some], self.weights, slot_R1[some], gate_R1[some], path="reference")
        if not torch.allclose(run()[some].float(), expected.float(), rtol=TOLERANCE, atol=TOLERANCE):
            rule = f"the kernels disagree with the reference at rank {job.rank}"
            raise MoecastError(rule, field="experts")
        return job.median_s(run, repeats=repeats.repeats, warmup=repeats.warmup)
