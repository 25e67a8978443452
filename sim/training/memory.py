"""What stands in a GPU's memory in training, by part.

Sources: arXiv 2205.05198 for activations (`moecast.sim.training.activations`), arXiv 1910.02054 for
what ZeRO divides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecast.sim.training.activations import PASSED_BYTES, Kept
from moecast.sim.training.gradients import check_zero
from moecast.sim.training.optimizer import ADAM, Optimizer
from moecast.sim.training.precision import Precision
from moecast.sim.training.recompute import NONE, Recompute
from moecast.sim.training.shard import Held, Shard

LOGIT_BYTES = 6  # bf16 logits, and the float32 probabilities that cross entropy keeps
GATHERED_LAYERS = 2  # ZeRO 3 gathers the next layer while one computes


def training_memory(
    shard: Shard,
    precision: Precision,
    *,
    tokens: int,
    sequence: int,
    in_flight: float = 1.0,
    rows_L: Sequence[float] | None = None,
    optimizer: Optimizer = ADAM,
    recompute: Recompute = NONE,
    kept: Kept | None = None,
    zero: int = 1,
    pipeline: bool = False,
    travelling_bytes: float = 0.0,
) -> dict[str, int]:
    """Bytes of a rank by part: `parameters`, `gradients`, `optimizer`, `activations`, `logits`, `buffers`.

    Parameters
    ----------
    tokens, sequence
        Tokens of a microbatch that the rank's tensor parallel group shares, of whole sequences or
        its part of them; the length of these.
    in_flight
        Microbatches whose activations stand at the peak, of all the rank's layers; the schedule
        knows it.
    rows_L
        Rows that the rank's experts serve of a microbatch at each MoE layer of the shard; None: an
        even share.
    kept
        How layers keep activations; None: with FlashAttention and without dropout.
    pipeline
        Whether microbatches come from one pipeline stage and go to another, through a buffer each.
    travelling_bytes
        Keys and values of one layer that come from ranks that share sequences, with gradients.

    Raises
    ------
    ValueError
        A level of ZeRO that there is not, or a number out of range.
    """
    if tokens < 1 or in_flight < 0:
        raise ValueError(f"tokens = {tokens}, in_flight = {in_flight}: at least 1 token and 0 microbatches")
    passing = passing_bytes(
        shard,
        precision,
        tokens=tokens,
        sequence=sequence,
        rows_L=rows_L,
        recompute=recompute,
        kept=kept,
        pipeline=pipeline,
        travelling_bytes=travelling_bytes,
    )
    return held_bytes(shard, precision, optimizer=optimizer, zero=zero) | passing.by_part(in_flight)


def held_bytes(shard: Shard, precision: Precision, *, optimizer: Optimizer = ADAM, zero: int = 1) -> dict[str, int]:
    """Bytes of a rank that stand all step long: `parameters`, `gradients`, `optimizer`.

    Raises
    ------
    ValueError
        A level of ZeRO that there is not.
    """
    found = {
        "parameters": _parameter_bytes(shard, precision, zero),
        "gradients": _gradient_bytes(shard, precision, zero),
        "optimizer": optimizer.state_bytes(shard, precision, zero=zero),
    }
    return {name: round(size) for name, size in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """Bytes of a rank that come and go with microbatches.

    Parameters
    ----------
    kept
        Activations of one microbatch that stand until its backward pass.
    again
        Of the layer that is computed again: the most that its activations take beside those.
    logits, buffers
        Of the LM head; of what comes and goes.
    """

    kept: float
    again: float
    logits: float
    buffers: float

    def by_part(self, in_flight: float) -> dict[str, int]:
        """`activations`, `logits` and `buffers` with so many microbatches at the peak."""
        found = {"activations": in_flight * self.kept + self.again, "logits": self.logits, "buffers": self.buffers}
        return {name: round(size) for name, size in found.items()}


def passing_bytes(
    shard: Shard,
    precision: Precision,
    *,
    tokens: int,
    sequence: int,
    rows_L: Sequence[float] | None = None,
    recompute: Recompute = NONE,
    kept: Kept | None = None,
    pipeline: bool = False,
    travelling_bytes: float = 0.0,
) -> Passing:
    """Bytes of a microbatch on a rank; parameters as of `training_memory`.

    Raises
    ------
    ValueError
        Not one number of rows for each MoE layer.
    """
    rows_L = check_rows(shard, rows_L, tokens)
    own, model = tokens / shard.tp, shard.model
    parts = [_per_layer(shard, precision, kept or Kept(), layer, sequence, tokens, rows_L) for layer in shard.layers]
    each = [recompute.kept(part) for part in parts]
    again = max((sum(part.values()) - size for part, size in zip(parts, each, strict=True)), default=0.0)
    sent = max(rows_L, default=0.0) * model.expert_width + (2 * own * model.hidden if pipeline else 0.0)
    return Passing(
        kept=sum(each),
        again=again,
        buffers=travelling_bytes + 2 * PASSED_BYTES * sent,
        logits=tokens * LOGIT_BYTES * model.vocab / shard.tp if shard.last else 0.0,
    )


def check_rows(shard: Shard, rows_L: Sequence[float] | None, tokens: int) -> Sequence[float]:
    """Rows of each MoE layer of a shard: those given, or an even share.

    Raises
    ------
    ValueError
        Not one number of at least 0 for each MoE layer.
    """
    layers = len(shard.moe_layers)
    if rows_L is None:
        return [tokens / shard.tp * shard.model.choices] * layers
    if len(rows_L) != layers or min(rows_L, default=0.0) < 0:
        raise ValueError(f"rows_L = {len(rows_L)} numbers: one of at least 0 for each of the {layers} MoE layers")
    return rows_L


def _per_layer(
    shard: Shard,
    precision: Precision,
    kept: Kept,
    layer: int,
    sequence: int,
    tokens: int,
    rows_L: Sequence[float],
) -> dict[str, float]:
    """Bytes of one layer by module on a rank; tensor and sequence parallelism cut all of it alike."""
    own = tokens / shard.tp
    moe = shard.moe_layers
    rows = rows_L[moe.index(layer)] / own if layer in moe else None
    sizes = kept.layer(shard.model, precision, layer, sequence=sequence, rows_per_token=rows, etp=shard.etp)
    return {name: size * own for name, size in sizes.items()}


def _bytes(held: Held, precision: Precision, dense_ranks: int, expert_ranks: int, n_layers: int) -> float:
    """Bytes of the weights that GEMMs read; embedding and LM head stay bf16."""
    inside = 0 <= held.layer < n_layers
    each = precision.weight_bytes if inside else float(PASSED_BYTES)
    return each * (held.dense / dense_ranks + held.experts / expert_ranks)


def _parameter_bytes(shard: Shard, precision: Precision, zero: int) -> float:
    layers = shard.model.n_layers
    whole = [_bytes(held, precision, 1, 1, layers) for held in shard.held()]
    if check_zero(zero) < 3:
        return sum(whole)
    parts = [_bytes(held, precision, shard.dense_ranks, shard.expert_ranks, layers) for held in shard.held()]
    return min(sum(whole), sum(parts) + GATHERED_LAYERS * max(whole, default=0.0))


def _gradient_bytes(shard: Shard, precision: Precision, zero: int) -> float:
    dense, experts = (shard.dense_ranks, shard.expert_ranks) if zero >= 2 else (1, 1)
    return precision.gradient_bytes * sum(held.dense / dense + held.experts / experts for held in shard.held())
