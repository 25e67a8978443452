"""Finer experts: what is made of some donors is what is made of all, and those of one share its tokens evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import NO_CHOICE, fit_trace
from moecast.traces.synthesis.finer import places_TK
from moecast.traces.synthesis.lift import lifted_rows
from moecast.traces.synthesis.shape import parse_shape
from tests.statistics.made import trace_of
from tests.statistics.made import uniform as uniform_rows

MODEL = fit_trace(trace_of(uniform_rows(800, 4, 12, 3), experts=12, lengths=[40] * 20))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["4x24x3", "9x40x5", "3x12x6", "6x5x2", "4x12x2"]), st.floats(0, 1), st.integers(0, 99))
def test_donors_that_are_not_needed_change_nothing(shape, share, seed):
    wanted = parse_shape(shape)
    needed_MT = np.random.default_rng(seed).random((wanted.layers, MODEL.donors.n_tokens)) < share
    seen = []
    whole = lifted_rows(MODEL, wanted, progress=lambda done, of: seen.append((done, of)))
    some = lifted_rows(MODEL, wanted, needed_MT=needed_MT)
    np.testing.assert_array_equal(some[needed_MT.T], whole[needed_MT.T])
    assert seen == [(layer + 1, wanted.layers) for layer in range(wanted.layers)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 5), st.integers(5, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_places_are_the_ranks_of_the_scores(tokens, choices, experts, alike, seed):
    """Every place once, so that equal parts get equally many tokens; in order, but within a bin."""
    rng = np.random.default_rng(seed)
    parent_TK = uniform_rows(tokens, 1, experts, choices, seed=seed % 1000)[:, 0]
    parent_TK[rng.random(parent_TK.shape) < 0.1] = NO_CHOICE
    sketch_TD = np.ones((tokens, 8), np.float32) if alike else rng.standard_normal((tokens, 8)).astype(np.float32)
    direction_ED = rng.standard_normal((experts, 8)).astype(np.float32)
    place_TK = places_TK(parent_TK, sketch_TD, direction_ED)
    assert (place_TK[parent_TK == NO_CHOICE] == 0).all()
    for expert in range(experts):
        token_X, _ = at = np.nonzero(parent_TK == expert)
        count = len(token_X)
        np.testing.assert_allclose(np.sort(place_TK[at]), (np.arange(count) + 0.5) / max(count, 1), atol=1e-6)
        score_X = (sketch_TD[token_X].astype(np.float64) @ direction_ED[expert])[np.argsort(place_TK[at])]
        width = np.ptp(score_X) / (65536 // experts) if count else 0.0
        assert (np.diff(score_X) >= -1.01 * width - 1e-5).all()


@pytest.mark.parametrize("shape", ["4x24x3", "4x48x3"])
def test_finer_experts_of_one_are_chosen_alike(shape):
    """Where a token makes as many choices as before, each finer expert gets its part of the expert's load.

    The blur moves a choice to another finer expert of the same one with the same probability either way: no finer
    expert is further from its part than four standard deviations of a count.
    """
    rows_TLK = MODEL.donors.trace.experts_TLK
    made = lifted_rows(MODEL, parse_shape(shape))
    finer = parse_shape(shape).experts // 12
    for layer in range(4):
        load_E = np.bincount(rows_TLK[:, layer].ravel(), minlength=12)
        found_M = np.sort(np.bincount(made[:, layer].ravel(), minlength=12 * finer))
        expected_M = np.sort(np.repeat(load_E / finer, finer))
        assert (np.abs(found_M - expected_M) < 4 * np.sqrt(expected_M)).all()
        assert found_M.sum() == load_E.sum()
