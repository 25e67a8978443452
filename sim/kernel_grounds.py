"""On what each part of a forecast stands where a user's own tables price kernels: these, or fitted parameters."""

from __future__ import annotations

from collections.abc import Iterator

from moecast.sim.attention import projection_matrices
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.cost import AttentionCore, ExpertBlock, TableCosts, costs_of
from moecast.sim.model import ModelShape
from moecast.sim.parts import PARTS_OF, Part
from moecast.sim.plan import Plan
from moecast.topology import Hardware

NEVER = ("norms and activations", "linear attention's states", "collectives, dispatch and combine")
"""What no table of a user's prices."""

_READS = {Part.PREFILL: "prompts", Part.DECODE: "caches"}


def kernel_grounds(
    hardware: Hardware, model: ModelShape, plan: Plan, *, phase: str, summed: bool = False
) -> tuple[str, ...]:
    """Say which parts a user's tables price, which in part, and which are by fitted parameters.

    Nothing without tables.

    Parameters
    ----------
    phase
        `prefill`, `decode`, `mixed` or `train`, whose forward passes are prompts.
    summed
        Nothing is dispatched, as of `PlacedModel.experts_are_summed`: shared experts are cut by
        width, too.
    """
    costs = costs_of(hardware)
    if not isinstance(costs, TableCosts):
        return ()
    of_step = PARTS_OF.get(phase, (Part.PREFILL,))
    covered = {part: tuple(each) for part, each in _parts(costs, model, plan, of_step, summed=summed)}
    found = {part: each for part, each in covered.items() if each}
    of_tables = [part for part, each in found.items() if all(each)]
    in_part = [f"{part} ({sum(each)} of {len(each)})" for part, each in found.items() if any(each) and not all(each)]
    fitted = [part for part, each in found.items() if not any(each)]
    whose = f"tables of {costs.tables.gpu} and {costs.tables.engine} in {costs.tables.directory}"
    beside = f"; in part: {', '.join(in_part)}" if in_part else ""
    return (
        f"kernels by {whose}: {', '.join(of_tables) or 'none'}{beside}",
        f"kernels by fitted parameters: {', '.join([*fitted, *NEVER])}",
    )


def _parts(
    costs: TableCosts, model: ModelShape, plan: Plan, of_step: tuple[Part, ...], *, summed: bool
) -> Iterator[tuple[str, Iterator[bool]]]:
    """Each part, and whether the tables cover each of its kernels."""
    tp, hidden, mixer, dense = plan.tp, model.hidden, model.mixer_type, model.dense_type
    shapes = [shape for shape in (model.attention, *model.more_attention) if isinstance(shape, AttentionShape)]
    into = [pair for shape in shapes for pair in projection_matrices(model, shape, tp=tp)]
    yield "attention's products", (costs.covers_gemm(inner=i, outer=o, element_type=mixer) for i, o in into)
    cores = [AttentionCore.of(model, shape, tp=tp) for shape in shapes]
    for part in of_step:
        yield f"attention over {_READS[part]}", (costs.covers_core(core, part) for core in cores)
    yield "router", (costs.covers_gemm(inner=hidden, outer=model.experts, element_type="bf16") for _ in (0,))
    yield "routed experts", (costs.covers_experts(ExpertBlock.of(model, etp=plan.etp), plan.max_slots) for _ in (0,))
    ups, of_shared = model.mlp_matrices - 1, -(-model.shared_intermediate // (tp if summed else 1))
    of_dense = -(-model.dense_intermediate // tp) if model.dense_layer_ids else 0
    for name, inner in (("shared experts", of_shared), ("dense layers", of_dense)):
        pairs = [(hidden, ups * inner), (inner, hidden)] if inner else []
        yield name, (costs.covers_gemm(inner=i, outer=o, element_type=dense) for i, o in pairs)
    head = -(-model.vocab // tp)
    yield "LM head", (costs.covers_gemm(inner=hidden, outer=head, element_type="bf16") for _ in (0,))
