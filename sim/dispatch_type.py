"""The element type in which tokens travel to their experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecast.sim.engines import find_engine

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.topology import Hardware


def dispatch_type_of(plan: Plan, model: ModelShape, hardware: Hardware) -> str:
    """What the plan says; else what the engine sends for such experts; else what the experts multiply."""
    if plan.dispatch_type is not None:
        return plan.dispatch_type
    return dict(find_engine(hardware.engine).sends).get(model.weight_type, model.dispatch_type)
