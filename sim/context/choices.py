"""What may gather keys and values of ranks that share sequences, and add up their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecast.sim.collectives.choice import Choice, candidates

if TYPE_CHECKING:
    from moecast.sim.plan import Plan
    from moecast.sim.sites import Sites


def context_choices(sites: Sites, plan: Plan, operation: str, phase: str) -> tuple[Choice, ...]:
    """Lay out NCCL's choices; none where ranks pass keys on in a ring, or decode."""
    if plan.cp == 1 or phase == "decode" or plan.context_exchange != "all-gather":
        return ()
    return tuple(candidates(sites, plan.layout.peers("cp"), operation=operation))
