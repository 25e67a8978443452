"""Runs of equal rows are found whatever their share; honest routing has none, however few different rows it makes."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moecast.traces.statistics.equal_runs import LEAST_ROWS, DummyRuns, RunFinder
from tests.statistics.made import batches, trace_of, uniform


def find(trace, step=None) -> DummyRuns:
    finder = RunFinder()
    for batch in [trace] if step is None else batches(trace, step):
        finder.add(batch)
    return finder.found()


def routing(rng, rows, layers, experts, choices, skew):
    """Rows drawn independently, some experts far likelier than others: the more `skew`, the fewer different rows."""
    score_LE = skew * rng.exponential(size=(layers, experts))
    noise = rng.gumbel(size=(rows, layers, experts))
    return np.argsort(-(score_LE + noise), axis=2)[:, :, :choices].astype(np.uint16)


def commonest(ids):
    _, counts = np.unique(ids.reshape(len(ids), -1), axis=0, return_counts=True)
    return counts.max() / len(ids)


@st.composite
def honest(draw, rows=(64, 3000)):
    experts = draw(st.integers(2, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.integers(*rows)), draw(st.integers(1, 4)), experts, draw(st.integers(1, experts))
    return routing(rng, *sizes, skew=draw(st.floats(0, 6))), experts


@settings(max_examples=150, deadline=None)
@given(honest(rows=(1, 4000)))
def test_honest_routing_has_none(made):
    ids, experts = made
    assert find(trace_of(ids, experts=experts)).rows == 0


@settings(max_examples=100, deadline=None)
@given(honest(), st.integers(800, 60_000), st.floats(0, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_dummies_of_any_share_are_found_in_any_routing(made, dummies, place, known, seed):
    ids, experts = made
    assume(commonest(ids) < 0.7)
    rng = np.random.default_rng(seed)
    row = ids[rng.integers(len(ids))] if known else routing(rng, 1, *ids.shape[1:2], experts, ids.shape[2], 0)[0]
    at = int(place * len(ids))
    planted = np.concatenate([ids[:at], np.tile(row, (dummies, 1, 1)), ids[at:]])
    found = find(trace_of(planted, experts=experts))
    mask_T = found.mask_T(0, len(planted))
    assert len(found.start_R) == 1
    assert mask_T[at : at + dummies].all()
    assert (planted[mask_T] == row).all()
    assert found.rows == mask_T.sum()
    assert found.leading == (found.rows if found.start_R[0] == 0 else 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 400), st.integers(1, 30), st.integers(0, 99))
def test_short_runs_are_found_in_varied_routing(length, runs, seed):
    """Sixteen rows are enough where real rows hardly repeat; many runs of one and the same row, too."""
    ids = uniform(4000, 2, 32, 4, seed=seed)
    row = uniform(1, 2, 32, 4, seed=seed + 1000)[0]
    pieces = np.array_split(ids, runs + 1)
    planted = np.concatenate([x for piece in pieces for x in (piece, np.tile(row, (length, 1, 1)))][:-1])
    found = find(trace_of(planted, experts=32))
    assert (found.length_R == length).all()
    assert len(found.start_R) == runs
    assert (planted[found.mask_T(0, len(planted))] == row).all()


@settings(max_examples=60, deadline=None)
@given(honest(), st.lists(st.tuples(st.floats(0, 1), st.integers(2, 900)), max_size=4), st.integers(1, 700))
def test_batches_change_nothing(made, runs, step):
    ids, experts = made
    for place, length in runs:
        at = min(int(place * len(ids)), len(ids) - 1)
        ids = np.concatenate([ids[:at], np.repeat(ids[at : at + 1], length, axis=0), ids[at:]])
    trace = trace_of(ids, experts=experts)
    whole, cut = find(trace), find(trace, step)
    np.testing.assert_array_equal(whole.start_R, cut.start_R)
    np.testing.assert_array_equal(whole.length_R, cut.length_R)
    assert whole.leading == cut.leading
    masks = [whole.mask_T(first, min(step, len(ids) - first)) for first in range(0, len(ids), step)]
    np.testing.assert_array_equal(np.concatenate(masks), whole.mask_T(0, len(ids)))


def test_a_warm_up_may_have_several_batches():
    real = uniform(4000, 2, 32, 4)
    warm = [np.tile(row, (length, 1, 1)) for row, length in zip(uniform(3, 2, 32, 4, seed=1), (64, 4, 9), strict=True)]
    found = find(trace_of(np.concatenate([*warm, real]), experts=32))
    assert found.leading == found.rows == 64 + 4 + 9


def test_all_experts_chosen_is_no_dummy():
    assert find(trace_of(np.tile([[[0, 1, 2]]], (500, 2, 1)), experts=3)).rows == 0


def test_the_longest_run_of_a_coin_is_chance():
    """A thousand throws of a fair coin have runs of about ten; of a coin that is one-sided, of hundreds."""
    for share in (0.5, 0.9, 0.99, 0.999):
        for seed in range(20):
            ids = (np.random.default_rng(seed).random((20_000, 1, 1)) > share).astype(np.uint16)
            assert find(trace_of(ids, experts=2)).rows == 0, (share, seed)
    assert LEAST_ROWS > 10
