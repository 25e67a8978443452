"""Which rank a sequence runs on: the same sequences in the same steps, sorted to ranks by their topic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import Workload, draw_steps
from moecast.sim.drawing import ranks_of_topics
from tests.cli.conftest import small_trace

TRACE = small_trace()


def topics_of_ranks(phase: str, placed: str, *, ranks: int = 8, seed: int = 0, steps: int = 2) -> np.ndarray:
    """Shares of topic 0 on each rank, per step [W, G], and the tokens of each step."""
    tokens = 96 if phase == "prefill" else 8
    workload = Workload(phase=phase, tokens_per_rank=tokens, steps=steps, seed=seed, request_placement=placed)
    drawn = draw_steps(TRACE, workload, ranks=ranks)
    shares = []
    for step in drawn:
        first_T = TRACE.topic_T[step.token_T] == 0
        count_G = np.bincount(step.source_T, minlength=ranks)
        np.testing.assert_array_equal(count_G, tokens)
        shares.append(np.bincount(step.source_T, first_T, ranks) / count_G)
    return np.array(shares)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 9999), ranks=st.sampled_from([2, 3, 8]))
def test_decode_runs_the_same_tokens_in_every_step(seed: int, ranks: int) -> None:
    drawn = {
        placed: draw_steps(
            TRACE,
            Workload(phase="decode", tokens_per_rank=6, steps=5, seed=seed, request_placement=placed),
            ranks=ranks,
        )
        for placed in ("any", "topic")
    }
    for one, two in zip(drawn["any"], drawn["topic"], strict=True):
        np.testing.assert_array_equal(np.sort(one.token_T), np.sort(two.token_T))
        np.testing.assert_array_equal(one.source_T, two.source_T)
    for step, after in zip(drawn["topic"], drawn["topic"][1:], strict=False):  # a running sequence stays on its rank
        rank_of = dict(zip(TRACE.sequence_T[step.token_T].tolist(), step.source_T.tolist(), strict=True))
        for sequence, rank in zip(TRACE.sequence_T[after.token_T].tolist(), after.source_T.tolist(), strict=True):
            assert rank_of.get(sequence, rank) == rank


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_ranks_serve_one_topic_each_but_for_what_does_not_fit(phase: str) -> None:
    mixed, sorted_ = (topics_of_ranks(phase, placed) for placed in ("any", "topic"))
    assert sorted_[:, :3].mean() > 0.9  # topics have half of the ranks each, in order
    assert sorted_[:, 5:].mean() < 0.1
    assert 0.2 < mixed[:, :3].mean() < 0.8


def test_ranks_are_shared_out_by_tokens() -> None:
    topic_S = np.array([0, 1, 2, -1])
    serves_SG = ranks_of_topics(topic_S, np.array([4, 3, 1, 5]), None, 4)
    np.testing.assert_array_equal(serves_SG.astype(int), [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    by_weight = ranks_of_topics(topic_S, np.array([4, 3, 1, 5]), np.array([0.25, 0.25, 0.5]), 4)
    np.testing.assert_array_equal(by_weight.sum(1), [1, 1, 2, 4])


def test_bad_values_are_said() -> None:
    with pytest.raises(MoecastError, match="request_placement = 'best': one of any, topic"):
        Workload(phase="prefill", tokens_per_rank=1, request_placement="best")
    with pytest.raises(MoecastError, match="not with steps as recorded"):
        Workload(phase="prefill", tokens_per_rank=1, steps_mode="as-recorded", request_placement="topic")
