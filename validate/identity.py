"""What was asked, in a form that two processes or two days can compare."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from moecast.sim import Plan, Workload
from moecast.sim.describe import describe_workload
from moecast.traces import RoutingTrace

MODE = "nccl"
"""The dispatch mode that all_to_all_single is: a row per choice, ranks meeting before and after."""


def question_hashes(plan: Plan, trace: RoutingTrace, workload: Workload) -> dict[str, Any]:
    """Name what was asked; a plan by what it says in mode `nccl`, not by who made it."""
    said = {name: value for name, value in plan.with_(dispatch=MODE).to_json().items() if name != "made_by"}
    return {
        "plan_hash": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
        "trace_hash": trace.content_hash(),
        "workload": describe_workload(workload),
    }
