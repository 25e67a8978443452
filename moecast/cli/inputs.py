"""What several commands read before they start: cluster, model, trace and workload, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim import ModelShape, Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace, TraceMeta

DEFAULT_TOKENS_PER_RANK = {"prefill": 512, "decode": 32}
PARTS = ("all", "planning", "measuring")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The four inputs of a forecast."""

    cluster: Cluster
    model: ModelShape
    trace: RoutingTrace
    workload: Workload


def read_model(name: str | None, dims: str | None, meta: TraceMeta, *, file: Path) -> ModelShape:
    """The model of `--model`, else of the trace's own config, at the dimensions of `--dims`.

    Raises
    ------
    MoecastError
        Neither names a model, or its L, E or K differ from the trace's.
    """
    from moecast.sim import ModelShape, load_model

    if name is not None:
        model = load_model(name)
    elif meta.config is not None:
        model = ModelShape.from_config(meta.config, name=meta.model)
    else:
        raise MoecastError("the trace holds no config.json: name the model with --model", file=file)
    for field, ours, theirs in (
        ("layers", model.layers, meta.layers),
        ("experts", model.experts, meta.experts),
        ("choices", model.choices, meta.choices),
    ):
        if ours != theirs:
            raise MoecastError(f"the model {model.name} has {ours}", file=file, field=field, value=theirs)
    return model if dims is None else model.with_dims(load_model(dims))


def parse_topics(text: str | None) -> dict[str, float] | tuple[str, ...] | None:
    """Read ``law,code`` (restrict) or ``law=3,code=1`` (weights).

    Raises
    ------
    MoecastError
        A weight that is not a number, or weights for some topics only.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not any("=" in part for part in parts):
        return tuple(parts)
    weights: dict[str, float] = {}
    for part in parts:
        name, _, weight = part.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            raise MoecastError("give every topic a weight, as in law=3,code=1", field="--topics", value=part) from error
    return weights


def read_inputs(
    *,
    cluster: str,
    nodes: int | None,
    fabric: str | None,
    model: str | None,
    dims: str | None,
    trace: Path,
    part: str,
    plan_on: float,
    phase: str,
    tokens_per_rank: int | None,
    steps: int,
    context: int | None,
    topics: str | None,
    one_topic_per_step: bool,
    reuse: bool,
    from_phase: str | None,
    seed: int,
) -> Inputs:
    """Read and check everything a forecast needs, in the order that fails soonest."""
    from moecast.sim import Workload
    from moecast.topology import load_cluster
    from moecast.traces import read_meta, read_trace

    if part not in PARTS:
        raise MoecastError(f"one of {', '.join(PARTS)}", field="--part", value=part)
    workload = Workload(
        phase=phase,
        tokens_per_rank=tokens_per_rank or DEFAULT_TOKENS_PER_RANK.get(phase, 1),
        steps=steps,
        context=context,
        seed=seed,
        topics=parse_topics(topics),
        one_topic_per_step=one_topic_per_step,
        reuse=reuse,
        from_phase=from_phase,
    )
    built = load_cluster(cluster, nodes=nodes, fabric=fabric)
    shape = read_model(model, dims, read_meta(trace), file=trace)
    whole = read_trace(trace)
    if part != "all":
        whole = whole.split(plan_on)[PARTS.index(part) - 1]
    return Inputs(cluster=built, model=shape, trace=whole, workload=workload)
