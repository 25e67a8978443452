"""The router: scores every expert for every token and keeps the best K.

Axes: T token, E expert, K choice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_top_k(logits_TE: Tensor, choices: int, *, renormalize: bool = True) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, then the K largest (Mixtral, Qwen3-MoE, OLMoE, DeepSeek-V2).

    Parameters
    ----------
    logits_TE
        Router outputs; computed in float32.
    choices
        K.
    renormalize
        Whether a token's K gates are scaled to sum to one (Mixtral, Qwen3-MoE: yes; OLMoE,
        DeepSeek-V2: no).

    Returns
    -------
    Expert ids int64 [T, K], best first, and gates float32 [T, K].
    """
    gates_TK, experts_TK = logits_TE.float().softmax(-1).topk(choices, dim=-1)
    if renormalize:
        gates_TK = gates_TK / gates_TK.sum(-1, keepdim=True)
    return experts_TK, gates_TK


def sigmoid_top_k(
    logits_TE: Tensor,
    choices: int,
    *,
    bias_E: Tensor | None = None,
    groups: int = 1,
    groups_kept: int = 1,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sigmoid scores, the best expert groups, then the K largest inside them (DeepSeek-V3, Kimi-K2).

    The bias balances load: it takes part in the choice, not in the gates. A group's score is the
    sum of its two best biased scores. Source: DeepSeek-V3 technical report (arXiv 2412.19437),
    2.1.2.

    Parameters
    ----------
    logits_TE
        Router outputs; computed in float32.
    choices
        K.
    bias_E
        Correction bias of each expert; None: zero.
    groups, groups_kept
        E is cut into `groups` equal groups of neighbours, of which a token may use `groups_kept`.
    scale
        The K gates of a token sum to this.

    Returns
    -------
    Expert ids int64 [T, K], best first by biased score, and gates float32 [T, K].

    Raises
    ------
    ValueError
        E is no multiple of `groups`, or the groups kept hold fewer than K experts.
    """
    tokens, experts = logits_TE.shape
    if experts % groups or not 1 <= groups_kept <= groups or groups_kept * (experts // groups) < choices:
        raise ValueError(f"{choices} choices of {experts} experts cannot come from {groups_kept} of {groups} groups")
    scores_TE = logits_TE.float().sigmoid()
    biased_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if groups_kept < groups:
        grouped = biased_TE.view(tokens, groups, -1)
        best = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(groups_kept, dim=-1).indices, True)
        biased_TE = grouped.masked_fill(~kept[..., None], float("-inf")).view(tokens, experts)
    experts_TK = biased_TE.topk(choices, dim=-1).indices
    gates_TK = scores_TE.gather(1, experts_TK)
    return experts_TK, scale * gates_TK / gates_TK.sum(-1, keepdim=True)
