"""Softmax top-k: each token takes its best experts, and a loss, or nothing, keeps their loads even.

Axes: T token, E expert, O output of the router, K choice, B sequence of the pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moecast.traces.capture.own.policies.base import (
    Pass,
    Policy,
    Routed,
    balance_loss,
    balance_loss_per_row,
    normalised,
)


@dataclass(frozen=True, kw_only=True)
class NoBalance(Policy):
    """Nothing evens out the loads."""

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "softmax top-k, nothing balances the loads"
    source: ClassVar[str] = "Shazeer et al., Outrageously Large Neural Networks (2017), without noise and losses"

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best; see the class."""
        del bias_E, layer, view
        weight_TK, expert_TK = logits_TO.softmax(-1).topk(choices, dim=-1)
        return Routed(normalised(weight_TK), expert_TK)


@dataclass(frozen=True, kw_only=True)
class AuxGlobal(Policy):
    """The load-balancing loss over the global batch, which mixes topics: an expert may still keep to one of them."""

    name: ClassVar[str] = "aux-global"
    summary: ClassVar[str] = "softmax top-k, balance loss over the whole batch of all topics"
    source: ClassVar[str] = (
        "Fedus et al., Switch Transformers (2021); over the global batch: Qiu et al., Demons in the Detail (2025)"
    )

    balance_weight: float = 0.02

    @property
    def penalty_weight(self) -> float:
        """Weight of the balance loss."""
        return self.balance_weight

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best; see the class."""
        del bias_E, layer
        probability_TE = logits_TO.softmax(-1)
        weight_TK, expert_TK = probability_TE.topk(choices, dim=-1)
        penalty = self._loss(expert_TK, probability_TE, view.rows) if view.training else None
        return Routed(normalised(weight_TK), expert_TK, penalty)

    def _loss(self, expert_TK: Tensor, probability_TE: Tensor, rows: int) -> Tensor:
        del rows
        return balance_loss(expert_TK, probability_TE)


@dataclass(frozen=True, kw_only=True)
class AuxMicro(AuxGlobal):
    """The load-balancing loss within each micro-batch, here one row of one topic: every text must use all experts."""

    name: ClassVar[str] = "aux-micro"
    summary: ClassVar[str] = "softmax top-k, balance loss within each sequence (one topic), then averaged"
    source: ClassVar[str] = (
        "Fedus et al., Switch Transformers (2021); per micro-batch: the baseline of Demons in the Detail (2025)"
    )

    def _loss(self, expert_TK: Tensor, probability_TE: Tensor, rows: int) -> Tensor:
        return balance_loss_per_row(expert_TK, probability_TE, rows)
