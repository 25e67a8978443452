"""What each module of a layer costs in training: its forward pass, its input gradients and its weight gradients.

The forward passes are those of `moecast.sim.compute` and `moecast.sim.attention` (prefill), with
the recipe's element types; the backward passes are made of the same kernels in the shapes that
gradients have. Attention's core recomputes its scores: five products where the forward pass has two
(FlashAttention-2, arXiv 2307.08691), so 2.5 times its arithmetic where keys and values are equally
wide.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import attention, compute
from moecast.sim.attention_shape import AttentionShape, LinearAttention, Mixer
from moecast.sim.cost import ExpertBlock, costs_of, expert_roofline, roofline
from moecast.sim.training.passes import (
    Float,
    Passes,
    cast_seconds,
    elementwise_passes,
    gemm_passes,
    grouped_weight_gradient_seconds,
    nothing,
)
from moecast.sim.training.precision import BF16, Precision

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

BACKWARD_RATE = 0.82
"""FLOP/s of attention's backward pass over those of its forward pass.

H100, heads of 128, causal, 4,096 keys: 499 ÷ 609 TFLOP/s with cuDNN and 542 ÷ 638 with
FlashAttention-3 (arXiv 2407.08608, figures 5 and 6).
"""

# a chunked recurrence's backward pass over its forward pass: inside a chunk it is like attention
LINEAR_BACKWARD = 2.5


def norm_passes(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike) -> Passes:
    """One layer's two norms with the residual additions; backward moves as much: two reads and two writes each."""
    seconds_G = compute.norm_seconds(model, hardware, tokens_G)
    return Passes(forward_G=seconds_G, input_G=seconds_G, weight_G=np.zeros(np.shape(tokens_G)))


def attention_passes(
    model: ModelShape,
    hardware: Hardware,
    tokens_G: npt.ArrayLike,
    keys_G: npt.ArrayLike,
    *,
    precision: Precision,
    mixer: Mixer | None = None,
    scored_G: npt.ArrayLike | None = None,
    tp: int = 1,
) -> Passes:
    """Projections and core of one layer's attention, or its linear attention.

    Parameters
    ----------
    tokens_G, keys_G
        Tokens that each rank attends for; keys that they read in all, a token's own included.
    scored_G
        Keys that an indexer scores; None: as many.
    mixer
        What the layer has; None: the model's own attention.
    tp
        Ranks that share the heads.
    """
    shape = model.attention if mixer is None else mixer
    if isinstance(shape, LinearAttention):
        return linear_passes(model, hardware, tokens_G, shape=shape, precision=precision, tp=tp)
    total = projection_passes(model, hardware, tokens_G, shape=shape, precision=precision, tp=tp)
    total = total + core_passes(model, hardware, tokens_G, keys_G, shape=shape, tp=tp)
    if shape.index_heads:
        scored = np.asarray(keys_G if scored_G is None else scored_G, np.float64) / max(shape.compress, 1)
        seconds_G = attention.index_seconds(model, hardware, shape, phase="prefill", tokens_G=tokens_G, keys_G=scored)
        total = total + Passes(forward_G=seconds_G, input_G=seconds_G, weight_G=seconds_G)
    return total


def projection_passes(
    model: ModelShape,
    hardware: Hardware,
    tokens_G: npt.ArrayLike,
    *,
    precision: Precision,
    shape: AttentionShape | None = None,
    tp: int = 1,
) -> Passes:
    """Queries, keys, values and output of one layer, and the rotation of queries and keys, which is its own inverse."""
    shape = model.attention if shape is None else shape
    moved = attention.rotation_bytes(model, shape, tp=tp)
    total = elementwise_passes(hardware, tokens_G, forward_bytes=moved, backward_bytes=moved)
    for inner, outer in attention.projection_matrices(model, shape, tp=tp):
        total = total + gemm_passes(hardware, tokens_G, inner=inner, outer=outer, precision=precision)
    return total


def up_projection_passes(
    model: ModelShape,
    hardware: Hardware,
    tokens_G: npt.ArrayLike,
    *,
    precision: Precision,
    shape: AttentionShape,
    tp: int = 1,
) -> Passes:
    """The part of MLA's projections that makes heads of latent vectors; nothing of other attention."""
    total = nothing(tokens_G)
    if shape.kind == "mla":
        for inner, outer in attention.projection_matrices(model, shape, tp=tp):
            if inner in (shape.q_rank, shape.kv_rank):
                total = total + gemm_passes(hardware, tokens_G, inner=inner, outer=outer, precision=precision)
    return total


def core_passes(
    model: ModelShape,
    hardware: Hardware,
    tokens_G: npt.ArrayLike,
    keys_G: npt.ArrayLike,
    *,
    shape: AttentionShape | None = None,
    tp: int = 1,
) -> Passes:
    """Scores, softmax and weighted sum of one layer in bf16.

    Without weights, so all of the backward pass is input.

    Backward multiplies three times over the keys' width (scores again, gradients of queries and of
    keys) and twice over the values' (gradients of the probabilities and of the values), at
    `BACKWARD_RATE` of the forward pass's speed.
    """
    shape = model.attention if shape is None else shape
    forward_G = attention.core_seconds(
        model, hardware, phase="prefill", tokens_G=tokens_G, keys_G=keys_G, shape=shape, tp=tp
    )
    products = (3 * shape.head_dim + 2 * shape.value_dim) / (shape.head_dim + shape.value_dim)
    return Passes(
        forward_G=forward_G,
        input_G=forward_G * (products / BACKWARD_RATE),
        weight_G=np.zeros(np.shape(forward_G)),
    )


def linear_passes(
    model: ModelShape,
    hardware: Hardware,
    tokens_G: npt.ArrayLike,
    *,
    shape: LinearAttention,
    precision: Precision,
    tp: int = 1,
) -> Passes:
    """Linear attention of one layer: its projections as GEMMs, the rest of it as a multiple of its forward pass."""
    typed = precision.of(model)
    forward_G = attention.linear_seconds(typed, hardware, shape, phase="prefill", tokens_G=tokens_G, tp=tp)
    *into, (last_inner, last_outer) = shape.projections
    cut = [*((inner, -(-outer // tp)) for inner, outer in into), (-(-last_inner // tp), last_outer)]
    total, gemms_G = nothing(tokens_G), np.zeros(np.shape(tokens_G))
    for inner, outer in cut:
        total = total + gemm_passes(hardware, tokens_G, inner=inner, outer=outer, precision=precision)
        gemms_G = gemms_G + costs_of(hardware).gemm_seconds(
            tokens_G, inner=inner, outer=outer, element_type=precision.forward
        )
    rest_G = np.maximum(forward_G - gemms_G, 0.0)
    return total + Passes(forward_G=rest_G, input_G=LINEAR_BACKWARD * rest_G, weight_G=np.zeros(np.shape(tokens_G)))


def mlp_passes(
    model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, width: int, precision: Precision
) -> Passes:
    """An MLP of some inner width that all of a rank's tokens pass: up (and gate), activation, down."""
    ups = model.mlp_matrices - 1
    up = gemm_passes(hardware, tokens_G, inner=model.hidden, outer=ups * width, precision=precision)
    down = gemm_passes(hardware, tokens_G, inner=width, outer=model.hidden, precision=precision)
    return up + activation_passes(model, hardware, tokens_G, width=width) + down


def activation_passes(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, width: int) -> Passes:
    """The activation between up and down; backward reads what forward read and a gradient, and writes gradients."""
    ups = model.mlp_matrices - 1
    return elementwise_passes(
        hardware, tokens_G, forward_bytes=2 * (ups + 1) * width, backward_bytes=2 * (2 * ups + 1) * width
    )


def dense_layer_passes(
    model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, precision: Precision, tp: int = 1
) -> Passes:
    """Run the MLP of one layer that is not MoE; ranks that share tokens split its width."""
    if not model.dense_intermediate:
        return nothing(tokens_G)
    return mlp_passes(model, hardware, tokens_G, width=-(-model.dense_intermediate // tp), precision=precision)


def shared_expert_passes(
    model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, precision: Precision, tp: int = 1
) -> Passes:
    """One layer's shared experts, and adding their output; the gradient of a sum costs nothing."""
    if not model.shared_intermediate:
        return nothing(tokens_G)
    add = elementwise_passes(hardware, tokens_G, forward_bytes=3 * 2 * model.hidden, backward_bytes=0.0, kernels=1)
    width = -(-model.shared_intermediate // tp)
    return mlp_passes(model, hardware, tokens_G, width=width, precision=precision) + add


def router_passes(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, precision: Precision) -> Passes:
    """One layer's router in bf16: scores and their selection, whose backward pass moves the scores once each way."""
    forward_G = compute.selection_seconds(hardware, tokens_G, experts=model.experts, choices=model.choices)
    backward_G = costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=2 * roofline.OUTPUT_BYTES * model.experts)
    choose = Passes(forward_G=forward_G, input_G=backward_G, weight_G=np.zeros(np.shape(tokens_G)))
    total = gemm_passes(hardware, tokens_G, inner=model.hidden, outer=model.experts, precision=BF16) + choose
    for inner, outer in ((model.hidden, model.expert_hidden), (model.expert_hidden, model.hidden)):
        if model.expert_hidden:  # into the width of latent experts, and back
            total = total + gemm_passes(hardware, tokens_G, inner=inner, outer=outer, precision=precision)
    return total


def expert_passes(
    model: ModelShape,
    hardware: Hardware,
    load_GP: npt.ArrayLike,
    *,
    precision: Precision,
    sms: int | None = None,
    etp: int = 1,
) -> Passes:
    """One layer's routed experts on each rank, with the permutations around them.

    The gradient of a permutation is the sum of the other direction and the other way round; rows
    come back in bf16.

    Parameters
    ----------
    load_GP
        [..., G, P] choices served in each slot.
    sms
        SMs that communication leaves; None: all.
    etp
        Ranks that share each expert.
    """
    load = np.asarray(load_GP)
    block = ExpertBlock.of(model, etp=etp)
    rows_G = (-(-load // hardware.gemm_tile_rows)).sum(-1) * hardware.gemm_tile_rows
    weight_G = 2 * hardware.kernel_launch_s + sum(
        grouped_weight_gradient_seconds(hardware, load, inner=into, outer=out, precision=precision, sms=sms)
        for into, out in block.matrices
    )
    return Passes(
        forward_G=compute.expert_seconds(precision.of(model), hardware, load, phase="prefill", sms=sms, etp=etp),
        input_G=_expert_input_gradients(model, hardware, load, rows_G, block, precision=precision, sms=sms),
        weight_G=np.asarray(weight_G, np.float64),
    )


def _expert_input_gradients(
    model: ModelShape,
    hardware: Hardware,
    load: npt.NDArray[np.int64],
    rows_G: npt.NDArray[np.int64],
    block: ExpertBlock,
    *,
    precision: Precision,
    sms: int | None,
) -> Float:
    typed = replace(block, weight_type=precision.input_gradient)
    total: Float = expert_roofline.permute_seconds(replace(block, weight_type="bf16"), hardware, rows_G)
    total = total + expert_roofline.unpermute_seconds(block, hardware, rows_G)
    for inner, outer in block.matrices:
        total = total + hardware.kernel_launch_s
        total = total + expert_roofline.grouped_gemm_seconds(
            typed, hardware, load, phase="prefill", inner=outer, outer=inner, sms=sms
        )
        total = total + cast_seconds(hardware, rows_G, width=outer, element_type=precision.input_gradient)
    return total + activation_passes(model, hardware, rows_G, width=block.inner).input_G


def embedding_passes(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, precision: Precision) -> Passes:
    """Look the tokens up; backward reads a gradient and adds it to its row of the sum."""
    moved = (2 + 2 * precision.gradient_bytes) * model.hidden
    return Passes(
        forward_G=compute.embedding_seconds(model, hardware, tokens_G),
        input_G=np.zeros(np.shape(tokens_G)),
        weight_G=costs_of(hardware).elementwise_seconds(tokens_G, row_bytes=moved),
    )


def head_passes(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Passes:
    """Last norm, LM head over every token, and cross entropy, in bf16.

    Ranks that share tokens split the vocabulary.

    Cross entropy reads bf16 logits and writes float32 probabilities, and backward reads these and
    writes bf16.
    """
    vocab = -(-model.vocab // tp)
    norm = elementwise_passes(
        hardware, tokens_G, forward_bytes=4 * 2 * model.hidden, backward_bytes=4 * 2 * model.hidden
    )
    logits = gemm_passes(hardware, tokens_G, inner=model.hidden, outer=vocab, precision=BF16)
    return norm + logits + elementwise_passes(hardware, tokens_G, forward_bytes=6 * vocab, backward_bytes=6 * vocab)
