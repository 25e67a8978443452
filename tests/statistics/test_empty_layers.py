"""Layers at which nothing is chosen pull no mean towards them: neither of the statistics nor of a simulation."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.cli.stats_json import profile_json
from moecast.sim import Plan, Workload, simulate
from moecast.topology import load_cluster
from moecast.traces import NO_CHOICE, load_gini_L, profile_trace, trace_stats
from tests.sim.plan_cases import tiny_model
from tests.statistics.made import trace_of, uniform
from tests.strategies import traces

# What speaks of layers or files themselves, not of the mean over them.
NOT_MEANS = {"layers", "per_layer", "health", "model"}


def with_empty_layers(trace, before, after):
    """The same trace with layers around its own at which no token chooses anything."""
    tokens, layers, choices = trace.experts_TLK.shape
    ids = np.full((tokens, before + layers + after, choices), NO_CHOICE, np.uint16)
    ids[:, before : before + layers] = trace.experts_TLK
    meta = dataclasses.replace(trace.meta, layers=ids.shape[1])
    return dataclasses.replace(trace, meta=meta, experts_TLK=ids, weights_TLK=None)


def means(trace, ranks):
    value = profile_json(profile_trace(trace, n_ranks=ranks, lengths=(2, 4)), "contiguous")
    # which layer a pair of experts is of moves with the layers before it
    value["coactivation"]["top"] = [
        {name: what for name, what in pair.items() if name != "layer"} for pair in value["coactivation"]["top"]
    ]
    return {name: what for name, what in value.items() if name not in NOT_MEANS}


def used(trace):
    return (trace.experts_TLK < trace.meta.experts).any(axis=(0, 2)).all()


@settings(max_examples=25, deadline=None)
@given(traces(experts=(4, 12), tokens=(4, 60)).filter(used), st.integers(0, 2), st.integers(0, 2))
def test_no_statistic_changes_with_layers_that_hold_nothing(trace, before, after):
    trace = dataclasses.replace(trace, weights_TLK=None)
    found, expected = means(with_empty_layers(trace, before, after), 4), means(trace, 4)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, name)


def close(found, expected, where):
    """Equal but for rounding, all the way down."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            close(found[index], value, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), where
    else:
        assert found == expected, where


def test_a_layer_without_choices_has_no_value_of_its_own():
    trace = with_empty_layers(trace_of(uniform(400, 2, 8, 2), experts=8, lengths=[40] * 10), 1, 0)
    profile = profile_trace(trace, n_ranks=4)
    row = json.loads(json.dumps(profile_json(profile, "contiguous")))["per_layer"][0]
    assert row["fan_out"] == 0
    for name in ("balance_pooled", "gini", "token_sparsity", "coactivation", "affinity", "crossings"):
        assert row[name] is None, name
    assert all(value is None for value in row["chunk_sparsity"].values())
    assert np.isnan(load_gini_L(np.zeros((1, 4), np.int64))).all()


def test_a_trace_without_any_choice_has_no_means():
    stats = trace_stats(
        with_empty_layers(trace_of(uniform(8, 1, 4, 1), experts=4), 0, 1).select(slice(0, 0)),
        rank_of_expert_LE=np.zeros((2, 4), np.int64),
    )
    assert np.isnan([stats.gini, stats.fan_out, stats.balance_pooled]).all()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 99))
def test_a_simulation_leaves_them_out_and_says_so(before, after, seed):
    trace = trace_of(uniform(320, 3, 8, 2, seed=seed), experts=8, lengths=[32] * 10)
    wide = with_empty_layers(trace, before, after)
    cluster = load_cluster("dgx-h200", nodes=1)
    found = []
    for one in (trace, wide):
        model = tiny_model(one, dense_layers=0)
        plan = Plan.contiguous(model, cluster)
        workload = Workload(phase="prefill", tokens_per_rank=8, steps=2)
        found.append(simulate(cluster, model, plan, one, workload, network="bound", gains=False))
    expected, seen = found
    for name in ("balance", "balance_p5", "overload", "balance_pooled", "fan_out", "remote_fan_out", "fan_out_domains"):
        assert getattr(seen, name) == pytest.approx(getattr(expected, name)), name
    assert seen.crossings == pytest.approx(expected.crossings)
    assert seen.layer_time_s == pytest.approx(expected.layer_time_s, rel=0.01)
    told = [line for line in seen.warnings if "no choice at all" in line]
    assert told == [] if before + after == 0 else f"at {before + after} of {3 + before + after} MoE layers" in told[0]
