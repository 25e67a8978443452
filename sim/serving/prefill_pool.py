"""A pool of GPUs that computes prompts for another pool, which answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.plan import Plan
from moecast.sim.serving.capacity import sequence_bytes
from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.kv_moves import KvMoves
from moecast.sim.serving.records import Records
from moecast.sim.serving.request import Request
from moecast.sim.serving.setup import Serving
from moecast.sim.serving.workers import Workers, workers_of

if TYPE_CHECKING:
    from moecast.sim.question import Question


Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPool:
    """Instances that compute prompts only.

    Parameters
    ----------
    plan
        Of one instance, or of as many as it has EP groups that stand alone; on GPUs of their own.
    instances
        Copies of it, each on the next GPUs; None: one for each of its EP groups.
    serving
        Their batcher, limits and dispatch; None: as of the pool that answers.
    cost
        What their iterations cost; None: as `serving` says.

    Raises
    ------
    MoecastError
        No instance.
    """

    plan: Plan
    instances: int | None = None
    serving: Serving | None = None
    cost: StepCost | None = None

    def __post_init__(self) -> None:
        """Check the number of instances."""
        if self.instances is not None and self.instances < 1:
            raise MoecastError("at least 1", field="instances", value=self.instances)

    def workers(
        self, question: Question, serving: Serving, requests: Sequence[Request], topic_Q: Int, records: Records
    ) -> Workers:
        """Set up its instances, which give each request of the question's its first token, and write that down.

        Raises
        ------
        MoecastError
            The plan has no answer on this cluster.
        """
        tokens = round(np.mean([request.prompt_tokens for request in requests]))
        return workers_of(
            replace(question, plan=self.plan),
            self.serving or serving,
            records,
            topic_Q=topic_Q,
            tokens=max(1, tokens),
            instances=self.instances,
            cost=self.cost,
            prompts_only=True,
        )


def prompts_of(requests: Sequence[Request]) -> list[Request]:
    """What the pool that computes prompts is asked: each prompt, and its first token."""
    return [replace(request, output_tokens=1) for request in requests]


def moves_between(question: Question, prefill: Workers, decode: Workers, requests: Sequence[Request]) -> KvMoves:
    """Ways of prompts' keys over the cluster's links from each rank of a pool to each of another.

    Raises
    ------
    MoecastError
        The pools stand on the same GPUs, or on more than the cluster has.
    """
    cluster = question.cluster
    sources, destinations = prefill.gpus_R, decode.gpus_R
    ours, theirs = ({gpu for gpus in pool for gpu in gpus} for pool in (sources, destinations))
    if both := ours & theirs:
        raise MoecastError("prompts are computed on GPUs that answer, too", field="prefill GPU", value=min(both))
    if (last := max(ours | theirs)) >= cluster.n_gpus:
        rule = f"{prefill.gpus} GPUs for prompts and {decode.gpus} for answers: the cluster has {cluster.n_gpus}"
        raise MoecastError(rule, field="GPU", value=last)
    tokens = max(1, round(np.mean([request.prompt_tokens for request in requests])))
    held = sequence_bytes(question.model, decode.plan, cluster.hardware, tokens=tokens)
    return KvMoves(cluster, sources=sources, destinations=destinations, token_bytes=held / tokens)
