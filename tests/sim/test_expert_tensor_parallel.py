"""Ranks that share experts by width: who serves what, what travels, and how long it takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Exchange, PlacedModel, Plan, Sites, count_traffic, find_rung, simulate_step, step_program
from moecast.sim.forward import ForwardPass
from moecast.sim.serving_ranks import ServingRanks
from moecast.topology import load_cluster
from tests.sim.plan_cases import random_slots, random_step, small_trace, tiny_model

CLUSTER = load_cluster("dgx-h200", nodes=2)
TRACE = small_trace(tokens=400)
MODEL = tiny_model(TRACE)


@st.composite
def cut_plans(draw: st.DrawFn) -> Plan:
    """Any plan of 16 ranks some of which share experts by width."""
    etp, groups = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 2]))
    ep = 16 // etp // groups
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    per_rank = -(-TRACE.meta.experts // ep) + draw(st.integers(0, 1))
    shape = (groups, TRACE.meta.layers, ep, per_rank)
    slots = [random_slots(rng, TRACE.meta.experts, ep * per_rank) for _ in range(groups * TRACE.meta.layers)]
    return Plan(
        experts=TRACE.meta.experts,
        choices=TRACE.meta.choices,
        layer_ids=tuple(range(TRACE.meta.layers)),
        slots_DLGP=np.stack(slots).reshape(shape),
        gpu_of_rank=tuple(rng.permutation(16).tolist()),
        etp=etp,
        tp=draw(st.sampled_from([1, 2])),
        replica_rule=draw(st.sampled_from(["round_robin", "nearest", "fixed", "by_rank"])),
        dispatch=draw(st.sampled_from(["per_choice", "per_rank", "per_domain", "nccl"])),
    )


@settings(deadline=None, max_examples=15)
@given(plan=cut_plans(), seed=st.integers(0, 9))
def test_ranks_that_share_experts_serve_the_same_and_tokens_keep_to_their_own_part(plan: Plan, seed: int) -> None:
    step = random_step(np.random.default_rng(seed), TRACE, ranks=16, tokens=60, phase="decode")
    sites, layout = Sites.of(CLUSTER, plan), plan.layout
    traffic = count_traffic(plan, sites, TRACE.experts_TLK, step.token_T, step.source_T)
    made = int((TRACE.experts_TLK[step.token_T] != 65535).sum())
    assert traffic.load_LGP.sum() == made * plan.etp
    for peers_G in layout.peers("etp"):
        assert (traffic.load_LGP[:, peers_G] == traffic.load_LGP[:, peers_G[:1]]).all()
    for layer in range(plan.layers):
        choices_SD = sites.to_ranks(traffic.layer(layer).choices_SM)
        source, destination = np.nonzero(choices_SD)
        assert (layout.etp_G[source] == layout.etp_G[destination]).all()
        assert (layout.group_G[source] == layout.group_G[destination]).all()
        received_G, load_G = choices_SD.sum(0), traffic.layer(layer).load_GP.sum(1)
        assert (received_G[layout.peers_of_ranks("etp")].sum(1) == load_G).all()


@settings(deadline=None, max_examples=10)
@given(plan=cut_plans(), seed=st.integers(0, 9))
def test_bound_is_below_fluid_and_every_copy_reaches_all_that_share_its_expert(plan: Plan, seed: int) -> None:
    step = random_step(np.random.default_rng(seed), TRACE, ranks=plan.dp, tokens=60, phase="prefill")
    times = [simulate_step(CLUSTER, MODEL, plan, TRACE, step, network=rung)[1] for rung in ("bound", "fluid")]
    assert times[0].step_time_s <= times[1].step_time_s * (1 + 1e-9)
    placed = PlacedModel.of(CLUSTER, MODEL, plan, phase="prefill")
    forward = ForwardPass.of(placed, TRACE, step)
    assert placed.spread_flows is not None
    program = step_program(CLUSTER, MODEL, plan, TRACE, step)
    moved = sum(
        flows.bytes_F[flows.source_rank_F != flows.destination_rank_F].sum()
        for flows in (task.fill() for task in program.tasks if isinstance(task, Exchange) and task.kind == "dispatch")
    )
    assert moved == pytest.approx(forward.dispatch_bytes(), rel=1e-12)


def test_a_member_alone_halves_width_and_doubles_rows() -> None:
    """EP 1: each rank has all experts; with ETP 2 it has half the width of each, and two ranks' choices."""
    step = random_step(np.random.default_rng(0), TRACE, ranks=2, tokens=300, phase="decode")
    whole = Plan.contiguous(layers=3, experts=16, choices=2, ep=1, groups=2)
    cut = Plan.contiguous(layers=3, experts=16, choices=2, ep=1).with_(etp=2, gpu_of_rank=(0, 1))
    passes = [
        ForwardPass.of(PlacedModel.of(CLUSTER, MODEL, plan, phase="decode"), TRACE, step) for plan in (whole, cut)
    ]
    rows = [one.traffic.rank_load_LG for one in passes]
    assert (rows[1] == rows[0].sum(1, keepdims=True)).all()
    assert find_rung("bound").run(step_program(CLUSTER, MODEL, cut, TRACE, step)).step_time_s > 0


def test_who_needs_one_rank_for_a_slot_says_so() -> None:
    plan = Plan.contiguous(layers=3, experts=16, choices=2, ep=8).with_(etp=2, gpu_of_rank=tuple(range(16)))
    with pytest.raises(MoecastError, match="etp = 2: a slot is taken to stand on one rank here: use 1"):
        ServingRanks(plan, np.zeros(16, np.int32))
    with pytest.raises(MoecastError, match="etp = 2"):
        PlacedModel.of(CLUSTER, MODEL, plan.with_(dispatch="stay"), phase="decode")
