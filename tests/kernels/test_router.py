"""The two routers against their definitions."""

from __future__ import annotations

import pytest
import torch

from moecast.kernels import sigmoid_top_k, softmax_top_k


def logits(tokens: int = 50, experts: int = 16) -> torch.Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0))


def test_softmax_gates_are_probabilities_best_first() -> None:
    ids_TK, gates_TK = softmax_top_k(logits(), 4, renormalize=False)
    torch.testing.assert_close(gates_TK, logits().softmax(-1).gather(1, ids_TK))
    assert (gates_TK.diff(dim=1) <= 0).all()
    torch.testing.assert_close(softmax_top_k(logits(), 4)[1].sum(1), torch.ones(50))


def test_sigmoid_bias_moves_the_choice_but_not_the_gates() -> None:
    bias_E = torch.zeros(16)
    bias_E[5] = 10.0
    ids_TK, gates_TK = sigmoid_top_k(logits(), 3, bias_E=bias_E, scale=2.5)
    assert (ids_TK[:, 0] == 5).all()
    scores_TK = logits().sigmoid().gather(1, ids_TK)
    torch.testing.assert_close(gates_TK, 2.5 * scores_TK / scores_TK.sum(1, keepdim=True))


def test_groups_limit_the_choice_to_the_best_groups() -> None:
    scores_TGE = logits().sigmoid().view(50, 4, 4)
    best_two = scores_TGE.sort(-1, descending=True).values[..., :2].sum(-1)
    ids_TK, _ = sigmoid_top_k(logits(), 4, groups=4, groups_kept=2)
    for token, ids in enumerate(ids_TK.tolist()):
        kept = best_two[token].argsort(descending=True)[:2].tolist()
        allowed = {4 * group + i for group in kept for i in range(4)}
        expected = sorted(allowed, key=lambda e: -float(logits().sigmoid()[token, e]))[:4]
        assert ids == expected


def test_too_few_experts_in_the_groups_kept() -> None:
    with pytest.raises(ValueError, match="5 choices of 16 experts cannot come from 1 of 4 groups"):
        sigmoid_top_k(logits(), 5, groups=4, groups_kept=1)
