"""Model FLOP of a training step, as Megatron-LM counts them, so that TFLOP/s per GPU can be laid beside published ones.

The convention (`num_floating_point_operations` in Megatron-LM's `training.py`): 2 FLOP for each
weight of a GEMM that a token meets, K routed experts and the shared ones of an MoE layer among
them, and half of the sequence's keys for each token, since the other half is masked; three times
that for forward, input and weight gradient. Recomputation, routers, norms, embedding and softmax
are not counted; nor are windows: every layer reads half of the sequence.
"""

from __future__ import annotations

from moecast.sim.attention_shape import AttentionShape, LinearAttention
from moecast.sim.model import ModelShape

PASSES = 3
MULTIPLY_ADD = 2


def model_flop_per_token(model: ModelShape, *, sequence: int) -> float:
    """FLOP of one token's forward and backward pass in sequences of so many tokens.

    Raises
    ------
    ValueError
        A sequence without tokens.
    """
    if sequence < 1:
        raise ValueError(f"sequence = {sequence}: must be at least 1")
    moe = set(model.moe_layer_ids)
    multiplied = float(model.vocab * model.hidden)
    for layer in range(model.n_layers):
        multiplied += _mixer(model, layer, sequence)
        if layer in moe:
            routed = model.choices * model.expert_parameters
            multiplied += routed + model.shared_parameters + model.latent_parameters
        elif layer not in set(model.no_mlp_layers):
            multiplied += model.dense_parameters
    return PASSES * MULTIPLY_ADD * multiplied


def model_tflops_per_gpu(model: ModelShape, *, sequence: int, tokens_per_s_per_gpu: float) -> float:
    """TFLOP/s of a GPU that trains so many tokens a second."""
    return model_flop_per_token(model, sequence=sequence) * tokens_per_s_per_gpu / 1e12


def _mixer(model: ModelShape, layer: int, sequence: int) -> float:
    mixer = model.mixer_of(layer)
    if mixer is None:
        return 0.0
    weights = float(model.mixer_parameters(layer))
    if isinstance(mixer, AttentionShape):
        return weights + mixer.heads * (mixer.head_dim + mixer.value_dim) * sequence / 2
    return weights + _state(mixer)


def _state(mixer: LinearAttention) -> float:
    """Multiply-adds of a recurrence: four of each element of the state (Megatron's count of gated delta networks)."""
    return 4.0 * mixer.heads * mixer.key_dim * mixer.value_dim
