"""The instances that a plan makes: ranks that share experts step together, EP groups apart step by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moecast.errors import MoecastError
from moecast.sim.engines import find_engine
from moecast.sim.plan import Plan
from moecast.sim.serving.batchers import Limits, Policy
from moecast.sim.serving.capacity import KvCapacity, kv_capacity
from moecast.sim.serving.cost.engine_step import EngineStep
from moecast.sim.serving.cost.exact import ExactCost
from moecast.sim.serving.cost.step_cost import StepCost
from moecast.sim.serving.cost.surrogate import Int, SurrogateCost
from moecast.sim.serving.dispatch import Dispatcher
from moecast.sim.serving.instance import Instance
from moecast.sim.serving.loop import Pool
from moecast.sim.serving.records import PoolTimes, Records
from moecast.sim.serving.setup import Serving

if TYPE_CHECKING:
    from moecast.sim.question import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Instances of one kind, ready to serve.

    Parameters
    ----------
    pool
        What the event loop runs.
    policy, limits
        Their batcher.
    capacity
        Their cache; None where the number of blocks was given.
    cost
        Seconds of their iterations.
    plan, count
        Each one's plan, and how many there are.
    gpus_R
        GPUs of each attention-DP rank, over all of them.
    """

    pool: Pool
    policy: Policy
    limits: Limits
    capacity: KvCapacity | None
    cost: StepCost
    plan: Plan
    count: int
    gpus_R: tuple[tuple[int, ...], ...]

    @property
    def gpus(self) -> int:
        """GPUs of all of them."""
        return self.plan.ranks * self.count


def plans_of_instances(plan: Plan) -> tuple[Plan, int]:
    """The plan of one instance, and how many there are: an EP group, where nothing else ties groups together.

    Groups whose experts stand differently would be different instances: they step together, as one.
    """
    apart = plan.groups > 1 and plan.layout.groups_stand_alone
    alike = all(np.array_equal(plan.slots_DLGP[0], slots) for slots in plan.slots_DLGP[1:])
    weights = plan.replica_weights_DLGP
    if not (apart and alike) or weights is not None:
        return plan, 1
    ranks = plan.layout.ranks_of_group(0)
    gpus = tuple(plan.gpu_of_rank[rank] for rank in ranks.tolist())
    return plan.with_(slots_DLGP=plan.slots_DLGP[:1], gpu_of_rank=gpus), plan.groups


def workers_of(
    question: Question,
    serving: Serving,
    records: Records,
    *,
    topic_Q: Int,
    tokens: int,
    instances: int | None = None,
    plans: Mapping[str, Plan] | None = None,
    cost: StepCost | None = None,
    prefilled: bool = False,
    prompts_only: bool = False,
) -> Workers:
    """Set up the instances of a question's plan.

    Parameters
    ----------
    topic_Q
        The topic of each request.
    tokens
        A typical length of requests, prompt and answer.
    instances
        How many copies of the plan's own; None: one for each of its EP groups.
    plans
        By part, `prefill` and `decode`: the question's plan with tokens moved otherwise; None: as
        it is.
    cost
        What iterations cost; None: as `serving` says.
    prefilled
        Prompts are computed elsewhere: iterations have a token of each request at the most, and
        need room for those.
    prompts_only
        Answers are given elsewhere.

    Raises
    ------
    MoecastError
        The question has no answer, a plan of several pipeline stages, or no memory is left for a
        cache.
    """
    _check(question)
    plan, count = plans_of_instances(question.plan)
    hardware = question.cluster.hardware
    policy = serving.policy(hardware.engine)
    capacity, blocks = None, serving.kv_blocks
    probe = serving.limits(policy, kv_blocks=1)
    if blocks is None:
        most = min(probe.max_batched_tokens, probe.max_sequences) if prefilled else probe.max_batched_tokens
        capacity = kv_capacity(
            question.model,
            plan,
            hardware,
            tokens=tokens,
            batched_tokens=most,
            fraction=question.memory_fraction,
        )
        blocks = max(1, capacity.blocks(probe.block_tokens))
    limits = serving.limits(policy, kv_blocks=blocks)
    if cost is None:
        parts = plans or dict.fromkeys(("prefill", "decode"), plan)
        engine = EngineStep(
            question.cluster, question.model, dict(parts), question.trace, question.rung, seed=question.seed
        )
        runs = find_engine(hardware.engine)
        beside_s = runs.prompts_apart_s if prompts_only else 0.0
        cost = _cost(engine, serving, topic_Q, capacity, limits, prompt_s=runs.prompt_s, iteration_s=beside_s)
    times = PoolTimes()
    made = tuple(
        Instance(
            [policy.start(limits) for _ in range(plan.dp)],
            cost,
            ahead=policy.ahead,
            limits=limits,
            records=records,
            times=times,
            number=number,
            receive_every=serving.receive_every,
        )
        for number in range(instances or count)
    )
    dispatcher = Dispatcher(serving.dp_dispatch, plan.dp * len(made), each=plan.dp)
    pool = Pool(instances=made, ranks=plan.dp, dispatcher=dispatcher, times=times)
    return Workers(
        pool=pool,
        policy=policy,
        limits=limits,
        capacity=capacity,
        cost=cost,
        plan=plan,
        count=len(made),
        gpus_R=_gpus_of_ranks(question.plan, plan, len(made)),
    )


def _gpus_of_ranks(whole: Plan, one: Plan, count: int) -> tuple[tuple[int, ...], ...]:
    """GPUs of each attention-DP rank: of the groups of a plan, then of copies of it on the next GPUs."""
    found: list[tuple[int, ...]] = []
    dp_G, groups = one.layout.dp_G, 1 if one is whole else whole.groups
    for at in range(count):
        shift = at // groups * whole.ranks
        ranks = whole.layout.ranks_of_group(at % groups).tolist() if groups > 1 else range(whole.ranks)
        gpus = [whole.gpu_of_rank[rank] for rank in ranks]
        found += [tuple(gpus[rank] + shift for rank in np.flatnonzero(dp_G == dp).tolist()) for dp in range(one.dp)]
    return tuple(found)


def _check(question: Question) -> None:
    question.check()
    plan = question.plan
    for field, value in (("pp", plan.layout.stages), ("microbatches", plan.microbatches), ("cp", plan.cp)):
        if value > 1:
            rule = "requests are served by plans of one pipeline stage, whose ranks share no sequences: use 1"
            raise MoecastError(rule, field=field, value=value)
    if plan.dispatch == "stay":
        raise MoecastError("tokens that stay need every rank's cache: not served by request", field="dispatch")


def _cost(
    engine: EngineStep,
    serving: Serving,
    topic_Q: Int,
    capacity: KvCapacity | None,
    limits: Limits,
    *,
    prompt_s: float,
    iteration_s: float,
) -> StepCost:
    token_bytes = capacity.token_bytes if capacity is not None else 0.0
    swap_block_s = token_bytes * limits.block_tokens / engine.host_Bps
    if serving.cost == "exact":
        return ExactCost(engine, topic_Q, swap_block_s=swap_block_s, prompt_s=prompt_s, iteration_s=iteration_s)
    return SurrogateCost(
        engine,
        topic_Q,
        draws=serving.draws,
        swap_block_s=swap_block_s,
        tries=serving.tries,
        prompt_s=prompt_s,
        iteration_s=iteration_s,
    )
