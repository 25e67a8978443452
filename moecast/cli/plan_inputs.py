"""What `moecast plan` searches layouts of: cluster, model, and routing that is recorded or made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.cli.asked import Asked, ElementTypes
    from moecast.sim import ModelShape
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

MADE_TOKENS = 8192
"""Different tokens that made routing holds; a step that needs more uses them again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanInputs:
    """Cluster, model and routing of a search; `made`: the routing is by a law."""

    cluster: Cluster
    model: ModelShape
    trace: RoutingTrace
    made: bool


def read_plan_inputs(
    asked: Asked, *, drawn: Asked, types: ElementTypes | None, sequence: int, quiet: bool
) -> PlanInputs:
    """Read them; even routing is made where none is named.

    Parameters
    ----------
    drawn
        The same with what a step draws of a recorded trace.
    types
        Element types of the model; None: its own.
    sequence
        Tokens of a sequence of made routing.

    Raises
    ------
    MoecastError
        As of `read_inputs`.
    """
    from moecast.cli import made
    from moecast.cli.inputs import read_inputs
    from moecast.sim import kernels_on
    from moecast.sim.made_routing import parse_law, routing_by_law
    from moecast.topology import load_cluster

    if asked.trace is not None or asked.routing == "trace":
        inputs = read_inputs(drawn, quiet=quiet)
        return PlanInputs(cluster=inputs.cluster, model=inputs.model, trace=inputs.trace, made=False)
    if asked.cluster is None:
        rule = "name a preset (`moecast topology list`) or a YAML file"
        raise MoecastError(rule, field="--cluster")
    built = load_cluster(asked.cluster, nodes=asked.nodes, fabric=asked.fabric)
    model = made.model_of(asked.model, asked.dims, types)
    trace = routing_by_law(
        parse_law(asked.routing or "uniform"),
        model,
        tokens=MADE_TOKENS,
        sequence=min(sequence, MADE_TOKENS),
        phase="prefill",
        position=0,
        seed=asked.seed,
    )
    cluster = kernels_on(built, kernels=asked.kernels, engine=asked.engine)
    return PlanInputs(cluster=cluster, model=model, trace=trace, made=True)
