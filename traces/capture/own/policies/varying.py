"""Tokens that choose more or fewer experts: by giving choices away to null experts, or until they are sure enough.

Axes: T token, E expert, O output of the router (experts, then null experts), K choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moecast.traces.capture.own.policies.base import NONE, Pass, Policy, Routed


@dataclass(frozen=True, kw_only=True)
class NullExperts(Policy):
    """Top-k among experts and null experts, which compute nothing.

    True choices share the weight among themselves.

    There is a null expert per expert and twice the choices, so even loads leave a token as many
    true ones as others have. The balance loss sees null experts through their mean load only: which
    null expert is of no interest.
    """

    name: ClassVar[str] = "null-experts"
    summary: ClassVar[str] = "softmax top-2k among experts and as many null experts; a null choice is none"
    source: ClassVar[str] = "Zeng et al., AdaMoE (2024)"

    balance_weight: float = 0.02

    @property
    def penalty_weight(self) -> float:
        """Weight of the balance loss."""
        return self.balance_weight

    def outputs(self, experts: int) -> int:
        """Experts and as many null experts."""
        return 2 * experts

    def most_choices(self, experts: int, choices: int) -> int:
        """Twice as many, when none of them is null."""
        return min(2 * choices, experts)

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best and leave out the null ones; see the class."""
        del layer
        experts = len(bias_E)
        probability_TO = logits_TO.softmax(-1)
        value_TK, expert_TK = probability_TO.topk(self.most_choices(experts, choices), dim=-1)
        null_TK = expert_TK >= experts
        penalty = self._balance(expert_TK, probability_TO, experts) if view.training else None
        # True choices come first, each kind best first.
        order_TK = null_TK.to(torch.int8).sort(dim=-1, stable=True).indices
        value_TK = value_TK.masked_fill(null_TK, 0.0).gather(-1, order_TK)
        weight_TK = value_TK / value_TK.sum(-1, keepdim=True).clamp_min(torch.finfo(value_TK.dtype).tiny)
        return Routed(weight_TK, expert_TK.masked_fill(null_TK, NONE).gather(-1, order_TK), penalty)

    def config(self) -> dict[str, object]:
        """Names of our own."""
        return super().config() | {"topk_method": self.name}

    def note(self, experts: int, choices: int) -> str:
        """What empty choices are."""
        return (
            f"Each token takes {self.most_choices(experts, choices)} of {experts} experts and "
            f"{experts} null experts; an empty choice is a null expert, and empty ones stand last."
        )

    def _balance(self, expert_TK: Tensor, probability_TO: Tensor, experts: int) -> Tensor:
        outputs = probability_TO.shape[1]
        share_O = torch.bincount(expert_TK.flatten(), minlength=outputs) / expert_TK.numel()
        share_O = torch.cat([share_O[:experts], share_O[experts:].mean().expand(outputs - experts)])
        return outputs * (share_O * probability_TO.mean(0)).sum()


@dataclass(frozen=True, kw_only=True)
class TopP(Policy):
    """The fewest experts whose probabilities reach `threshold`.

    The loss asks for even loads and for certainty.

    The fewest are never more than ⌈threshold · experts⌉, as the best n hold at least n / experts of
    the probability; no cap is needed. Weights are the probabilities themselves.
    """

    name: ClassVar[str] = "top-p"
    summary: ClassVar[str] = "the fewest experts whose probabilities reach p; balance loss and entropy loss"
    source: ClassVar[str] = "Huang et al., Harder Tasks Need More Experts (2024); p is that of its published model"

    threshold: float = 0.4
    balance_weight: float = 0.01
    entropy_weight: float = 0.0001

    @property
    def penalty_weight(self) -> float:
        """Weight of the balance loss; the entropy's is relative to it."""
        return self.balance_weight

    def most_choices(self, experts: int, choices: int) -> int:
        """When all probabilities are the same."""
        del choices
        return math.ceil(self.threshold * experts)

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best until they are enough; see the class."""
        del bias_E, layer
        probability_TE = logits_TO.softmax(-1)
        experts = probability_TE.shape[1]
        value_TK, expert_TK = probability_TE.topk(self.most_choices(experts, choices), dim=-1)
        spare_TK = value_TK.detach().cumsum(-1) - value_TK.detach() >= self.threshold
        expert_TK = expert_TK.masked_fill(spare_TK, NONE)
        penalty = None
        if view.training:
            load_E = torch.bincount((expert_TK + 1).flatten(), minlength=experts + 1)[1:]
            balance = experts * (load_E / len(expert_TK) * probability_TE.mean(0)).sum()
            entropy = -(probability_TE * logits_TO.log_softmax(-1)).sum(-1).mean()
            penalty = balance + self.entropy_weight / self.balance_weight * entropy
        return Routed(value_TK.masked_fill(spare_TK, 0.0), expert_TK, penalty)

    def config(self) -> dict[str, object]:
        """Names of our own."""
        return super().config() | {"topk_method": self.name, "norm_topk_prob": False}

    def note(self, experts: int, choices: int) -> str:
        """What empty choices are."""
        return (
            f"Each token takes the fewest experts whose probabilities reach {self.threshold}, at "
            f"most {self.most_choices(experts, choices)}; empty choices stand last."
        )
