"""The evidence finds structure where there is some, none where there is none, and plenty in the shipped trace."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moecast.traces import NO_CHOICE, RoutingTrace, TraceMeta, read_trace, shipped_trace_path
from moecast.traces.capture.own.evidence import Evidence, by_load, evidence, layers_apart, table, uniform

META = TraceMeta(model="made up", layers=3, experts=16, choices=4)


def made(seed: int = 0, tokens: int = 3000) -> RoutingTrace:
    """A trace without any structure: 100 sequences of 3 topics that choose evenly."""
    rng = np.random.default_rng(seed)
    sequence_T = np.repeat(np.arange(100), tokens // 100).astype(np.uint32)
    blank = RoutingTrace(
        meta=META,
        experts_TLK=np.zeros((tokens, 3, 4), np.uint16),
        sequence_T=sequence_T,
        position_T=np.zeros(tokens, np.uint32),
        phase_T=np.full(tokens, 1, np.uint8),
        topics=("a", "b", "c"),
        topic_T=(sequence_T % 3).astype(np.int16),
    )
    return uniform(blank, rng)


def found(trace: RoutingTrace) -> list[Evidence]:
    return list(evidence(trace, draws=20))


def test_a_router_without_structure_shows_none() -> None:
    assert all(abs(one.z) < 5 for one in found(made()))


def test_each_statistic_sees_its_own_structure_and_no_other() -> None:
    trace = made()
    loaded, paired, topical, followed = (trace.experts_TLK.copy() for _ in range(4))
    loaded[trace.experts_TLK == 0] = 1
    paired[:, :, :2] = paired[:, :, 2:] ^ 1
    topical[trace.topic_T == 0] //= 2
    followed[:, 1] = followed[:, 0]
    for index, experts_TLK in ((0, loaded), (1, paired), (2, topical), (3, followed)):
        scores = [one.z for one in found(dataclasses.replace(trace, experts_TLK=experts_TLK))]
        assert scores[index] > 20, (index, scores)
    assert layers_apart(trace, np.random.default_rng(0)).experts_TLK.sum() == trace.experts_TLK.sum()


def test_shuffled_routers_leave_empty_choices_empty() -> None:
    trace = made()
    experts_TLK = trace.experts_TLK.copy()
    experts_TLK[::2, :, 2:] = NO_CHOICE
    trace = dataclasses.replace(trace, experts_TLK=experts_TLK)
    shuffled = by_load(trace, np.random.default_rng(0))
    assert np.array_equal(shuffled.experts_TLK == NO_CHOICE, experts_TLK == NO_CHOICE)
    assert all(abs(one.z) < 5 for one in found(trace))


def test_tokens_without_topic_are_refused() -> None:
    trace = made()
    with pytest.raises(ValueError, match="every topic"):
        evidence(dataclasses.replace(trace, topic_T=np.full_like(trace.topic_T, -1)))


def test_the_table_has_a_row_per_statistic() -> None:
    assert table(evidence(made(), draws=3)).count("\n") == 5


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_shipped_trace_is_far_from_every_shuffled_router(phase: str) -> None:
    trace = read_trace(shipped_trace_path(), phase=phase)
    for one in evidence(trace, draws=6):
        assert one.z > 20, one
        assert one.observed > 1.5 * one.shuffled, one


def test_the_shipped_trace_is_what_its_users_count_on() -> None:
    path = shipped_trace_path()
    assert path.stat().st_size <= 8 << 20
    trace = read_trace(path)
    assert (trace.meta.layers, trace.meta.experts, trace.meta.choices) == (8, 64, 6)
    assert len(trace.topics) == 6
    for half in trace.select(trace.phase_T == 2).split(0.5):
        assert len(np.unique(half.sequence_T)) >= 1024
    assert trace.source_rank_T is None
    assert trace.weights_TLK is None
    assert {"hardware", "software", "commit", "date", "corpus_sha256", "training"} <= set(trace.meta.source)
