"""Balance without a loss: a bias per expert that only choosing sees, and groups that bound how far a token travels.

Axes: T token, E expert, O output of the router, K choice, N group, M expert of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from moecast.traces.capture.own.policies.base import Pass, Policy, Routed, normalised


@dataclass(frozen=True, kw_only=True)
class AuxFree(Policy):
    """Sigmoid gates; experts are chosen by score plus bias and weighted by score.

    After each step a bias rises by `rate` where its expert got less than the mean, and falls where
    it got more.
    """

    name: ClassVar[str] = "aux-free"
    summary: ClassVar[str] = "sigmoid top-k, a bias per expert follows the sign of its load error, no loss"
    source: ClassVar[str] = (
        "Wang et al., Auxiliary-Loss-Free Load Balancing (2024); DeepSeek-V3 (2024), without its sequence-wise loss"
    )

    rate: float = 0.001

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best by score plus bias; see the class."""
        del layer, view
        score_TE = logits_TO.sigmoid()
        expert_TK = (score_TE.detach() + bias_E).topk(choices, dim=-1).indices
        return Routed(normalised(score_TE.gather(-1, expert_TK)), expert_TK)

    def next_bias(self, bias_E: Tensor, load_E: Tensor) -> Tensor:
        """One step towards even loads."""
        load_E = load_E.to(bias_E.dtype)
        return bias_E + self.rate * torch.sign(load_E.mean() - load_E)

    def config(self) -> dict[str, object]:
        """DeepSeek-V3's names."""
        return {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True}


@dataclass(frozen=True, kw_only=True)
class GroupLimited(AuxFree):
    """`AuxFree` within the best groups only: a group's worth is the sum of its best K / `kept_groups` biased scores.

    Where a group of neighbouring experts lies on one node, a token reaches at most `kept_groups`
    nodes.

    Raises
    ------
    ValueError
        Groups that do not divide the experts, or too few experts in the kept ones.
    """

    name: ClassVar[str] = "group-limited"
    summary: ClassVar[str] = "aux-free within each token's best groups of experts (node-limited routing)"
    source: ClassVar[str] = "DeepSeek-V3 (2024), 2.1.2: node-limited routing"

    groups: int = 8
    kept_groups: int = 2

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best groups, then the best experts in them; see the class."""
        del layer, view
        score_TE = logits_TO.sigmoid()
        biased_TE = score_TE.detach() + bias_E
        experts = biased_TE.shape[1]
        if experts % self.groups or self.kept_groups * (experts // self.groups) < choices:
            rule = f"must divide {experts} experts, and {self.kept_groups} of them must hold {choices}"
            raise ValueError(f"groups = {self.groups}: {rule}")
        biased_TNM = biased_TE.view(len(biased_TE), self.groups, -1)
        best = max(1, min(choices // self.kept_groups, biased_TNM.shape[2]))
        worth_TN = biased_TNM.topk(best, dim=-1).values.sum(-1)
        open_TN = torch.zeros_like(worth_TN, dtype=torch.bool)
        open_TN.scatter_(1, worth_TN.topk(self.kept_groups, dim=-1).indices, value=True)
        allowed_TNM = biased_TNM.masked_fill(~open_TN[:, :, None], -torch.inf)
        expert_TK = allowed_TNM.flatten(1).topk(choices, dim=-1).indices
        return Routed(normalised(score_TE.gather(-1, expert_TK)), expert_TK)

    def config(self) -> dict[str, object]:
        """DeepSeek-V3's names."""
        return super().config() | {"n_group": self.groups, "topk_group": self.kept_groups}

    def note(self, experts: int, choices: int) -> str:
        """Which groups."""
        size = experts // self.groups
        return (
            f"Each token chooses {choices} experts at each layer, from {self.kept_groups} of "
            f"{self.groups} groups of {size} neighbouring experts."
        )
