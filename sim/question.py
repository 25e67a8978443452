"""The Question: what is asked of the simulator, in one value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moecast.errors import MoecastError
from moecast.sim.checks import check_question
from moecast.sim.describe import describe_workload
from moecast.sim.engines import find_engine
from moecast.sim.memory import MEMORY_FRACTION
from moecast.sim.network import Rung, find_rung

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import Plan
    from moecast.sim.workload import Workload
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """Which plan is asked about, of which model on which cluster, under which routing and workload.

    Parameters
    ----------
    trace
        How tokens choose: recorded, or made.
    network
        The rung that times the steps, or its name. ``bound`` times all of them, the others
        `max_fluid_steps`, evenly spread; ``fluid:0.3%`` is fluid within a tolerance.
    memory_fraction
        The part of a GPU's memory that an engine takes: what does not fit into it does not fit.
        vLLM's default is 0.9 (`gpu_memory_utilization`), SGLang's about 0.88, the rest is for the
        CUDA context, graphs and NCCL.
    gains
        Time the first timed step again with twice of each resource that may save 1 % of it: what
        names the bottleneck. As many runs of the rung as there are such resources, about ten.
    seed
        Of the hash that picks paths where the cluster does not spray; the workload has its own.
    overrides, notes
        What was changed on the way here, and what else the result is to say. No part of what is
        asked.

    Raises
    ------
    MoecastError
        A value out of its range. Whether the parts go together, `check` says.
    """

    cluster: Cluster
    model: ModelShape
    plan: Plan
    trace: RoutingTrace
    workload: Workload
    network: str | Rung = "fluid"
    max_fluid_steps: int = 4
    memory_fraction: float = MEMORY_FRACTION
    gains: bool = True
    seed: int = 0
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges."""
        find_rung(self.network)
        find_engine(self.cluster.hardware.engine)
        if self.max_fluid_steps < 1:
            rule = "must be at least 1"
            raise MoecastError(rule, field="max_fluid_steps", value=self.max_fluid_steps)
        if not 0 < self.memory_fraction <= 1:
            rule = "more than 0, at most 1"
            raise MoecastError(rule, field="memory_fraction", value=self.memory_fraction)

    @property
    def rung(self) -> Rung:
        """The rung that times the steps."""
        return find_rung(self.network)

    def check(self) -> None:
        """Fail in one line where the question has no answer, before anything is drawn or counted.

        Raises
        ------
        MoecastError
            L, E or K differ between trace, model and plan; the plan is not legal, larger than the
            cluster, needs what is not simulated, or cuts tokens into more microbatches than there
            are.
        """
        check_question(self.cluster, self.model, self.plan, self.trace, pipeline=True)
        there = self.workload.tokens_per_rank + self.workload.prefill_tokens_per_rank
        if self.workload.steps_mode == "drawn" and self.plan.microbatches > there:
            rule = f"more than the {there} tokens or sequences that each rank has"
            raise MoecastError(rule, field="microbatches", value=self.plan.microbatches)

    def hash(self) -> str:
        """Name what is asked: equal for equal questions, today and on another machine. SHA-256 in hex."""
        cluster = (self.cluster.nodes, self.cluster.links, self.cluster.hardware, self.cluster.routing)
        parts = (
            *map(repr, (cluster, self.model, self.rung.name, self.max_fluid_steps, self.memory_fraction)),
            json.dumps(self.plan.to_json(), sort_keys=True),
            json.dumps(describe_workload(self.workload), sort_keys=True),
            self.trace.content_hash(),
            repr((self.gains, self.seed)),
        )
        whole = hashlib.sha256()
        for part in parts:
            whole.update(hashlib.sha256(part.encode()).digest())
        return whole.hexdigest()
