"""The two legs of relayed exchanges: what they carry together, who waits in each, and what a schedule makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Plan, Workload, draw_steps, simulate
from moecast.sim.collectives.legs import LegsOfTemplates
from moecast.sim.collectives.links import link_capacity
from moecast.sim.forward import ForwardPass
from moecast.sim.network import Bound, Fluid
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Exchange, Flows
from moecast.sim.schedules import find_schedule, program_of
from moecast.sim.schedules.fsmoe import BETWEEN, INSIDE
from moecast.topology import load_cluster
from tests.sim.plan_cases import small_trace, tiny_model

RUNGS = [Bound(), Fluid()]
CLUSTER = load_cluster("dgx-h200", nodes=2, fabric="leaf-spine:2")
TRACE = small_trace()


def laid_out(ep: int = 16, etp: int = 1, **changes: object) -> Plan:
    """16 ranks with two slots each, or as many as ep asks for."""
    groups = 16 // (ep * etp)
    plan = Plan.contiguous(layers=3, experts=16, choices=2, ep=ep, groups=groups, slots_per_rank=32 // ep)
    return plan.with_(etp=etp, gpu_of_rank=tuple(range(16)), **changes)


def a_pass(tokens: int = 24, seed: int = 0, **plan: object) -> ForwardPass:
    placed_plan = laid_out(**plan)
    placed = PlacedModel.of(CLUSTER, tiny_model(TRACE, shared=1), placed_plan, phase="prefill")
    work = Workload(phase="prefill", tokens_per_rank=tokens, steps=1, reuse=True, seed=seed)
    [step] = draw_steps(TRACE, work, ranks=placed_plan.dp)
    return ForwardPass.of(placed, TRACE, step)


def link_units(flows: Flows, links: int) -> np.ndarray:
    of_X = np.repeat(flows.bytes_F, np.diff(flows.offsets_F1)) * flows.share_X
    return np.bincount(flows.link_X, of_X, links)


def sent(step: ForwardPass, kind: str) -> Exchange:
    return list(step.dispatch(0) if kind == "dispatch" else step.combine(0))[-1]


@pytest.mark.parametrize("kind", ["dispatch", "combine"])
@settings(max_examples=10, deadline=None)
@given(tokens=st.integers(1, 40), seed=st.integers(0, 99))
def test_legs_carry_every_byte_over_the_same_links(kind: str, tokens: int, seed: int) -> None:
    step = a_pass(tokens, seed)
    whole = sent(step, kind)
    legs = step.legs(whole)
    assert [leg.between for leg in legs] == ([True, False] if kind == "dispatch" else [False, True])
    links = len(link_capacity(step.placed.sites))
    together = sum(link_units(leg.exchange.fill(), links) for leg in legs)
    np.testing.assert_allclose(together, link_units(whole.fill(), links), rtol=1e-12)
    domain_G = step.placed.sites.domain_G
    for leg in legs:
        flows = leg.exchange.fill()
        crosses_F = domain_G[flows.source_rank_F] != domain_G[flows.destination_rank_F]
        assert (crosses_F == leg.between).all()
        assert (flows.waiter_F == flows.destination_rank_F).all()
        assert not len(flows.parent_R)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("kind", ["dispatch", "combine"])
def test_legs_one_after_the_other_take_no_less_than_the_pipelined_whole(rung: object, kind: str) -> None:
    step = a_pass(400)
    whole = sent(step, kind)
    legs = [leg.exchange for leg in step.legs(whole)]
    whole_s, *legs_s = (
        rung.run(step.program(tasks)).step_time_s - len(tasks) * whole.setup_s
        for tasks in ([whole], legs, *([leg] for leg in legs))
    )
    apart_s, first_s, second_s = legs_s
    assert max(first_s, second_s) <= whole_s * (1 + 1e-9)
    assert whole_s <= apart_s * (1 + 1e-9)
    assert apart_s <= (first_s + second_s) * (1 + 1e-9)


def test_what_no_relay_carries_is_one_leg() -> None:
    step = a_pass(dispatch="per_rank")
    whole = sent(step, "dispatch")
    [leg] = step.legs(whole)
    assert leg.between
    np.testing.assert_array_equal(leg.exchange.fill().bytes_F, whole.fill().bytes_F)
    inside = LegsOfTemplates(np.zeros(step.placed.sites.n_ranks, np.int32)).of(whole)
    assert [leg.between for leg in inside] == [False]
    counts = next(iter(step.dispatch(0)))
    assert [leg.exchange for leg in step.legs(counts)] == [counts]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@pytest.mark.parametrize("etp", [1, 8])
def test_a_step_sends_between_domains_and_inside_them_on_two_streams(rung: object, etp: int) -> None:
    layout = {} if etp == 1 else {"ep": 2, "etp": 8}
    step = a_pass(schedule="fsmoe:3", **layout)
    program = program_of(step)
    assert {BETWEEN, INSIDE} <= set(program.streams)
    domain_G = step.placed.sites.domain_G
    for task in program.exchanges:
        flows = task.fill()
        crosses = bool((domain_G[flows.source_rank_F] != domain_G[flows.destination_rank_F]).any())
        assert not (crosses and task.stream == INSIDE)
    assert rung.run(program).step_time_s > 0


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"dispatch": "per_rank"}, "needs a leg inside domains"),
        ({"dispatch": "stay"}, "no chunks"),
        ({"ep": 8}, "nothing goes between domains"),
        ({"ep": 8, "tp": 8, "sequence_parallel": False}, "nothing is dispatched"),
    ],
)
def test_where_there_are_no_two_networks_it_is_refused(plan: dict[str, object], why: str) -> None:
    step = a_pass(**plan)
    assert why in (find_schedule("fsmoe:2").supports(step) or "")
    asked = Workload(phase="prefill", tokens_per_rank=8, steps=1, reuse=True)
    with pytest.raises(MoecastError, match=why):
        simulate(CLUSTER, tiny_model(TRACE), laid_out(schedule="fsmoe:2", **plan), TRACE, asked, network="bound")


def test_the_plan_file_keeps_it() -> None:
    plan = laid_out(schedule="fsmoe:4")
    assert Plan.from_json(plan.to_json()).schedule == "fsmoe:4"
