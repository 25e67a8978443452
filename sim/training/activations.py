"""Bytes that a layer keeps of each token between its forward and its backward pass, by module.

Source: the count of arXiv 2205.05198, section 4, in which a GPT layer with dropout and without
FlashAttention keeps 34 h + 5 a s bytes a token (h hidden width, a heads, s sequence), with the
tensors of today's layers in their places: FlashAttention keeps its output and one float32 a head
for the scores (arXiv 2307.08691), grouped queries fewer keys and values, MLA its latent vectors
too, and experts the rows that they really serve. Inputs of GEMMs whose weight gradient multiplies
FP8 are kept in FP8.

Axes: none; all are bytes per token of the sequence, before tensor parallelism divides them.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.sim.attention_shape import AttentionShape, Mixer
from moecast.sim.model import ModelShape
from moecast.sim.training.precision import Precision

PASSED_BYTES = 2  # what layers, norms and attention pass on is bf16
SCORE_BYTES = 4  # the router's probabilities are float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How a recipe's layers keep activations.

    Parameters
    ----------
    flash
        Whether attention keeps no scores.
    dropout
        Whether layers drop out elements, and keep a byte for each that says which.
    """

    flash: bool = True
    dropout: bool = False

    def layer(
        self,
        model: ModelShape,
        precision: Precision,
        layer_id: int,
        *,
        sequence: int,
        rows_per_token: float | None = None,
        etp: int = 1,
    ) -> dict[str, float]:
        """Bytes per token of a hidden layer, by module.

        Names as `moecast.sim.training.recompute` knows them.

        Parameters
        ----------
        rows_per_token
            Rows that the rank's experts serve at the layer for each token of its own; None: an even
            share, K.
        """
        mixer = model.mixer_of(layer_id)
        parts: dict[str, float] = {"input": PASSED_BYTES * model.hidden, "layernorm": 0.0}
        if mixer is not None:
            parts["layernorm"] += precision.kept_bytes(model.hidden)
            parts |= self._mixer(precision, mixer, sequence)
            parts["residual"] = PASSED_BYTES * model.hidden + self.dropout * model.hidden
        if layer_id in set(model.moe_layer_ids):
            parts["layernorm"] += precision.kept_bytes(model.hidden)
            parts |= self._moe(model, precision, model.choices if rows_per_token is None else rows_per_token, etp)
        elif layer_id not in set(model.no_mlp_layers):
            parts["layernorm"] += precision.kept_bytes(model.hidden)
            parts |= _mlp(model, precision, model.dense_intermediate, "mlp", "mlp_act")
            parts["dropout"] = self.dropout * model.hidden
        return parts

    def _mixer(self, precision: Precision, mixer: Mixer, sequence: int) -> dict[str, float]:
        if not isinstance(mixer, AttentionShape):
            inside = sum(outer for _, outer in mixer.projections[:-1])
            return {"linear": PASSED_BYTES * (inside + mixer.projections[-1][0])}
        output = mixer.heads * mixer.value_dim
        if self.flash:
            core = SCORE_BYTES * mixer.heads
        else:
            core = mixer.heads * sequence * (PASSED_BYTES + self.dropout * (1 + PASSED_BYTES))
        queries = mixer.heads * mixer.head_dim
        if mixer.kind != "mla":
            keys = mixer.kv_heads * (mixer.head_dim + mixer.value_dim)
            return {
                "qkv": PASSED_BYTES * (queries + keys),
                "core_attn": core,
                "attention_output": PASSED_BYTES * output,
            }
        # each latent vector as it comes from the way down, and normed, as the input of the way up
        latent = PASSED_BYTES * (mixer.q_rank + mixer.kv_rank) + precision.kept_bytes(mixer.q_rank + mixer.kv_rank)
        return {
            "latent": latent + PASSED_BYTES * mixer.rope_dim,
            "mla_up_proj": PASSED_BYTES * (2 * queries + output),
            "core_attn": core,
            "attention_output": PASSED_BYTES * output,
        }

    def _moe(self, model: ModelShape, precision: Precision, rows: float, etp: int) -> dict[str, float]:
        inner, ups = -(-model.expert_intermediate // etp), model.mlp_matrices - 1
        routed = rows * (precision.kept_bytes(model.expert_width) + PASSED_BYTES * ups * inner)
        parts = {
            "router": SCORE_BYTES * model.experts,
            "moe": routed,
            "moe_act": rows * precision.kept_bytes(inner),
        }
        if model.shared_intermediate:
            shared = _mlp(model, precision, model.shared_intermediate, "up", "act")
            parts["shared_experts"] = shared["up"] + shared["act"]
        return {name: float(size) for name, size in parts.items()}


def _mlp(model: ModelShape, precision: Precision, width: int, whole: str, act: str) -> dict[str, float]:
    """What comes out of up and gate, and what goes into down."""
    ups = model.mlp_matrices - 1
    return {whole: float(PASSED_BYTES * ups * width), act: float(precision.kept_bytes(width))}
