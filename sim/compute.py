"""What the arithmetic of a step costs on each rank: experts, router, shared experts, dense layers, norms, LM head.

Every function is the roofline of its kernels under the hardware table and never falls when work is
added.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.attention import attention_seconds, into_seconds, projection_seconds
from moecast.sim.cost import ExpertBlock, costs_of
from moecast.sim.cost.roofline import OUTPUT_BYTES

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

__all__ = [
    "attention_seconds",
    "dense_layer_seconds",
    "embedding_seconds",
    "expert_seconds",
    "head_seconds",
    "into_seconds",
    "norm_seconds",
    "projection_seconds",
    "router_seconds",
    "selection_seconds",
    "shared_expert_seconds",
]


def expert_seconds(
    model: ModelShape,
    hardware: Hardware,
    load_GP: npt.ArrayLike,
    *,
    phase: str,
    sms: int | None = None,
    etp: int = 1,
    seen_G: npt.ArrayLike | None = None,
) -> Float:
    """One layer's routed experts on each rank: ragged gate-and-up GEMM, activation, ragged down GEMM.

    Parameters
    ----------
    load_GP
        [..., G, P] choices served in each slot.
    phase
        `prefill` or `decode`.
    sms
        SMs that communication leaves; None: all.
    etp
        Ranks that share each expert.
    seen_G
        Choices that the kernels are shown, those that other ranks serve among them; None: only
        those served here.

    Returns
    -------
    float64 [..., G], seconds.
    """
    return costs_of(hardware).expert_seconds(
        ExpertBlock.of(model, etp=etp), load_GP, phase=phase, sms=sms, seen_G=seen_G
    )


def _mlp_seconds(
    model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, inner: int, *, element_type: str
) -> Float:
    ups = model.mlp_matrices - 1
    up = costs_of(hardware).gemm_seconds(tokens_G, inner=model.hidden, outer=ups * inner, element_type=element_type)
    activation = costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=(ups + 1) * 2 * inner)
    down = costs_of(hardware).gemm_seconds(tokens_G, inner=inner, outer=model.hidden, element_type=element_type)
    return up + activation + down


def shared_expert_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Float:
    """One layer's shared experts over each rank's own tokens, and adding their output; 0 without shared experts."""
    if not model.shared_intermediate:
        return np.zeros(np.shape(tokens_G))
    inner = -(-model.shared_intermediate // tp)
    add = costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=3 * 2 * model.hidden)
    return _mlp_seconds(model, hardware, tokens_G, inner, element_type=model.dense_type) + add


def dense_layer_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Float:
    """Compute the MLP of one layer that is not MoE; its attention and norms are counted like those of all layers."""
    if not model.dense_intermediate:
        return np.zeros(np.shape(tokens_G))
    return _mlp_seconds(model, hardware, tokens_G, -(-model.dense_intermediate // tp), element_type=model.dense_type)


def router_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike) -> Float:
    """One layer's router: a bf16 GEMM to E scores, and one kernel of softmax and top-k."""
    scores = costs_of(hardware).gemm_seconds(tokens_G, inner=model.hidden, outer=model.experts, element_type="bf16")
    for inner, outer in ((model.hidden, model.expert_hidden), (model.expert_hidden, model.hidden)):
        if model.expert_hidden:  # into the width of latent experts, and back
            scores = scores + costs_of(hardware).gemm_seconds(
                tokens_G, inner=inner, outer=outer, element_type=model.dense_type
            )
    return scores + selection_seconds(hardware, tokens_G, experts=model.experts, choices=model.choices)


def selection_seconds(hardware: Hardware, tokens_G: npt.ArrayLike, *, experts: int, choices: int) -> Float:
    """Softmax and top-k over the bf16 scores of each token: K + 1 passes, charged at the memory's speed.

    The passes really run in registers and wait for each other; `benchmarks/compute.py` lays this
    beside published times.
    """
    return costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=OUTPUT_BYTES * experts * (choices + 1))


def norm_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike) -> Float:
    """One layer's two norms, each fused with the addition to the residual stream: two reads and two writes."""
    return costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=2 * 4 * 2 * model.hidden, kernels=2)


def embedding_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike) -> Float:
    """Look up the tokens: a read and a write."""
    return costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=2 * 2 * model.hidden)


def head_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Float:
    """Last norm, LM head and sampling for the tokens whose next token is wanted (prefill: the last of each sequence).

    Sampling reads and writes the float32 logits once.
    """
    vocab = -(-model.vocab // tp)
    norm = costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=4 * 2 * model.hidden)
    logits = costs_of(hardware).gemm_seconds(tokens_G, inner=model.hidden, outer=vocab, element_type="bf16")
    return norm + logits + costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=2 * 4 * vocab)
