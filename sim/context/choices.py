"""What may gather keys and values of ranks that share sequences, and add up their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecast.sim.collectives.choice import Choice, candidates
from moecast.sim.context.rules import cuts_prompts

if TYPE_CHECKING:
    from moecast.sim.plan import Plan
    from moecast.sim.sites import Sites


def context_choices(sites: Sites, plan: Plan, operation: str, phase: str) -> tuple[Choice, ...]:
    """Lay out NCCL's choices; none where ranks pass keys on in a ring, or decode."""
    if not cuts_prompts(plan, phase) or plan.context_exchange != "all-gather":
        return ()
    return tuple(candidates(sites, plan.layout.peers("cp"), operation=operation))
