"""The MoE layer on a GPU: fused Triton kernels and the plain PyTorch they agree with. Needs torch."""

from moecast.kernels.moe_layer import moe_layer
from moecast.kernels.reference import NO_CHOICE, moe_layer_reference
from moecast.kernels.router import sigmoid_top_k, softmax_top_k
from moecast.kernels.weights import ExpertWeights

__all__ = ["NO_CHOICE", "ExpertWeights", "moe_layer", "moe_layer_reference", "sigmoid_top_k", "softmax_top_k"]
