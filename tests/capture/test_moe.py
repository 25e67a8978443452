"""The MoE layer against a loop over tokens, and its balance loss against closed forms."""

from __future__ import annotations

import torch
from torch.nn import functional

from moecast.traces.capture.own.moe import MoeLayer, Router
from moecast.traces.capture.own.policies import Pass
from moecast.traces.capture.own.policies.base import balance_loss
from moecast.traces.capture.own.policies.together import Capacity

VIEW = Pass(rows=1, training=True)


def layer(seed: int = 0) -> MoeLayer:
    made = MoeLayer(hidden=12, experts=8, choices=3, width=6, shared_width=4).double()
    generator = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.4
    return made


def by_hand(made: MoeLayer, x_TH: torch.Tensor) -> torch.Tensor:
    rows = []
    for x_H in x_TH:
        probability_E = (made.router.weight_EH.float() @ x_H.float()).softmax(0)
        chosen = probability_E.argsort(descending=True)[:3]
        y_H = made.shared(x_H)
        for expert in chosen:
            gate, up = (x_H @ made.gate_up_EHI[expert]).chunk(2)
            share = probability_E[expert] / probability_E[chosen].sum()
            y_H = y_H + share * ((functional.silu(gate) * up) @ made.down_EIH[expert])
        rows.append(y_H)
    return torch.stack(rows)


def test_the_layer_is_the_sum_over_chosen_experts() -> None:
    made, x_TH = layer(), torch.randn(20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(made(x_TH, VIEW)[0], by_hand(made, x_TH), rtol=1e-6, atol=1e-6)


def test_gradients_agree_with_the_loop() -> None:
    made = layer()
    x_TH = torch.randn(20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    wanted = [x_TH, *made.parameters()]
    ours = torch.autograd.grad(made(x_TH, VIEW)[0].square().sum(), wanted)
    loop = torch.autograd.grad(by_hand(made, x_TH).square().sum(), wanted)
    for mine, theirs in zip(ours, loop, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_choices_are_the_largest_probabilities_best_first() -> None:
    router = Router(16, 32, 5)
    torch.nn.init.normal_(router.weight_EH, generator=torch.Generator().manual_seed(2))
    x_TH = torch.randn(50, 16, generator=torch.Generator().manual_seed(3))
    weight_TK, expert_TK, _ = router(x_TH, VIEW)
    probability_TE = (x_TH @ router.weight_EH.T).softmax(-1)
    assert torch.equal(expert_TK, probability_TE.argsort(dim=-1, descending=True)[:, :5])
    torch.testing.assert_close(weight_TK.sum(-1), torch.ones(50))


def test_balance_loss_is_one_when_even_and_experts_when_all_choose_one() -> None:
    even_TE = torch.full((8, 8), 1 / 8)
    torch.testing.assert_close(balance_loss(torch.arange(8)[:, None], even_TE), torch.tensor(1.0))
    one_TE = functional.one_hot(torch.zeros(8, dtype=torch.long), 8).float()
    torch.testing.assert_close(balance_loss(torch.zeros(8, 1, dtype=torch.long), one_TE), torch.tensor(8.0))


def dropping(seed: int = 0) -> tuple[MoeLayer, torch.Tensor]:
    """A layer that drops many choices, and the tokens of two rows."""
    made = MoeLayer(hidden=12, experts=8, choices=3, width=6, shared_width=0, policy=Capacity(factor=0.5)).double()
    generator = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return made, torch.randn(40, 12, generator=generator, dtype=torch.float64, requires_grad=True)


def test_empty_choices_add_nothing_and_take_no_gradient() -> None:
    made, x_TH = dropping()
    view = Pass(rows=2)
    weight_TK, expert_TK, _ = made.router(x_TH, view)
    assert (expert_TK < 0).sum() > 5
    rows = []
    for x_H, weight_K, expert_K in zip(x_TH, weight_TK, expert_TK, strict=True):
        y_H = torch.zeros(12, dtype=torch.float64)
        for weight, expert in zip(weight_K, expert_K, strict=True):
            if expert >= 0:
                gate, up = (x_H @ made.gate_up_EHI[expert]).chunk(2)
                y_H = y_H + weight * ((functional.silu(gate) * up) @ made.down_EIH[expert])
        rows.append(y_H)
    loop_TH, ours_TH = torch.stack(rows), made(x_TH, view)[0]
    torch.testing.assert_close(ours_TH, loop_TH, rtol=1e-6, atol=1e-6)
    wanted = [x_TH, *made.parameters()]
    ours = torch.autograd.grad(ours_TH.square().sum(), wanted)
    for mine, theirs in zip(ours, torch.autograd.grad(loop_TH.square().sum(), wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
