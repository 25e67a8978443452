"""Advice: the oracle is no slower than the plan where links cost nothing, and words say what numbers do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moecast.placement import place
from moecast.placement.advice import Advice, spare_words
from moecast.placement.spare_slots import SpareSlots, with_slots
from moecast.sim import Plan, Workload

from .test_invariants import skewed_trace, small_cluster, small_model


def advice(contiguous_S, plan_S, oracle_S, copies="") -> Advice:
    return Advice(
        contiguous_S=np.array(contiguous_S), plan_S=np.array(plan_S), oracle_S=np.array(oracle_S), copies=copies
    )


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_oracle_is_no_slower_than_a_plan_and_a_plan_than_nothing(phase: str) -> None:
    trace = skewed_trace(0, layers=2, experts=16, choices=2, tokens=4096, phase=phase)
    found = place(
        small_cluster(1),
        small_model(2, 16, 2),
        trace,
        Workload(phase=phase, tokens_per_rank=16, steps=4),
        solver="balance",
        advise=True,
        work_limit=1000,
    )
    assert found.advice is not None
    assert found.advice.plan_S.mean() == pytest.approx(found.objective_s)
    assert 0 < found.advice.reached <= 1.02
    said = json.loads(json.dumps(found.to_json()))["advice"]
    assert said["words"] == found.advice.words()
    spare = said["spare_slots"]
    assert [one["spare"] for one in spare] == [0, 1, 2]
    assert spare[1]["memory_bytes"] == spare[2]["memory_bytes"] > 0
    assert any(word.startswith("how many redundant slots") for word in said["words"])
    per_choice = any("one travels for each choice" in line for line in said["words"])
    assert per_choice == (phase == "decode")
    assert sum("one travels for each choice" in note for note in found.table_notes()) == per_choice


def test_a_gain_within_the_error_is_no_gain() -> None:
    words = advice([1.0, 1.01], [0.99, 1.0], [0.985, 0.995]).words()
    assert "no difference shown" in words[1]
    assert "never" in words[3]
    assert words[4].startswith("leave experts in order")


def test_a_gain_that_every_pair_of_steps_shows_is_one() -> None:
    words = advice([1.0, 1.02, 1.01], [0.8, 0.81, 0.8], [0.6, 0.61, 0.6]).words()
    assert words[0].startswith("is balance your bottleneck? yes")
    assert "shorter (" in words[1]
    assert "less than 200 ms" in words[3]
    assert not any(word.startswith("leave experts") for word in words)


def test_steps_that_disagree_show_nothing() -> None:
    assert "no difference shown" in advice([1.0, 1.0], [0.6, 1.1], [0.6, 1.1]).words()[1]


def test_the_fewest_slots_that_no_more_are_shown_to_beat_are_worth_it() -> None:
    def tried(spare: int, *step_S: float) -> SpareSlots:
        return SpareSlots(spare=spare, memory_bytes=2**30, step_S=np.array(step_S) if step_S else None)

    slow, fast, faster = (1.0, 1.01), (0.9, 0.91), (0.895, 0.905)
    assert "memory? none;" in spare_words([tried(0, *slow), tried(1, *slow), tried(2)])[0]
    assert "2 do not fit" in spare_words([tried(0, *slow), tried(1, *slow), tried(2)])[0]
    assert "memory? 1 a rank;" in spare_words([tried(0, *slow), tried(1, *fast), tried(2, *faster)])[0]
    assert "not to be told from one step" in spare_words([tried(0, 1.0), tried(1, 0.5)])[0]
    assert "memory? 2 a rank;" in spare_words([tried(0, *slow), tried(1, *slow), tried(2, *fast)])[0]


def test_spare_slots_are_there_for_a_replica_of_each_expert() -> None:
    plan = with_slots(Plan.contiguous(layers=2, experts=6, choices=2, ep=4, slots_per_rank=2), 3)
    plan.check_legal()
    assert plan.max_slots == 3
    assert (plan.slots_DLGP >= 0).sum() == 12
