"""A Mixture-of-Experts feed-forward layer that learns whom to ask: a router with a policy, SwiGLU experts.

Axes: T token, E expert, O output of the router, K choice, H hidden, I expert width, N token ×
choice, X those that are not empty. The tokens of one expert are gathered side by side and go
through its matrices together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moecast.traces.capture.own.policies import AuxGlobal, Pass, Policy, Routed


class _Dispatch(torch.autograd.Function):
    """Copy each token once per choice, in the order of `order_X` (flat token × choice indices, sorted by expert).

    `inverse_N` says where a flat index stands in `order_X`; one past its end is an empty choice.
    """

    @staticmethod
    def forward(context: Any, x_TH: Tensor, order_X: Tensor, inverse_N: Tensor, choices: int) -> Tensor:
        context.save_for_backward(inverse_N)
        context.choices = choices
        return x_TH[order_X // choices]

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_N,) = context.saved_tensors
        grad_NH = _rows_or_zero(grads[0], inverse_N)
        return grad_NH.view(-1, context.choices, grad_NH.shape[1]).sum(1), None, None, None


class _Sort(torch.autograd.Function):
    """Rows in the order of `order_X`: a gather both ways, so no float is added twice."""

    @staticmethod
    def forward(context: Any, y_NH: Tensor, order_X: Tensor, inverse_N: Tensor) -> Tensor:
        context.save_for_backward(inverse_N)
        return y_NH[order_X]

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = context.saved_tensors
        return _rows_or_zero(grads[0], inverse_N), None, None


class _Unsort(torch.autograd.Function):
    """Undo `_Sort`; empty choices get rows of zeros."""

    @staticmethod
    def forward(context: Any, y_XH: Tensor, order_X: Tensor, inverse_N: Tensor) -> Tensor:
        context.save_for_backward(order_X)
        return _rows_or_zero(y_XH, inverse_N)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order_X,) = context.saved_tensors
        return grads[0][order_X], None, None


def _rows_or_zero(y_XH: Tensor, index_N: Tensor) -> Tensor:
    """Rows of `y_XH` by index; one past its end is a row of zeros."""
    if len(index_N) > len(y_XH):
        y_XH = torch.cat([y_XH, y_XH.new_zeros(1, y_XH.shape[1])])
    return y_XH[index_N]


class Router(nn.Module):
    """Scores every expert for every token and lets its policy choose.

    `bias_E` is what the policy adjusts after a step, `load_E` how many choices each expert got in
    the last pass.
    """

    bias_E: Tensor

    def __init__(
        self, hidden: int, experts: int, choices: int, *, policy: Policy | None = None, layer: int = 0
    ) -> None:
        super().__init__()
        self.policy = policy or AuxGlobal()
        self.layer, self.choices = layer, choices
        self.weight_EH = nn.Parameter(torch.empty(self.policy.outputs(experts), hidden))
        self.register_buffer("bias_E", torch.zeros(experts))
        self.load_E = torch.zeros(experts, dtype=torch.long)

    def forward(self, x_TH: Tensor, view: Pass) -> Routed:
        """Route the tokens of a pass."""
        logits_TO = functional.linear(x_TH.float(), self.weight_EH.float())
        routed = self.policy.route(logits_TO, self.bias_E, choices=self.choices, layer=self.layer, view=view)
        self.load_E = torch.bincount((routed.expert_TK + 1).flatten(), minlength=len(self.bias_E) + 1)[1:]
        return routed

    def after_step(self) -> None:
        """Adjust the bias to the loads of the last pass."""
        self.bias_E.copy_(self.policy.next_bias(self.bias_E, self.load_E))


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
    """Routed experts, weighted by their gates, plus an always-on shared expert."""

    def __init__(
        self,
        *,
        hidden: int,
        experts: int,
        choices: int,
        width: int,
        shared_width: int,
        policy: Policy | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.router = Router(hidden, experts, choices, policy=policy, layer=layer)
        self.gate_up_EHI = nn.Parameter(torch.empty(experts, hidden, 2 * width))
        self.down_EIH = nn.Parameter(torch.empty(experts, width, hidden))
        self.shared = SwiGlu(hidden, shared_width) if shared_width else None

    def forward(self, x_TH: Tensor, view: Pass) -> tuple[Tensor, Tensor | None]:
        """Return [T, H] and the policy's penalty, if it has one."""
        weight_TK, expert_TK, penalty = self.router(x_TH, view)
        rows_E = self.router.load_E.tolist()
        empty = expert_TK.numel() - sum(rows_E)
        sorted_N = expert_TK.flatten().argsort(stable=True)  # empty choices, -1, come first
        order_X = sorted_N[empty:]
        inverse_N = torch.where(expert_TK.flatten() < 0, len(order_X), sorted_N.argsort() - empty)
        x_XH = _Dispatch.apply(x_TH, order_X, inverse_N, expert_TK.shape[1])  # type: ignore[no-untyped-call]
        gate, up = _per_expert(x_XH, self.gate_up_EHI, rows_E).chunk(2, dim=-1)
        # The gate weight goes in before the last matrix: the same sum, on narrower rows.
        weight_X1 = _Sort.apply(weight_TK.flatten()[:, None], order_X, inverse_N)  # type: ignore[no-untyped-call]
        y_XH = _per_expert(functional.silu(gate) * up * weight_X1.to(up.dtype), self.down_EIH, rows_E)
        y_TKH = _Unsort.apply(y_XH, order_X, inverse_N).view(*expert_TK.shape, -1)  # type: ignore[no-untyped-call]
        y_TH: Tensor = y_TKH.sum(1)
        if self.shared is not None:
            y_TH = y_TH + self.shared(x_TH)
        return y_TH, penalty


def _per_expert(x_XI: Tensor, weight_EIO: Tensor, rows_E: list[int]) -> Tensor:
    """Multiply the rows of each expert (sorted by expert, `rows_E` of them) with its own matrix."""
    parts = zip(torch.split(x_XI, rows_E), weight_EIO.unbind(0), strict=True)
    return torch.cat([x @ weight for x, weight in parts])
