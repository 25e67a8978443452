"""What stands in a GPU's memory, by part, and whether it fits.

Axes: G rank, P slot; D EP group, L MoE layer as in the Plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import element_types
from moecast.sim.attention_shape import AttentionShape, LinearAttention
from moecast.sim.collectives.modes import mode_of
from moecast.sim.context import sizes
from moecast.sim.context.rules import cuts_prompts
from moecast.sim.dispatch_type import dispatch_type_of
from moecast.sim.parts import Part

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step
    from moecast.sim.workload import Workload
    from moecast.topology import Hardware

Int = npt.NDArray[np.int64]

MEMORY_FRACTION = 0.9
"""What engines take of a GPU's memory by default (vLLM's `gpu_memory_utilization`)."""


def memory_by_part(
    model: ModelShape,
    plan: Plan,
    workload: Workload,
    hardware: Hardware,
    *,
    steps: Sequence[Step],
    expert_rows: int | None = None,
    most_tokens: int | None = None,
) -> dict[str, int]:
    """Bytes on the rank that holds most: `weights`, `slots`, `kv`, `activations`.

    Parameters
    ----------
    steps
        The Workload's steps: their contexts fill the KV cache.
    expert_rows
        The most choices that a rank serves in one layer of one step; None: an even share.
    most_tokens
        Context parallelism: the most tokens of a step that a rank attends for; None: an even share.

    Notes
    -----
    - `weights`: attention, dense layers, shared experts, routers, norms, embedding and LM head.
      `tp` cuts attention, dense layers and (by vocabulary) embedding and LM head; each rank runs
      shared experts and routers over its own part of the tokens, and holds them whole. Of the
      pipeline's stages, the fullest counts.
    - `slots`: every slot of every MoE layer of the stage, empty ones too: engines allocate them.
    - `kv`: the running sequences' contexts; in mode ``stay`` every rank of an EP group holds those
      of all its ranks. With `cp` each rank holds the part of the contexts that it holds of the
      step's tokens.
    - `activations`: the residual stream, the widest of the layer's intermediates, logits, and the
      dispatch buffers. With `cp`, beside attention's the keys and values that came from other
      ranks: a ring's two blocks, or all of them.
    """
    stage = max(range(plan.pp), key=lambda index: _stage_weights(model, plan, index))
    ids = _hidden_layers(model, plan, stage)
    moe = [layer for layer in ids if layer in set(model.moe_layer_ids)]
    part = _part_of_context(plan, steps, most_tokens)
    return {
        "weights": _weights(model, plan, ids, stage),
        "slots": len(moe) * _slots(plan) * -(-model.expert_bytes // plan.etp),
        "kv": sum(_kv(model, plan, alike[0], steps, part) * len(alike) for alike in _alike(model, ids)),
        "activations": _activations(model, plan, workload, hardware, steps, part, expert_rows),
    }


def _alike(model: ModelShape, ids: Sequence[int]) -> list[list[int]]:
    """Put layers together whose caches are of one size."""
    found: dict[object, list[int]] = {}
    for layer in ids:
        mixer = model.mixer_of(layer)
        if isinstance(mixer, LinearAttention):
            kept: object = model.state_bytes_of(layer)
        else:
            kept = None if mixer is None else tuple(mixer.keeps_of(layer))
        found.setdefault((mixer, kept), []).append(layer)
    return list(found.values())


def _part_of_context(plan: Plan, steps: Sequence[Step], most_tokens: int | None) -> float:
    """The part of a data-parallel rank's tokens that one of the ranks that share their sequences has at the most."""
    tokens = max((int(step.tokens_G(plan.dp).max()) for step in steps), default=0)
    return 1 / plan.cp if most_tokens is None or not tokens or plan.cp == 1 else most_tokens / tokens


def usable_bytes(hardware: Hardware, fraction: float = MEMORY_FRACTION) -> int:
    """Bytes that the engine takes of a GPU's memory; the rest is kept for what is not priced."""
    return int(fraction * int(hardware.memory_bytes))


def fits(parts: dict[str, int], hardware: Hardware, *, fraction: float = MEMORY_FRACTION) -> bool:
    """Whether the parts together are within what the engine takes of the GPU's memory."""
    return sum(parts.values()) <= usable_bytes(hardware, fraction)


def _slots(plan: Plan) -> int:
    return plan.max_slots if plan.slots_per_rank is None else max(plan.slots_per_rank)


def _hidden_layers(model: ModelShape, plan: Plan, stage: int) -> list[int]:
    """List the hidden layers of a pipeline stage, those of all its chunks."""
    held_H = plan.layout.home_V[plan.layout.stage_of_layers(model.n_layers)] == stage
    return [layer for layer in range(model.n_layers) if held_H[layer]]


def _stage_weights(model: ModelShape, plan: Plan, stage: int) -> int:
    ids = _hidden_layers(model, plan, stage)
    experts = sum(layer in set(model.moe_layer_ids) for layer in ids) * _slots(plan) * model.expert_bytes
    return experts + _weights(model, plan, ids, stage)


def _weights(model: ModelShape, plan: Plan, ids: Sequence[int], stage: int) -> int:
    moe = set(model.moe_layer_ids)
    whole = sum(model.shared_parameters + model.latent_parameters for layer in ids if layer in moe)
    dense = set(model.dense_layer_ids)
    mixers = sum(map(model.mixer_parameters, ids))
    mlps = whole + sum(layer in dense for layer in ids) * model.dense_parameters / plan.tp
    weight_bytes = element_types.weight_bytes
    total = weight_bytes(model.dense_type) * mlps + weight_bytes(model.mixer_type) * mixers / plan.tp
    total += 2 * sum(2 * model.hidden + (model.router_parameters if layer in moe else 0) for layer in ids)
    first, last = (int(plan.layout.home_V[end]) for end in (0, -1))
    matrices = (stage == first) + (stage == last and not (model.tied_embedding and first == last))
    return round(total + matrices * 2 * -(-model.vocab // plan.tp) * model.hidden)


def _kv(model: ModelShape, plan: Plan, layer: int, steps: Sequence[Step], part: float) -> int:
    """One layer's cache; MLA's latent vectors are the same for all heads and not cut by `tp`.

    A layer of linear attention keeps a state for each sequence, whatever its length; `tp` cuts its
    heads.
    """
    mixer, ranks = model.mixer_of(layer), plan.dp
    if mixer is None:
        return 0
    if isinstance(mixer, LinearAttention):
        sequences = max((int(step.sequences_G(ranks).max()) for step in steps), default=0)
        return -(-sequences * model.state_bytes_of(layer) // min(plan.tp, max(mixer.heads, 1)))
    kept = [_kept_bytes_G(model, mixer, layer, step, ranks) for step in steps]
    if plan.dispatch == "stay":
        most = max((int(plan.layout.sum_by_group(held).max()) for held in kept), default=0)
    else:
        most = max((int(held.max()) for held in kept), default=0)
    share = 1 if mixer.kind == "mla" else min(plan.tp, mixer.kv_heads)
    return math.ceil(most * part / share) if plan.cp > 1 else -(-most // share)


def _kept_bytes_G(model: ModelShape, mixer: AttentionShape, layer: int, step: Step, ranks: int) -> Int:
    """Bytes of one layer's keys and values of all sequences on each rank."""
    parts = [
        step.held_G(ranks, most) // each * model.cached_bytes(width) for most, each, width in mixer.keeps_of(layer)
    ]
    total_G: Int = np.sum(parts, axis=0)
    return total_G


def _activations(
    model: ModelShape,
    plan: Plan,
    workload: Workload,
    hardware: Hardware,
    steps: Sequence[Step],
    part: float,
    expert_rows: int | None,
) -> int:
    """Residual and normalised hidden vectors, and the largest of attention, MLP, logits and MoE layer."""
    of_dp = max((int(step.tokens_G(plan.dp).max()) for step in steps), default=0)
    tokens = math.ceil(of_dp * part) if plan.cp > 1 else of_dp
    wanted = max((int(step.logits_G(plan.dp).max()) for step in steps), default=0)
    wanted = -(-wanted // plan.cp)
    shape = model.attention
    heads = -(-shape.heads // plan.tp)
    # In decode ranks that share sequences attend with the queries of all of them.
    attended = of_dp if workload.kernels is Part.DECODE else tokens
    attention: float = attended * 2 * heads * (2 * shape.head_dim + 2 * shape.value_dim)
    if cuts_prompts(plan, workload.kernels):
        attention += _travelling_bytes(model, plan, of_dp, tokens)
    own = -(-tokens // plan.tp)
    dense = own * 2 * 3 * max(model.dense_intermediate, model.shared_intermediate)
    logits = -(-wanted // plan.tp) * 2 * 4 * model.vocab
    rows = own * model.choices if expert_rows is None else expert_rows
    messages = mode_of(plan.dispatch, workload.kernels).messages
    buffers = _buffer_bytes(model, plan, hardware, own) if messages else 0
    moe = _expert_rows_bytes(model, plan, hardware, rows)
    return round(tokens * 2 * 2 * model.hidden + max(attention, dense, logits, moe) + buffers)


def _travelling_bytes(model: ModelShape, plan: Plan, of_dp: int, tokens: int) -> float:
    """Bytes of what came from the ranks that share sequences, for one layer of the model's own attention."""
    shape, tp = model.attention, plan.tp
    if plan.context_exchange == "token-ring":
        return 2 * tokens * (sizes.query_bytes(shape, tp=tp) + sizes.output_bytes(shape, tp=tp))
    there = of_dp if plan.context_exchange == "all-gather" else 2 * tokens
    return there * sizes.cached_bytes(model, shape, tp=tp)


def _expert_rows_bytes(model: ModelShape, plan: Plan, hardware: Hardware, rows: int) -> int:
    """Rows as they come, permuted, after gate and up, after the activation, and after down."""
    kind = element_types.multiply_type(model.weight_type, hardware.peak_flop_per_s)
    inner = -(-model.expert_intermediate // plan.etp)
    per_row = (
        model.copy_bytes(dispatch_type_of(plan, model, hardware))
        + element_types.row_bytes(kind, model.expert_width)
        + 2 * 2 * inner
        + element_types.row_bytes(kind, inner)
        + 2 * model.expert_width
    )
    return rows * per_row


def _buffer_bytes(model: ModelShape, plan: Plan, hardware: Hardware, tokens: int) -> int:
    """Size the low-latency kernels' buffers: room for every token of every rank at every slot, twice.

    Source: DeepEP's low-latency layout: a message per (token, expert); a send buffer that holds a
    rank's tokens for dispatch or all slots' rows for combine, a receive buffer for either; doubled
    so that two calls may overlap.
    """
    slots = plan.ep * _slots(plan)
    dispatch = model.copy_bytes(dispatch_type_of(plan, model, hardware))
    combine = model.copy_bytes(plan.combine_type or "bf16")
    send = max(tokens * dispatch, slots * tokens * combine)
    receive = slots * tokens * max(dispatch, combine)
    return 2 * (send + receive)
