"""A Mixture-of-Experts feed-forward layer that learns whom to ask: softmax router, top-K, SwiGLU experts.

Axes: T token, E expert, K choice, H hidden, I expert width. The tokens of one expert are gathered side by side and go
through its matrices together; there is no capacity limit, so no token is ever dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Dispatch(torch.autograd.Function):
    """Copy each token once per choice, in the order of `order_X` (flat token × choice indices, sorted by expert)."""

    @staticmethod
    def forward(context: Any, x_TH: Tensor, order_X: Tensor, inverse_X: Tensor, choices: int) -> Tensor:
        context.save_for_backward(inverse_X)
        context.choices = choices
        return x_TH[order_X // choices]

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_X,) = context.saved_tensors
        grad_XH = grads[0]
        return grad_XH[inverse_X].view(-1, context.choices, grad_XH.shape[1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """Reorder rows, `order_X` and `inverse_X` undoing each other: a gather both ways, so no float is added twice."""

    @staticmethod
    def forward(context: Any, y_XH: Tensor, order_X: Tensor, inverse_X: Tensor) -> Tensor:
        context.save_for_backward(inverse_X)
        return y_XH[order_X]

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_X,) = context.saved_tensors
        return grads[0][inverse_X], None, None


class Router(nn.Module):
    """Scores every expert for every token and keeps the best K.

    Returns gate weights [T, K] (they sum to one), expert ids [T, K], best first, and the probabilities [T, E].
    """

    def __init__(self, hidden: int, experts: int, choices: int) -> None:
        super().__init__()
        self.choices = choices
        self.weight_EH = nn.Parameter(torch.empty(experts, hidden))

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route; see the class."""
        probability_TE = functional.linear(x_TH.float(), self.weight_EH.float()).softmax(-1)
        weight_TK, expert_TK = probability_TE.topk(self.choices, dim=-1)
        return weight_TK / weight_TK.sum(-1, keepdim=True), expert_TK, probability_TE


def balance_loss(expert_TK: Tensor, probability_TE: Tensor) -> Tensor:
    """The load-balancing loss of Switch Transformers (Fedus et al., 2021), over the whole batch; 1 when balanced.

    Experts · Σ (fraction of choices) · (mean probability). Over the batch and not per sequence, so that experts may
    still specialise in a topic.
    """
    experts = probability_TE.shape[1]
    share_E = torch.bincount(expert_TK.flatten(), minlength=experts) / expert_TK.numel()
    return experts * (share_E * probability_TE.mean(0)).sum()


class SwiGlu(nn.Module):
    """A dense SwiGLU feed-forward block: down(silu(gate(x)) · up(x))."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x_TH: Tensor) -> Tensor:
        """Return [T, H] for [T, H]."""
        gate, up = self.gate_up(x_TH).chunk(2, dim=-1)
        out: Tensor = self.down(functional.silu(gate) * up)
        return out


class MoeLayer(nn.Module):
    """Routed experts, weighted by their gates, plus an always-on shared expert.

    Returns the layer's output [T, H] and its balance loss (a scalar).
    """

    def __init__(self, *, hidden: int, experts: int, choices: int, width: int, shared_width: int) -> None:
        super().__init__()
        self.router = Router(hidden, experts, choices)
        self.gate_up_EHI = nn.Parameter(torch.empty(experts, hidden, 2 * width))
        self.down_EIH = nn.Parameter(torch.empty(experts, width, hidden))
        self.shared = SwiGlu(hidden, shared_width) if shared_width else None

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Return [T, H] and the balance loss."""
        weight_TK, expert_TK, probability_TE = self.router(x_TH)
        order_X = expert_TK.flatten().argsort(stable=True)
        inverse_X = order_X.argsort()
        rows_E = torch.bincount(expert_TK.flatten(), minlength=probability_TE.shape[1]).tolist()
        x_XH = _Dispatch.apply(x_TH, order_X, inverse_X, self.router.choices)  # type: ignore[no-untyped-call]
        gate, up = _per_expert(x_XH, self.gate_up_EHI, rows_E).chunk(2, dim=-1)
        # The gate weight goes in before the last matrix: the same sum, on narrower rows.
        weight_X1 = _Permute.apply(weight_TK.flatten()[:, None], order_X, inverse_X)  # type: ignore[no-untyped-call]
        y_XH = _per_expert(functional.silu(gate) * up * weight_X1.to(up.dtype), self.down_EIH, rows_E)
        y_TKH = _Permute.apply(y_XH, inverse_X, order_X).view(*expert_TK.shape, -1)  # type: ignore[no-untyped-call]
        y_TH: Tensor = y_TKH.sum(1)
        if self.shared is not None:
            y_TH = y_TH + self.shared(x_TH)
        return y_TH, balance_loss(expert_TK, probability_TE)


def _per_expert(x_XI: Tensor, weight_EIO: Tensor, rows_E: list[int]) -> Tensor:
    """Multiply the rows of each expert (sorted by expert, `rows_E` of them) with its own matrix."""
    parts = zip(torch.split(x_XI, rows_E), weight_EIO.unbind(0), strict=True)
    return torch.cat([x @ weight for x, weight in parts])
