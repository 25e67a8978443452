"""Where each choice goes, against a loop over single choices and against the simulator's counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moecast.sim import Plan, Sites, count_traffic, draw_steps
from moecast.topology import load_cluster
from moecast.validate.served import Served, serve
from tests.hostile import bad_ids
from tests.validate.cases import plan, question, trace

RULES = ["round_robin", "nearest", "by_rank", "weights"]


def one_choice_at_a_time(plan: Plan, domain_G: np.ndarray, experts_TLK: np.ndarray, source_T: np.ndarray) -> Served:
    rank_TLK, slot_TLK = np.full(experts_TLK.shape, -1), np.full(experts_TLK.shape, -1)
    turns: Counter[tuple[int, int, int]] = Counter()
    for token, layer, choice in np.ndindex(experts_TLK.shape):
        expert, source = int(experts_TLK[token, layer, choice]), int(source_T[token])
        if expert >= plan.experts:
            continue
        group = source // plan.ep
        found = [
            (group * plan.ep + int(member), int(slot))
            for member, slot in np.argwhere(plan.slots_DLGP[group, layer] == expert)
        ]
        turn = turns[source, layer, expert] + source
        turns[source, layer, expert] += 1
        if plan.replica_rule == "nearest":
            own = [place for place in found if place[0] == source]
            near = [place for place in found if domain_G[place[0]] == domain_G[source]]
            found = own or near or found
        if plan.replica_rule == "by_rank":
            last_of_rank = dict(found)
            found = [list(last_of_rank.items())[source % plan.ep % len(last_of_rank)]]
        if plan.replica_rule == "weights":
            weights = np.array(
                [plan.replica_weights_DLGP[group, layer, rank - group * plan.ep, slot] for rank, slot in found]
            )
            point = (turn + 0.5) * (5**0.5 - 1) / 2 % 1
            place = found[int(np.searchsorted(np.cumsum(weights / weights.sum())[:-1], point, side="right"))]
        else:
            place = found[turn % len(found)]
        rank_TLK[token, layer, choice], slot_TLK[token, layer, choice] = place
    return Served(source_T=source_T, rank_TLK=rank_TLK, slot_TLK=slot_TLK)


@pytest.mark.parametrize("rule", RULES)
@given(ranks=st.sampled_from([1, 2, 4]), groups=st.sampled_from([1, 2]), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_every_choice_goes_where_the_rule_says(rule: str, ranks: int, groups: int, seed: int) -> None:
    asked, routing = plan(ranks=ranks * groups, groups=groups, rule=rule), trace(tokens=40, seed=seed)
    source_T = np.sort(np.random.default_rng(seed).integers(0, asked.ranks, 40)).astype(np.int32)
    domain_G = (np.arange(asked.ranks) // 2).astype(np.int32)
    served = serve(asked, domain_G, routing.experts_TLK, source_T)
    expected = one_choice_at_a_time(asked, domain_G, routing.experts_TLK, source_T)
    np.testing.assert_array_equal(served.rank_TLK, expected.rank_TLK)
    np.testing.assert_array_equal(served.slot_TLK, expected.slot_TLK)


@pytest.mark.parametrize("rule", RULES)
def test_counts_are_those_of_the_simulator(rule: str) -> None:
    asked = question(ranks=4, groups=2, rule=rule)
    layout = Sites.of(load_cluster("dgx-h200"), asked.plan)
    (step, _) = draw_steps(asked.trace, asked.workload, ranks=4)
    served = serve(asked.plan, layout.domain_G, asked.trace.experts_TLK[step.token_T], step.source_T)
    traffic = count_traffic(asked.plan, layout, asked.trace.experts_TLK, step.token_T, step.source_T)
    for layer in range(asked.plan.layers):
        np.testing.assert_array_equal(served.choices_SD(layer, 4), layout.to_ranks(traffic.layer(layer).choices_SM))
        load_GP = np.zeros_like(traffic.layer(layer).load_GP)
        made = served.rank_TLK[:, layer] >= 0
        np.add.at(load_GP, (served.rank_TLK[:, layer][made], served.slot_TLK[:, layer][made]), 1)
        np.testing.assert_array_equal(load_GP, traffic.layer(layer).load_GP)


def test_what_one_rank_sends_is_what_the_others_receive() -> None:
    asked = question(ranks=4)
    source_T = np.repeat(np.arange(4, dtype=np.int32), 10)
    served = serve(asked.plan, np.zeros(4, np.int32), asked.trace.experts_TLK, source_T)
    for layer in range(asked.plan.layers):
        arrived = [[] for _ in range(4)]
        for source in range(4):
            tokens, choices = served.choices_from(source, layer)
            to = served.rank_TLK[tokens, layer, choices]
            assert (np.diff(to) >= 0).all()
            for token, choice, rank in zip(tokens, choices, to, strict=True):
                arrived[rank].append((token, choice))
        for rank in range(4):
            assert arrived[rank] == list(zip(*served.choices_to(rank, layer), strict=True))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["domain_G", "experts_TLK", "source_T"]))
def test_arrays_that_do_not_fit_are_refused(data: st.DataObject, name: str) -> None:
    arrays: dict[str, Any] = {
        "domain_G": np.zeros(4, np.int32),
        "experts_TLK": trace(tokens=40).experts_TLK,
        "source_T": np.arange(40) % 4,
    }
    arrays[name] = data.draw(bad_ids(arrays[name]))
    # 60,000 is the number of a domain that a cluster may have.
    assume(name != "domain_G" or not np.any(np.asarray(arrays[name], object) == 60_000))
    with pytest.raises((ValueError, TypeError), match=r"domain_G|experts_TLK|source_T"):
        serve(plan(ranks=4), **arrays)
