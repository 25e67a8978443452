"""What a Prediction says about its question: descriptions, labels and warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from moecast.sim.collectives import Mode
from moecast.sim.cost.gemm import find_parameters
from moecast.sim.cost.gpus import GPUS, gpu_key
from moecast.sim.engines import find_engine
from moecast.sim.model import ModelShape
from moecast.sim.network import Rung
from moecast.sim.plan import Plan
from moecast.sim.schedules import beside_in
from moecast.sim.workload import Workload
from moecast.topology import Hardware
from moecast.traces import RoutingTrace

LEAST_MOVED = 0.01
"""The part of made routing's load that is said to go elsewhere."""


def describe_plan(plan: Plan, mode: Mode, *, dispatch_type: str, summed: bool = False) -> dict[str, Any]:
    """Give the layout and the rules of a plan, defaults filled in, without its slots.

    `summed`: nothing is dispatched, as of `PlacedModel.experts_are_summed`.
    """
    return {
        "solver": plan.made_by.solver,
        "ranks": plan.ranks,
        "groups": plan.groups,
        "ep": plan.ep,
        "etp": plan.etp,
        "tp": plan.tp,
        "cp": plan.cp,
        "dp": plan.dp,
        "pp": plan.pp,
        "virtual": plan.virtual,
        "sequence_parallel": plan.sequence_parallel,
        "context_exchange": plan.context_exchange,
        "context_split": plan.context_split,
        "slots_per_rank": plan.max_slots,
        "redundant_slots": redundant_slots(plan),
        "wasted_slots": plan.wasted_slots(),
        "replica_rule": plan.replica_rule,
        "dispatch": "none" if summed else mode.name,
        "dispatch_type": dispatch_type,
        "combine_type": plan.combine_type or "bf16",
        "schedule": plan.schedule,
        "microbatches": plan.microbatches,
        "made_by": dataclasses.asdict(plan.made_by),
    }


def redundant_slots(plan: Plan) -> int:
    """Count the filled slots beyond one per expert, layer and EP group."""
    return int((plan.slots_DLGP >= 0).sum()) - plan.groups * plan.layers * plan.experts


def describe_workload(workload: Workload) -> dict[str, Any]:
    """Give a workload's fields as plain values."""
    values = dataclasses.asdict(workload)
    topics = workload.topics
    values["topics"] = dict(topics) if isinstance(topics, Mapping) else None if topics is None else list(topics)
    return values


def element_types(model: ModelShape) -> str:
    """Name the element types that weights and KV cache have: a checkpoint's own or others, under the same name."""
    return (
        f"experts {model.weight_type}, attention {model.attention_type}, dense {model.dense_type}, KV {model.kv_type}"
    )


def describe_trace(trace: RoutingTrace) -> dict[str, Any]:
    """Say what was recorded, and how much of it there is."""
    return {
        "model": trace.meta.model,
        "tokens": trace.n_tokens,
        "hash": trace.content_hash(),
        "topics": list(trace.topics),
        "notes": trace.meta.notes,
    }


def labels(model: ModelShape, trace: RoutingTrace, workload: Workload) -> tuple[str, ...]:
    """List what every output must say with the numbers, whose routing it is first."""
    found = []
    if not model.is_whole:
        theirs = "×".join(map(str, model.named_shape or ()))
        ours = "×".join(map(str, model.shape_LEK))
        found.append(f"{model.name}: routing of {ours} (MoE layers × experts × choices), the model has {theirs}")
    made = trace.meta.source.get("made")
    if isinstance(made, Mapping):
        shape = "×".join(map(str, model.shape_LEK))
        found.append(f"{made.get('routing')}, {shape}: made, not recorded; layers and tokens independent")
    elif trace.meta.source.get("synthesis") is not None:
        found.append(f"{trace.meta.model}: made, not recorded")
    return (*found, *((workload.label,) if workload.label else ()))


def transferred(hardware: Hardware) -> tuple[str, ...]:
    """Say where a GPU's kernels are priced by what another one reaches."""
    if hardware.kernels == "fitted":
        engine = find_engine(hardware.engine).kernels
        owner = find_parameters(hardware, engine=engine, element_type="bf16").gpu
        if owner == gpu_key(hardware) and GPUS[owner].name == hardware.name:
            return ()
        return (
            f"{hardware.name}: no kernels of it were measured; a {GPUS[owner].name}'s stand for them, at its peaks",
        )
    moved = [name for name, source in hardware.sources.items() if source.startswith("estimate: as on Hopper")]
    kernels = [name.removeprefix("efficiency.") for name in moved if name.startswith("efficiency.")]
    if not kernels:
        return ()
    return (f"{hardware.name}: the part of its peaks that kernels reach ({', '.join(kernels)}) is a Hopper GPU's",)


def loose_bound(plan: Plan, rung: Rung, kernels: str) -> tuple[str, ...]:
    """Say that `bound` flatters schedules that overlap: it is sharpest where every rank does every task in order."""
    beside = beside_in(plan, kernels)
    if not rung.is_lower_bound or beside is None:
        return ()
    beside = beside.removeprefix("schedule ")
    told = (
        f"{rung.name} knows less of {beside} than of the sequential order, so that it may gain "
        "where it does not: compare schedules by --network fluid"
    )
    return (told,)


def empty_layers(empty: int, layers: int) -> tuple[str, ...]:
    """Say that some MoE layers have no choices, which makes a step look cheaper than it is."""
    if not empty:
        return ()
    told = (
        f"at {empty} of {layers} MoE layers the trace has no choice at all: their exchange and "
        "experts are timed as nothing, so a step looks cheaper than it is; means by layer leave "
        "them out"
    )
    return (told,)


def _of_the_rate(workload: Workload) -> list[str]:
    """Say what tokens/s and latency count."""
    found = []
    if workload.speculate:
        found.append("what drafting itself costs is not counted: tokens/s and latency are without it")
    if workload.prefill_tokens_per_rank:
        found.append(
            f"tokens/s counts prompts, too: {workload.prefill_tokens_per_rank} of their tokens a "
            f"step and rank, beside {workload.tokens_per_rank} sequences that decode"
        )
    return found


def warnings(
    plan: Plan,
    model: ModelShape,
    trace: RoutingTrace,
    workload: Workload,
    *,
    memory: Mapping[str, int],
    overrides: Sequence[str],
) -> tuple[str, ...]:
    """List what a reader should know before trusting the numbers."""
    found = [f"override: {override}" for override in overrides]
    if wasted := plan.wasted_slots():
        found.append(f"{wasted} slots repeat an expert that their rank already holds: memory without use")
    if bare := int((plan.slots_DLGP < 0).all(axis=(1, 3)).sum()):
        found.append(f"{bare} of {plan.ranks} ranks hold no expert: they attend and send, and serve nothing")
    if plan.made_by.note:
        found.append(f"solver's note ({plan.made_by.solver}): {plan.made_by.note}")
    if redundant_slots(plan) and plan.made_by.solver in ("unknown", "eplb"):
        found.append(
            f"replicas are assumed to be chosen by rule {plan.replica_rule}; "
            "the solver of this plan assumed that they share evenly"
        )
    made = trace.meta.source.get("made")
    moved = made.get("moved_load") if isinstance(made, Mapping) else None
    if isinstance(moved, float) and moved >= LEAST_MOVED:
        found.append(
            f"{moved:.1%} of the load goes to other experts than {trace.meta.model} has it: no "
            "token chooses an expert twice, and where the router has groups each of a token's "
            "gives as many choices"
        )
    found += _of_the_rate(workload)
    if plan.layout.stages > 1:
        found.append(
            "a step is one pass through the pipeline, from empty to empty: steps that follow one "
            "another without a gap do better; balance, fan-out and loads are those of one stage's "
            "ranks over all layers"
        )
    if workload.reuse:
        found.append("sequences may be drawn more than once (reuse): steps are more alike than they would be")
    if plan.made_by.trace_hash is not None and plan.made_by.trace_hash == trace.content_hash():
        found.append("the plan was made on the very tokens it is simulated on: it may do worse on others")
    if not model.is_whole:
        found.append(
            "no step time, tokens/s, latency or memory of the whole model: its own shape was not "
            "simulated (--routing makes routing of it)"
        )
    elif memory["total"] > memory["usable"]:
        needed, usable = (memory[name] / memory["capacity"] for name in ("total", "usable"))
        found.append(
            f"needs {needed:.0%} of a GPU's memory, of which the engine takes {usable:.0%} (--memory-fraction): "
            "it does not fit"
        )
    return tuple(found)
