"""Experts drawn at random, in training and afterwards.

Axes: T token, E expert, O output of the router, K choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moecast.traces.capture.own.policies.base import Pass, Policy, Routed


@dataclass(frozen=True, kw_only=True)
class Stochastic(Policy):
    """Every token draws K different experts evenly at each layer; they share the weight evenly.

    The paper's consistency loss, which compares two such passes and doubles the cost, is left out.
    """

    name: ClassVar[str] = "stochastic"
    summary: ClassVar[str] = "each token draws k experts at random; no consistency loss"
    source: ClassVar[str] = "Zuo et al., Taming Sparsely Activated Transformer with Stochastic Experts (THOR, 2021)"

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Draw; see the class."""
        del bias_E
        drawn_TE = torch.rand(logits_TO.shape, generator=view.generator(layer)).to(logits_TO.device)
        expert_TK = drawn_TE.topk(choices, dim=-1).indices
        return Routed(torch.full_like(expert_TK, 1 / choices, dtype=logits_TO.dtype), expert_TK)

    def config(self) -> dict[str, object]:
        """Names of our own."""
        return super().config() | {"topk_method": self.name}

    def note(self, experts: int, choices: int) -> str:
        """What was recorded."""
        return f"Each token draws {choices} of {experts} experts at random at each layer: nothing here was learned."
