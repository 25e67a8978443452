"""Choices that depend on the other tokens of the pass: experts that pick tokens, transport plans, full experts.

Axes: T token, E expert, O output of the router, K choice, B group of tokens, Q token of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from moecast.traces.capture.own.policies.base import NONE, Pass, Policy, Routed, balance_loss, best_of, normalised


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(Policy):
    """Each expert picks its best tokens of the pass, tokens · K / E of them: loads are even by construction.

    A token is picked by no expert, or by many. Weights are the softmax probabilities themselves. In
    training and in prefill an earlier token's experts depend on later tokens, which a deployed
    decoder could not know; in decode the sequences of the step compete.
    """

    name: ClassVar[str] = "expert-choice"
    summary: ClassVar[str] = "each expert picks tokens · k / experts of the pass's tokens; not causal in prefill"
    source: ClassVar[str] = "Zhou et al., Mixture-of-Experts with Expert Choice Routing (2022), capacity factor k"

    def most_choices(self, experts: int, choices: int) -> int:
        """All of them may pick the same token."""
        del choices
        return experts

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Let the experts pick; see the class."""
        del bias_E, layer
        probability_TE = logits_TO.softmax(-1)
        worth_TE = probability_TE.detach()
        tokens, experts = worth_TE.shape
        if view.valid_T is not None:
            tokens = int(view.valid_T.sum())
            worth_TE = worth_TE.masked_fill(~view.valid_T[:, None], -1.0)
        picked_CE = worth_TE.topk(max(1, tokens * choices // experts), dim=0).indices
        chosen_TE = torch.zeros_like(worth_TE, dtype=torch.bool).scatter_(0, picked_CE, value=True)
        expert_TK, weight_TK = best_of(chosen_TE, probability_TE, max(1, int(chosen_TE.sum(-1).max())))
        return Routed(weight_TK, expert_TK)

    def config(self) -> dict[str, object]:
        """Names of our own."""
        return super().config() | {"topk_method": self.name, "norm_topk_prob": False}

    def note(self, experts: int, choices: int) -> str:
        """Who competes."""
        return (
            f"Experts pick tokens: each takes {choices} / {experts} of the tokens of a forward pass (`step`), so a "
            "token has any number of choices, with none left out; empty ones stand last. Prefill is not causal: "
            "the tokens of all sequences of the pass compete, later ones too. In decode the sequences of the step "
            "compete."
        )


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Policy):
    """Sinkhorn routing: in training a transport plan with even loads decides, at inference the scores alone.

    At a share of `probability` of (step, layer), the top-k is that of the entropic transport plan
    of the scores, with one unit per token and tokens / E per expert, and its values, normalised,
    are the gates. At the others it is that of the softmax of the scores plus Gaussian noise: that
    is selective Sinkhorn routing, whose share is 0.001 to 0.01 in runs far longer than ours, where
    so few plans leave no mark.

    A plan does not see how popular an expert is: its potential takes that back. Gradients
    `through_potentials`, which are the plan's own, therefore sum to nothing over the tokens of an
    expert; where potentials are taken as constant they do not, and drive apart the loads at
    inference, where there are no potentials. Iterations are fixed in number.
    """

    name: ClassVar[str] = "sinkhorn"
    summary: ClassVar[str] = "balanced transport plan decides in training, softmax top-k at inference"
    source: ClassVar[str] = "Nguyen et al., Selective Sinkhorn Routing (2025), here at every training step"

    probability: float = 1.0
    regularisation: float = 0.5
    iterations: int = 50
    noise: float = 0.5
    through_potentials: bool = True

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best of the plan or of the softmax; see the class."""
        del bias_E
        score_TE = logits_TO
        if view.training:
            generator = view.generator(layer)
            if torch.rand((), generator=generator) < self.probability:
                scaled_TE = logits_TO / self.regularisation
                balanced_TE = scaled_TE if self.through_potentials else scaled_TE.detach()
                score_TE = scaled_TE + potential_E(balanced_TE, self.iterations)
            else:
                score_TE = logits_TO + self.noise * torch.randn(logits_TO.shape, generator=generator).to(logits_TO)
        weight_TK, expert_TK = score_TE.softmax(-1).topk(choices, dim=-1)
        return Routed(normalised(weight_TK), expert_TK)

    def note(self, experts: int, choices: int) -> str:
        """What was recorded."""
        return super().note(experts, choices) + " Transport plans decided in training only: this is plain top-k."


def potential_E(score_TE: Tensor, iterations: int) -> Tensor:
    """What to add to each expert's scores so that their softmax has even sums over the tokens (Sinkhorn's scaling)."""
    potential = score_TE.new_zeros(score_TE.shape[1])
    for _ in range(iterations):
        share_E = (score_TE + potential).softmax(-1).mean(0)
        potential = potential - (share_E * len(potential)).log()
    return potential


@dataclass(frozen=True, kw_only=True)
class Capacity(Policy):
    """Top-k, but an expert takes `factor` · tokens · K / E choices of a group and drops the rest.

    A group is a sequence; in decode, where each has one token, it is the step. First choices go
    before second ones, earlier tokens before later ones, so what comes late is dropped. A dropped
    choice keeps its share of the weight.
    """

    name: ClassVar[str] = "capacity"
    summary: ClassVar[str] = "softmax top-k, balance loss; an expert drops what exceeds its capacity in a sequence"
    source: ClassVar[str] = "Lepikhin et al., GShard (2020); Switch Transformers (2021); dropping: OpenMoE (2024)"

    factor: float = 1.25
    balance_weight: float = 0.02

    @property
    def penalty_weight(self) -> float:
        """Weight of the balance loss, which sees choices before they are dropped."""
        return self.balance_weight

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Take the best that have room; see the class."""
        del bias_E, layer
        probability_TE = logits_TO.softmax(-1)
        value_TK, expert_TK = probability_TE.topk(choices, dim=-1)
        penalty = balance_loss(expert_TK, probability_TE) if view.training else None
        groups = 1 if len(expert_TK) == view.rows else view.rows
        full_TK = ~self._has_room(expert_TK.view(groups, -1, choices), probability_TE.shape[1], view.valid_T)
        weight_TK = normalised(value_TK).masked_fill(full_TK, 0.0)
        return Routed(weight_TK, expert_TK.masked_fill(full_TK, NONE), penalty)

    def config(self) -> dict[str, object]:
        """Names of our own."""
        return super().config() | {"topk_method": self.name}

    def note(self, experts: int, choices: int) -> str:
        """What empty choices are."""
        return (
            f"Each token chooses {choices} experts; an empty choice was dropped, in its place by "
            f"rank, because the expert already had {self.factor} · {choices} / {experts} of the "
            "group's tokens. A group is a sequence in prefill (earlier positions first, first "
            "choices before second ones), the step in decode."
        )

    def _has_room(self, expert_BQK: Tensor, experts: int, valid_T: Tensor | None) -> Tensor:
        """Whether the expert of each choice is not yet full [T, K]."""
        groups, tokens, choices = expert_BQK.shape
        asked_BKQE = functional.one_hot(expert_BQK.transpose(1, 2), experts).to(torch.int32)
        size_B = torch.full((groups,), float(tokens), device=expert_BQK.device)
        if valid_T is not None:
            valid_BQ = valid_T.view(groups, tokens)
            asked_BKQE = asked_BKQE * valid_BQ[:, None, :, None]
            size_B = valid_BQ.sum(1).float()
        before_BKQE = asked_BKQE.flatten(1, 2).cumsum(1, dtype=torch.int32).view_as(asked_BKQE) - asked_BKQE
        place_BQK = before_BKQE.transpose(1, 2).gather(-1, expert_BQK[..., None])[..., 0]
        room_B = (self.factor * size_B * choices / experts).ceil()
        return (place_BQK < room_B[:, None, None]).view(-1, choices)
