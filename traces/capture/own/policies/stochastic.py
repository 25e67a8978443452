"""Experts drawn at random, in training and afterwards.

Axes: T token, E expert, O output of the router, K choice, B row, Q position, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moecast.traces.capture.own.policies.base import Pass, Policy, Routed


@dataclass(frozen=True, kw_only=True)
class Stochastic(Policy):
    """Every token draws K different experts evenly at each layer; they share the weight evenly.

    Training makes two passes with different draws, whose predictions are to agree. The paper's loss
    per token is ce1 + ce2 + `consistency_weight` · (KL(p1 ‖ p2) + KL(p2 ‖ p1)) / 2; ours is half of
    that, the mean of the passes. The weight is that of the authors' run scripts
    (`--consistency-alpha 5.0`). Their experts are drawn once for a whole batch in training, and one
    at a time; ours are drawn as afterwards, per token.
    """

    name: ClassVar[str] = "stochastic"
    summary: ClassVar[str] = "each token draws k experts at random; a loss makes two such passes agree"
    source: ClassVar[str] = "Zuo et al., Taming Sparsely Activated Transformer with Stochastic Experts (THOR, 2021)"

    consistency_weight: float = 5.0

    @property
    def passes(self) -> int:
        """Two draws to be compared."""
        return 2

    def agreement_loss(self, passes_BQV: Sequence[Tensor]) -> Tensor:
        """Half of the weighted symmetric divergence of two passes' predictions, mean of tokens."""
        first_BQV, second_BQV = passes_BQV
        return self.consistency_weight / 2 * symmetric_divergence(first_BQV, second_BQV)

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


def symmetric_divergence(first_BQV: Tensor, second_BQV: Tensor) -> Tensor:
    """(KL(p ‖ q) + KL(q ‖ p)) / 2 in nats, mean of tokens, of the softmax of two tokens' scores."""
    log_p_BQV, log_q_BQV = first_BQV.log_softmax(-1), second_BQV.log_softmax(-1)
    return ((log_p_BQV.exp() - log_q_BQV.exp()) * (log_p_BQV - log_q_BQV)).sum(-1).mean() / 2
