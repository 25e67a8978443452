"""The whole profile: the same for any batches and shards, JSON, speed of import."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.traces import TraceWriter, contiguous_ranks_LE, iter_trace, profile_trace, trace_stats, write_trace
from tests.statistics.made import batches, trace_of, uniform
from tests.strategies import traces

PROPERTY = settings(deadline=None, max_examples=15)


def assert_same(one, two):
    assert json.dumps(one.to_json(), sort_keys=True) == json.dumps(two.to_json(), sort_keys=True)
    for name in ("coactivation_LEE", "transition_LEE", "fan_out_LF", "same_rank_L", "pairs_L", "rank_load_LG"):
        np.testing.assert_array_equal(getattr(one.stats, name), getattr(two.stats, name))


@PROPERTY
@given(traces(tokens=(1, 60)), st.data())
def test_a_profile_does_not_depend_on_batches(trace, data):
    order = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(trace.n_tokens)
    mixed = trace.select(order)
    ask = {
        "n_ranks": data.draw(st.integers(1, trace.meta.experts)),
        "domain_size": data.draw(st.integers(1, 4)),
        "lengths": (1, 3),
        "sample_choices": data.draw(st.sampled_from([1 << 20, max(1, mixed.experts_TLK.size // 2)])),
    }
    assert_same(
        profile_trace(mixed, **ask), profile_trace(batches(mixed, data.draw(st.integers(1, trace.n_tokens))), **ask)
    )


def test_shards_do_not_change_a_profile(tmp_path):
    trace = trace_of(
        uniform(900, 3, 8, 2), experts=8, lengths=[30] * 30, topics=("a", "b"), topic_Q=[1, 0] * 15, ids_T=range(900)
    )
    write_trace(trace, tmp_path / "one.parquet")
    with TraceWriter(tmp_path / "many", trace.meta, shard_tokens=100) as writer:
        for batch in batches(trace, 77):
            writer.append(batch)
    whole = profile_trace(trace)
    assert_same(whole, profile_trace(iter_trace(tmp_path / "one.parquet")))
    assert_same(whole, profile_trace(iter_trace(tmp_path / "many", batch_tokens=41)))


@PROPERTY
@given(traces(), st.integers(1, 5), st.integers(1, 5))
def test_fan_out_by_domain_counts_domains(trace, ranks, size):
    ranks = min(ranks, trace.meta.experts)
    found = profile_trace(trace, n_ranks=ranks, domain_size=size)
    domain_LE = contiguous_ranks_LE(trace.meta, ranks) // size
    want = trace_stats(trace, rank_of_expert_LE=domain_LE)
    np.testing.assert_array_equal(found.fan_out_domains_LF, want.fan_out_LF)
    assert found.fan_out_domains == pytest.approx(want.fan_out)
    assert found.fan_out_domains <= found.stats.fan_out
    made = (trace.experts_TLK < trace.meta.experts).sum(axis=2).mean()
    assert found.token_sparsity == pytest.approx(1 - made / trace.meta.experts)


def test_json_is_plain_and_complete():
    value = profile_trace(trace_of(uniform(50, 2, 8, 2), experts=8)).to_json()
    json.dumps(value, allow_nan=False)
    assert {"meta", "locality", "affinity", "drift", "health", "load_LE", "dependence"} <= value.keys()
    assert value["dependence"]["token_id_L"] is None
    assert len(value["load_LE"]) == 2


def test_a_sample_says_so():
    trace = trace_of(uniform(20_000, 1, 8, 1), experts=8, lengths=[100] * 200)
    found = profile_trace(trace, sample_choices=5000)
    assert found.sample_tokens <= 5000
    assert found.sample_share < 0.5
    assert found.stats.tokens == 20_000
    assert found.dependence.tokens == found.sample_tokens


def test_the_seed_draws_the_sample_and_nothing_else():
    trace = trace_of(uniform(20_000, 1, 8, 1), experts=8, lengths=[100] * 200, ids_T=np.arange(20_000) % 9)
    one, same, other = (profile_trace(trace, sample_choices=5000, seed=seed).to_json() for seed in (1, 1, 2))
    assert one == same
    assert one["load_LE"] == other["load_LE"]
    assert one["locality"] != other["locality"]


@pytest.mark.parametrize(
    ("source", "ask", "words"),
    [
        (iter(()), {}, "no tokens"),
        (trace_of(np.zeros((0, 1, 1)), experts=4, lengths=[0]), {}, "no tokens"),
        (trace_of(uniform(9, 1, 4, 1), experts=4), {"n_ranks": 9}, "n_ranks"),
        (trace_of(uniform(9, 1, 4, 1), experts=4), {"domain_size": 0}, "domain_size"),
    ],
)
def test_what_cannot_be_profiled_is_refused(source, ask, words):
    with pytest.raises(ValueError, match=words):
        profile_trace(source, **ask)


def test_memory_does_not_grow_with_tokens():
    """Counted by what is held after a trace and after one ten times as long."""
    code = (
        "import resource, numpy as np\n"
        "from moecast.traces import profile_trace\n"
        "from tests.statistics.made import trace_of, uniform\n"
        "ids = uniform(20_000, 8, 64, 8)\n"
        "def many(n):\n"
        "    for part in range(n):\n"
        "        first = np.uint32(100 * part)\n"
        "        sequence_T = np.repeat(np.arange(100, dtype=np.uint32), 200) + first\n"
        "        yield trace_of(ids, experts=64, lengths=[200] * 100, sequence_T=sequence_T)\n"
        "def held(n):\n"
        "    profile_trace(many(n), sample_choices=1 << 17)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(held(2), held(16))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    few, many = (int(kib) for kib in done.stdout.split())
    assert many - few < 20_000  # KiB; fourteen batches of choices are 35,000
