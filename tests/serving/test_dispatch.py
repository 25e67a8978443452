"""Dealing requests to ranks: instances in turn, the least busy rank of each, against a count by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moecast.sim.serving import Request
from moecast.sim.serving.dispatch import Dispatcher


@given(
    instances=st.integers(1, 4), each=st.integers(1, 4), ends=st.lists(st.integers(0, 30), max_size=20), seed=st.data()
)
def test_instances_take_turns_and_their_least_busy_rank_gets_it(
    instances: int, each: int, ends: list[int], seed: st.DataObject
) -> None:
    dispatcher = Dispatcher("instances_in_turn", instances * each, each=each)
    busy, at = [0] * (instances * each), {}
    for number in range(30):
        rank = dispatcher.choose(Request(id=number, arrival_s=0.0, prompt_tokens=3, output_tokens=2))
        own = range(number % instances * each, (number % instances + 1) * each)
        assert rank in own
        assert busy[rank] == min(busy[one] for one in own)
        busy[rank] += 1
        at[number] = rank
        if number in ends:
            gone = seed.draw(st.sampled_from(sorted(at)))
            busy[at[gone]] -= 1
            assert dispatcher.ended(gone) == at.pop(gone)
