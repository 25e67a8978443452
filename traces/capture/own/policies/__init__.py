"""Router policies: how a router chooses, and what keeps its experts evenly used. `POLICIES` lists them all.

To add one: a class that satisfies `Policy` in a file here, an entry in `POLICIES`, a row in its
tests.
"""

from __future__ import annotations

from collections.abc import Mapping

from moecast.errors import MoecastError
from moecast.traces.capture.own.policies.base import NONE, Pass, Policy, Routed
from moecast.traces.capture.own.policies.bias import AuxFree, GroupLimited
from moecast.traces.capture.own.policies.stochastic import Stochastic
from moecast.traces.capture.own.policies.together import Capacity, ExpertChoice, Sinkhorn
from moecast.traces.capture.own.policies.top_k import AuxGlobal, AuxMicro, NoBalance
from moecast.traces.capture.own.policies.varying import NullExperts, TopP

__all__ = ["NONE", "POLICIES", "AuxGlobal", "Pass", "Policy", "Routed", "policy_named"]

POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        NoBalance(),
        AuxMicro(),
        AuxGlobal(),
        AuxFree(),
        GroupLimited(),
        ExpertChoice(),
        NullExperts(),
        TopP(),
        Sinkhorn(),
        Capacity(),
        Stochastic(),
    )
}


def policy_named(name: str) -> Policy:
    """Find a policy.

    Raises
    ------
    MoecastError
        There is none of that name.
    """
    if name not in POLICIES:
        raise MoecastError(f"one of {', '.join(POLICIES)}", field="policy", value=name)
    return POLICIES[name]
