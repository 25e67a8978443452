"""What every router policy answers to: scores in, choices with weights out, and what training adds to the loss.

Axes: T token, E expert, O output of the router (experts, and null experts where there are any), K
choice, B sequence of the pass, Q position, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

NONE = -1
"""The expert id of an empty choice in here; `NO_CHOICE` in a trace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What a router may know of the forward pass it works in, besides its scores.

    Parameters
    ----------
    rows
        B, the sequences in the pass. Tokens stand row by row: T = B · Q.
    training
        Whether weights are learned from this pass.
    valid_T
        False where a row is padded; None where none is.
    seed
        Decides all that is drawn in this pass.
    """

    rows: int
    training: bool = False
    valid_T: Tensor | None = None
    seed: tuple[int, ...] = (0,)

    def generator(self, layer: int) -> torch.Generator:
        """Random numbers of one layer in this pass; the same seed draws the same."""
        state = np.random.SeedSequence([*self.seed, layer]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Routed(NamedTuple):
    """A router's decision: gate weights and expert ids, best first, `NONE` for no choice, and a loss to be added."""

    weight_TK: Tensor
    expert_TK: Tensor
    penalty: Tensor | None = None


class Policy(Protocol):
    """How a router chooses, and what keeps its experts evenly used. All decisions are in `route`.

    The training loss is the mean over `passes` of next-token loss and weighted penalty, plus
    `agreement_loss`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]

    @property
    def penalty_weight(self) -> float:
        """Weight of the mean penalty of all layers in the training loss."""
        return 0.0

    @property
    def passes(self) -> int:
        """Forward passes that a training step makes over the same rows, each with draws of its own."""
        return 1

    def agreement_loss(self, passes_BQV: Sequence[Tensor]) -> Tensor | None:
        """What next-token scores of the passes, taken together, add to the mean of their losses."""
        del passes_BQV
        return None

    def outputs(self, experts: int) -> int:
        """O, the scores that the router computes per token."""
        return experts

    def most_choices(self, experts: int, choices: int) -> int:
        """Most experts that a token can choose when `choices` are meant for it: K of what is recorded, at most."""
        del experts
        return choices

    def route(self, logits_TO: Tensor, bias_E: Tensor, *, choices: int, layer: int, view: Pass) -> Routed:
        """Choose; K may differ from pass to pass, up to `most_choices`."""
        ...

    def next_bias(self, bias_E: Tensor, load_E: Tensor) -> Tensor:
        """Biases after a training step in which the experts got `load_E` choices."""
        del load_E
        return bias_E

    def config(self) -> dict[str, object]:
        """Fields of `config.json` that tell the policy apart, DeepSeek's names where it has one."""
        return {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": True}

    def note(self, experts: int, choices: int) -> str:
        """What a reader of the trace has to know: what K stands for, which choices are empty."""
        del experts
        return f"Each token chooses {choices} experts at each layer."


def normalised(value_TK: Tensor) -> Tensor:
    """Gate weights that sum to one over each token's choices."""
    return value_TK / value_TK.sum(-1, keepdim=True)


def balance_loss(expert_TK: Tensor, probability_TE: Tensor) -> Tensor:
    """The load-balancing loss of Switch Transformers (Fedus et al., 2021), over all tokens given.

    1 when balanced.

    Experts · Σ (fraction of choices) · (mean probability).
    """
    experts = probability_TE.shape[1]
    share_E = torch.bincount(expert_TK.flatten(), minlength=experts) / expert_TK.numel()
    return experts * (share_E * probability_TE.mean(0)).sum()


def balance_loss_per_row(expert_TK: Tensor, probability_TE: Tensor, rows: int) -> Tensor:
    """The same loss computed in each row on its own, and averaged over the rows."""
    experts = probability_TE.shape[1]
    row_T1 = torch.arange(len(expert_TK), device=expert_TK.device)[:, None] // (len(expert_TK) // rows)
    counts = torch.bincount((row_T1 * experts + expert_TK).flatten(), minlength=rows * experts)
    share_BE = counts.view(rows, experts) / (expert_TK.numel() // rows)
    return experts * (share_BE * probability_TE.view(rows, -1, experts).mean(1)).sum(-1).mean()


def best_of(mask_TE: Tensor, value_TE: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Experts [T, K] where `mask_TE` holds, by falling value, `NONE` after them, and their values (0 where empty)."""
    chosen_TK = torch.where(mask_TE, value_TE, value_TE.new_full((), -torch.inf)).topk(most, dim=-1)
    empty_TK = chosen_TK.values == -torch.inf
    return (
        chosen_TK.indices.masked_fill(empty_TK, NONE),
        value_TE.gather(-1, chosen_TK.indices).masked_fill(empty_TK, 0.0),
    )
