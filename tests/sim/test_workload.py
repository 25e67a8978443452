"""Which tokens are in flight together: the rules of docs/design.md 6, on random traces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim.drawn_steps import draw_steps
from moecast.sim.workload import Workload
from moecast.traces import PHASES, RoutingTrace, TraceMeta

TOPICS = ("law", "code", "prose")


def make_trace(lengths, topics=None, *, phase="prefill", names=TOPICS, shuffle_seed=None, first_position=0):
    """A trace of sequences of these lengths; routing is empty, since a Workload does not look at it."""
    lengths = np.asarray(lengths)
    tokens = int(lengths.sum())
    sequence_T = np.repeat(np.arange(len(lengths)), lengths)
    position_T = np.concatenate([np.arange(n) for n in lengths]) + first_position
    topic_S = np.arange(len(lengths)) % len(names) if topics is None else np.asarray(topics)
    order = np.arange(tokens) if shuffle_seed is None else np.random.default_rng(shuffle_seed).permutation(tokens)
    return RoutingTrace(
        meta=TraceMeta(model="m", layers=1, experts=2, choices=1),
        experts_TLK=np.zeros((tokens, 1, 1), np.uint16),
        sequence_T=sequence_T[order].astype(np.uint32),
        position_T=position_T[order].astype(np.uint32),
        phase_T=np.full(tokens, PHASES.index(phase), np.uint8),
        topics=names,
        topic_T=topic_S[sequence_T][order].astype(np.int16),
    )


@st.composite
def cases(draw, phase):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=40))
    trace = make_trace(lengths, phase=phase, shuffle_seed=draw(st.none() | st.integers(0, 5)))
    workload = Workload(
        phase=phase,
        tokens_per_rank=draw(st.integers(1, 12)),
        steps=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 3)),
        reuse=draw(st.booleans()),
        one_topic_per_step=draw(st.booleans()),
        topics=draw(st.sampled_from([None, ("law",), {"law": 2.0, "code": 1.0}])),
    )
    return trace, workload, draw(st.integers(1, 4))


def drawn(trace, workload, ranks):
    """The steps, or None where the trace is too small or lacks a topic."""
    try:
        return draw_steps(trace, workload, ranks=ranks)
    except MoecastError:
        return None


def check_common(trace, workload, ranks, steps):
    assert len(steps) == workload.steps
    for step in steps:
        assert (step.tokens_G(ranks) == workload.tokens_per_rank).all()
        assert step.source_T.min() >= 0
        assert step.source_T.max() < ranks
        assert (np.diff(step.source_T) >= 0).all()
        np.testing.assert_array_equal(step.context_T, trace.position_T[step.token_T] + 1)
        found = {trace.topics[i] for i in trace.topic_T[step.token_T]}
        allowed = TOPICS if workload.topics is None else tuple(workload.topics)
        assert found <= set(allowed)
        if workload.one_topic_per_step or step.topic is not None:
            assert found == {step.topic}
    if not workload.reuse:
        rows = np.concatenate([step.token_T for step in steps])
        assert len(np.unique(rows)) == len(rows)
    again = draw_steps(trace, workload, ranks=ranks)
    for step, same in zip(steps, again, strict=True):
        np.testing.assert_array_equal(step.token_T, same.token_T)


@given(cases("prefill"))
@settings(max_examples=150, deadline=None)
def test_prefill_fills_ranks_exactly_and_goes_on_where_it_stopped(case):
    trace, workload, ranks = case
    steps = drawn(trace, workload, ranks)
    if steps is None:
        return
    check_common(trace, workload, ranks, steps)
    if workload.reuse:
        return
    where = {}  # sequence -> (rank, next position)
    length_S = np.bincount(trace.sequence_T)
    for step in steps:
        for row, rank, last in zip(step.token_T, step.source_T, step.last_T, strict=True):
            sequence, position = int(trace.sequence_T[row]), int(trace.position_T[row])
            assert where.get(sequence, (rank, 0)) == (rank, position)
            where[sequence] = (rank, position + 1)
            assert last == (position + 1 == length_S[sequence])


@given(cases("decode"))
@settings(max_examples=150, deadline=None)
def test_decode_takes_successive_positions_of_running_sequences(case):
    trace, workload, ranks = case
    steps = drawn(trace, workload, ranks)
    if steps is None:
        return
    check_common(trace, workload, ranks, steps)
    length_S = np.bincount(trace.sequence_T)
    running = {}  # pool topic -> rows of its last step
    for step in steps:
        pool = step.topic if workload.one_topic_per_step else None
        if pool in running:
            before = running[pool]
            ended = trace.position_T[before] + 1 == length_S[trace.sequence_T[before]]
            same = trace.sequence_T[step.token_T] == trace.sequence_T[before]
            assert (same | ended).all()
            np.testing.assert_array_equal(
                trace.position_T[step.token_T], np.where(ended, 0, trace.position_T[before] + 1)
            )
        running[pool] = step.token_T
        if not workload.reuse:
            assert len(np.unique(trace.sequence_T[step.token_T])) == step.n_tokens
        np.testing.assert_array_equal(step.logits_G(ranks), step.tokens_G(ranks))


@given(cases("prefill"), st.sampled_from(["prefill", "decode"]))
@settings(max_examples=100, deadline=None)
def test_the_most_that_fits_is_named_and_fits(case, phase):
    trace, workload, ranks = case
    changes = {"phase": phase, "from_phase": "prefill", "tokens_per_rank": 400, "topics": None, "reuse": False}
    workload = Workload(**{name: changes.get(name, getattr(workload, name)) for name in Workload.__dataclass_fields__})
    with pytest.raises(MoecastError, match="too small") as caught:
        draw_steps(trace, workload, ranks=ranks)
    line = str(caught.value)
    assert "tokens_per_rank = 400" in line

    def fit(tokens):
        smaller = {name: getattr(workload, name) for name in Workload.__dataclass_fields__} | {
            "tokens_per_rank": tokens
        }
        return tokens == 0 or drawn(trace, Workload(**smaller), ranks) is not None

    what = "sequences" if phase == "decode" else "tokens"
    most = 0 if "nothing fits" in line else int(line.split(f" {what} per rank fit")[0].split()[-1])
    assert fit(most)
    assert not fit(most + 1)


def test_the_number_of_steps_that_fit_is_named():
    trace = make_trace([10] * 10)
    with pytest.raises(MoecastError, match=r"12 tokens per rank fit 4 steps, 1 steps fit as asked"):
        draw_steps(trace, Workload(phase="prefill", tokens_per_rank=40, steps=4), ranks=2)


def test_decode_starts_in_mid_service_and_seeds_differ():
    trace = make_trace([100] * 64, phase="decode")
    first, other = (
        draw_steps(trace, Workload(phase="decode", tokens_per_rank=8, steps=1, seed=seed), ranks=4)[0]
        for seed in (0, 1)
    )
    assert 30 < first.context_T.mean() < 70
    assert len(np.unique(first.context_T)) > 20
    assert not np.array_equal(first.token_T, other.token_T)


def test_context_can_be_set_for_decode_only():
    trace = make_trace([10] * 10, phase="decode")
    step = draw_steps(trace, Workload(phase="decode", tokens_per_rank=2, steps=1, context=4096), ranks=2)[0]
    assert (step.context_T == 4096).all()
    with pytest.raises(MoecastError, match="only decode"):
        Workload(phase="prefill", tokens_per_rank=2, context=4096)


def test_decode_from_prefill_rows_says_so():
    trace = make_trace([10] * 10, phase="prefill")
    with pytest.raises(MoecastError, match="phase = 'decode': the trace holds prefill only"):
        draw_steps(trace, Workload(phase="decode", tokens_per_rank=2), ranks=2)
    workload = Workload(phase="decode", tokens_per_rank=2, steps=2, from_phase="prefill")
    assert workload.label == "decode drawn from prefill routing"
    assert [step.phase for step in draw_steps(trace, workload, ranks=2)] == ["decode", "decode"]
    assert Workload(phase="prefill", tokens_per_rank=1).label == ""


def test_topic_weights_are_kept_in_tokens_and_in_sequences():
    trace = make_trace([5] * 300)
    weights = {"law": 3.0, "code": 1.0, "prose": 0.0}
    for phase in ("prefill", "decode"):
        workload = Workload(phase=phase, from_phase="prefill", tokens_per_rank=20, steps=2, topics=weights)
        steps = draw_steps(trace, workload, ranks=2)
        share = np.mean(np.concatenate([trace.topic_T[step.token_T] for step in steps]) == 0)
        assert share == pytest.approx(0.75, abs=0.08)


def test_weights_hold_when_a_scarce_topic_is_reused():
    trace = make_trace([5] * 20, topics=[0] * 19 + [1])
    workload = Workload(phase="prefill", tokens_per_rank=100, steps=4, topics={"law": 1, "code": 1}, reuse=True)
    steps = draw_steps(trace, workload, ranks=2)
    assert np.mean(np.concatenate([trace.topic_T[step.token_T] for step in steps])) == pytest.approx(0.5, abs=0.02)


def test_topics_take_turns():
    trace = make_trace([50] * 30)
    workload = Workload(phase="prefill", tokens_per_rank=10, steps=6, one_topic_per_step=True)
    topics = [step.topic for step in draw_steps(trace, workload, ranks=2)]
    assert set(topics[:3]) == set(TOPICS)
    assert topics[:3] == topics[3:]
    workload = Workload(
        phase="prefill", tokens_per_rank=10, steps=6, one_topic_per_step=True, topics={"law": 2, "code": 1}
    )
    topics = [step.topic for step in draw_steps(trace, workload, ranks=2)]
    assert sorted(topics) == ["code"] * 2 + ["law"] * 4


def test_sequences_without_a_topic_are_drawn_only_without_restriction():
    trace = make_trace([10] * 4, topics=[-1, -1, 0, 0])
    assert draw_steps(trace, Workload(phase="prefill", tokens_per_rank=40, steps=1), ranks=1)
    with pytest.raises(MoecastError, match="20 tokens per rank fit"):
        draw_steps(trace, Workload(phase="prefill", tokens_per_rank=40, steps=1, topics=("law",)), ranks=1)
    bare = make_trace([10] * 4, topics=[-1] * 4)
    with pytest.raises(MoecastError, match="knows no topics"):
        draw_steps(bare, Workload(phase="prefill", tokens_per_rank=4, one_topic_per_step=True), ranks=1)


@pytest.mark.parametrize(
    ("topics", "rule"),
    [(("sport",), "the trace's topics: law, code, prose"), (("prose",), "holds no prefill token of this topic")],
)
def test_a_topic_that_is_not_there_is_named(topics, rule):
    trace = make_trace([10] * 4, topics=[0, 1, 0, 1])
    with pytest.raises(MoecastError, match=rule):
        draw_steps(trace, Workload(phase="prefill", tokens_per_rank=1, topics=topics), ranks=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phase", "train"),
        ("from_phase", "1e999"),
        ("tokens_per_rank", 0),
        ("tokens_per_rank", 1.5),
        ("steps", 0),
        ("seed", -1),
        ("steps_mode", "guessed"),
        ("topics", {"law": -1.0}),
        ("topics", {"law": 0.0}),
        ("topics", ()),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(MoecastError) as caught:
        Workload(**{"phase": "prefill", "tokens_per_rank": 4, field: value})
    assert field.removesuffix("_mode") in str(caught.value)


def test_a_workload_beyond_reason_is_refused_before_memory_is_taken():
    with pytest.raises(MoecastError, match="tokens in all"):
        draw_steps(make_trace([9]), Workload(phase="prefill", tokens_per_rank=10**9, reuse=True), ranks=8)


def test_an_unknown_phase_to_draw_from_is_refused():
    with pytest.raises(MoecastError, match="from_phase = 'warmup'"):
        draw_steps(make_trace([9]), Workload(phase="decode", tokens_per_rank=1, from_phase="warmup"), ranks=1)


def recorded_trace(steps, ranks):
    trace = make_trace([6] * 8)
    rng = np.random.default_rng(0)
    columns = trace.columns() | {
        "step_T": np.sort(rng.integers(10, 10 + steps, trace.n_tokens)).astype(np.uint32),
        "source_rank_T": rng.integers(0, ranks, trace.n_tokens).astype(np.uint16),
    }
    return RoutingTrace(meta=trace.meta, topics=trace.topics, **columns)


def test_steps_as_recorded():
    trace = recorded_trace(steps=4, ranks=3)
    workload = Workload(phase="prefill", tokens_per_rank=1, steps=4, steps_mode="as-recorded")
    steps = draw_steps(trace, workload, ranks=3)
    assert sum(step.n_tokens for step in steps) == trace.n_tokens
    for number, step in enumerate(steps):
        assert (trace.step_T[step.token_T] == 10 + number).all()
        np.testing.assert_array_equal(trace.source_rank_T[step.token_T], step.source_T)
        assert (np.diff(step.source_T) >= 0).all()
    with pytest.raises(MoecastError, match="recorded on 3 ranks, the plan has 2"):
        draw_steps(trace, workload, ranks=2)
    with pytest.raises(MoecastError, match="the trace has 4 recorded steps"):
        draw_steps(trace, Workload(phase="prefill", tokens_per_rank=1, steps=5, steps_mode="as-recorded"), ranks=3)
    with pytest.raises(MoecastError, match="did not record step"):
        draw_steps(make_trace([9]), workload, ranks=3)
    with pytest.raises(MoecastError, match="not with steps as recorded"):
        Workload(phase="prefill", tokens_per_rank=1, steps_mode="as-recorded", reuse=True)


def test_sums_by_rank():
    trace = make_trace([7, 4, 9, 9, 9])
    step = draw_steps(trace, Workload(phase="prefill", tokens_per_rank=10, steps=1), ranks=2)[0]
    for rank in range(2):
        own = step.source_T == rank
        longest = {}
        for row, context in zip(step.token_T[own], step.context_T[own], strict=True):
            longest[int(trace.sequence_T[row])] = int(context)
        assert step.held_G(2)[rank] == sum(longest.values())
        assert step.held_G(2, window=5)[rank] == sum(min(n, 5) for n in longest.values())
        assert step.logits_G(2)[rank] == step.last_T[own].sum()


def test_the_shared_trace_fills_32_ranks_quickly(shared_traces):
    from time import perf_counter

    from moecast.traces import import_npz

    trace = import_npz(shared_traces / "deepseek-v2-lite.npz", model="deepseek-v2-lite")
    workload = Workload(phase="prefill", tokens_per_rank=4096, steps=16, reuse=True)
    draw_steps(trace, workload, ranks=32)
    start = perf_counter()
    steps = draw_steps(trace, workload, ranks=32)
    assert perf_counter() - start < 3
    assert len(steps) == 16
