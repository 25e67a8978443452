"""Ranks that share sequences in training: a layer's attention forward and back, and whole steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.sim import Compute, Exchange, PlacedModel, Plan, Step, find_rung
from moecast.sim.context import sizes
from moecast.sim.forward import ForwardPass
from moecast.sim.schedules.lay import settled
from moecast.sim.training import RECOMPUTES, Recipe, simulate_training
from moecast.sim.training.context import travelling_bytes
from moecast.sim.training.work import TrainingPass
from moecast.topology import load_cluster
from tests.sim.plan_cases import small_trace, tiny_model

CLOSE = {"rel": 1e-9, "abs": 1e-15}
CLUSTER = load_cluster("dgx-h200", nodes=2)
TRACE = small_trace(tokens=400)
MODEL = tiny_model(TRACE)
UNIT = sizes.expanded_bytes(MODEL.attention)
Tasks = list[Compute | Exchange]


def plan_of(*, cp: int, **changes: object) -> Plan:
    plan = Plan.contiguous(layers=TRACE.meta.layers, experts=TRACE.meta.experts, choices=TRACE.meta.choices, ep=16)
    return plan.with_(gpu_of_rank=tuple(range(16)), cp=cp, **changes)


def pass_of(plan: Plan, *, length: int, recompute: str = "none") -> TrainingPass:
    tokens = length * plan.dp
    step = Step(
        token_T=np.arange(tokens) % TRACE.n_tokens,
        source_T=np.arange(tokens, dtype=np.int32) // length,
        context_T=np.arange(tokens) % length + 1,
        phase="prefill",
    )
    placed = PlacedModel.of(CLUSTER, MODEL, plan, phase="prefill")
    return TrainingPass(step=ForwardPass.of(placed, TRACE, step), recompute=RECOMPUTES[recompute])


def laid(work: TrainingPass, which: str) -> Tasks:
    """Tasks of layer 0, whose MLP is dense: attention's and, behind them forward and before them back, the MLP's."""
    if which == "forward":
        return list(settled(work.forward(0)))
    return list(settled(work.backward(0, weights=which == "both")))


def sent_G(tasks: Tasks) -> np.ndarray:
    sent = np.zeros(16)
    for task in tasks:
        if isinstance(task, Exchange):
            flows = task.fill()
            np.add.at(sent, flows.source_rank_F, flows.bytes_F * (flows.source_rank_F != flows.destination_rank_F))
    return sent


def alone_s(work: TrainingPass, task: Compute | Exchange) -> float:
    program = work.step.program([replace(task, stream="x", after=())])
    return float(find_rung("fluid").run(program).step_time_s)


@pytest.mark.parametrize("cp", [2, 4, 8])
@pytest.mark.parametrize("exchange", ["ring", "all-gather"])
def test_keys_and_values_travel_forward_and_with_their_gradients_back(cp: int, exchange: str) -> None:
    length = 16 * cp
    work = pass_of(plan_of(cp=cp, context_exchange=exchange), length=length)
    once = (cp - 1) * length / cp * UNIT
    np.testing.assert_allclose(sent_G(laid(work, "forward")), once, rtol=1e-9)
    np.testing.assert_allclose(sent_G(laid(work, "input")), 2 * once, rtol=1e-9)
    assert not any(isinstance(task, Exchange) for task in work.weights(0))
    again = pass_of(plan_of(cp=cp, context_exchange=exchange), length=length, recompute="selective")
    more = 3 if exchange == "ring" else 2  # a ring goes round once more before it comes back
    np.testing.assert_allclose(sent_G(laid(again, "input")), more * once, rtol=1e-9)


@pytest.mark.parametrize("network", ["bound", "fluid"])
@pytest.mark.parametrize(("cp", "length"), [(2, 64), (4, 2048), (8, 65536)])
def test_a_layers_way_back_takes_the_longer_of_block_and_send_at_each_step(network: str, cp: int, length: int) -> None:
    work = pass_of(plan_of(cp=cp), length=length)
    tasks = laid(work, "both")
    in_ring = [task for task in tasks if task.stream == "context" or task.after]
    blocks = [alone_s(work, task) for task in in_ring if isinstance(task, Compute)]
    sends = [alone_s(work, task) for task in in_ring if isinstance(task, Exchange)]
    *blocks, end = blocks
    assert (len(blocks), len(sends), end) == (cp, cp, 0.0)
    rest = sum(alone_s(work, task) for task in tasks if not any(task is other for other in in_ring))
    took = float(find_rung(network).run(work.step.program(tasks)).step_time_s)
    assert took == pytest.approx(rest + sum(map(max, blocks, sends)), **CLOSE)


@pytest.mark.parametrize("schedule", ["1f1b", "1f1b_overlapped", "zb_h1", "dualpipe"])
@pytest.mark.parametrize("exchange", ["ring", "all-gather"])
def test_pipelines_train_with_shared_sequences(schedule: str, exchange: str) -> None:
    plan = Plan.contiguous(
        layers=TRACE.meta.layers, experts=TRACE.meta.experts, choices=TRACE.meta.choices, ep=8
    ).with_(cp=2, pp=2, gpu_of_rank=tuple(range(16)), context_exchange=exchange)
    recipe = Recipe(sequence=64, batch=32)
    times = [
        simulate_training(CLUSTER, MODEL, plan, TRACE, recipe, schedule=schedule, drawn=1, network=network).step_time_s
        for network in ("bound", "fluid")
    ]
    assert 0 < times[0] <= times[1] * (1 + 1e-9)


def test_memory_is_of_a_part_of_the_sequences() -> None:
    alone, shared = (
        simulate_training(CLUSTER, MODEL, plan_of(cp=cp), TRACE, Recipe(sequence=64, batch=16), drawn=1).memory_bytes
        for cp in (1, 4)
    )
    assert shared["activations"] == pytest.approx(alone["activations"] / 4, rel=1e-9)
    assert shared["parameters"] == alone["parameters"]
    assert travelling_bytes(MODEL, 64, tp=1, cp=1, exchange="ring") == 0
    assert travelling_bytes(MODEL, 64, tp=1, cp=4, exchange="ring") == 64 * UNIT
    assert travelling_bytes(MODEL, 64, tp=1, cp=4, exchange="all-gather") == 128 * UNIT


def test_token_rings_are_not_trained() -> None:
    with pytest.raises(MoecastError, match=r"context_exchange.*no backward pass"):
        pass_of(plan_of(cp=2, context_exchange="token-ring"), length=64)
