import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.traces import (
    NO_CHOICE,
    LoadTable,
    TraceCounter,
    TraceMeta,
    balance_pooled,
    coactivation_LEE,
    contiguous_ranks_LE,
    crossings,
    fan_out,
    import_npz,
    load_LE,
    read_load_table,
    trace_stats,
    transition_LEE,
    write_load_table,
)
from tests.strategies import traces
from tests.traces.small import small

PROPERTY = settings(deadline=None, max_examples=40)


def chosen(trace, token, layer):
    return [int(e) for e in trace.experts_TLK[token, layer] if e != NO_CHOICE]


def by_hand(trace, ranks_LE):
    """Every statistic by the words of its definition, in plain loops."""
    layers, experts, _ = trace.meta.shape_LEK
    load = np.zeros((layers, experts), int)
    together = np.zeros((layers, experts, experts), int)
    after = np.zeros((layers - 1, experts, experts), int)
    fans, same, pairs = [], 0, 0
    for token, layer in itertools.product(range(trace.n_tokens), range(layers)):
        here = chosen(trace, token, layer)
        for one in here:
            load[layer, one] += 1
        for one, two in itertools.product(here, here):
            together[layer, one, two] += 1
        fans.append(len({ranks_LE[layer, one] for one in here}))
        if layer + 1 < layers:
            for one, two in itertools.product(here, chosen(trace, token, layer + 1)):
                after[layer, one, two] += 1
                same += ranks_LE[layer, one] == ranks_LE[layer + 1, two]
                pairs += 1
    return load, together, after, float(np.mean(fans)), 1 - same / pairs if pairs else float("nan")


@PROPERTY
@given(traces(), st.data())
def test_all_statistics_equal_their_definitions(trace, data):
    layers, experts, _ = trace.meta.shape_LEK
    n_ranks = data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ranks_LE = rng.integers(0, n_ranks, (layers, experts))
    load, together, after, fan, crossing = by_hand(trace, ranks_LE)
    stats = trace_stats(trace, rank_of_expert_LE=ranks_LE, n_ranks=n_ranks, coactivation=True, transition=True)
    np.testing.assert_array_equal(stats.load_LE, load)
    np.testing.assert_array_equal(stats.coactivation_LEE, together)
    np.testing.assert_array_equal(stats.transition_LEE, after)
    assert stats.fan_out == pytest.approx(fan)
    assert stats.crossings == pytest.approx(crossing, nan_ok=True)
    rank_load = np.array([np.bincount(ranks_LE[i], load[i], n_ranks) for i in range(layers)])
    loaded = rank_load[rank_load.sum(axis=1) > 0]
    expected = (loaded.mean(axis=1) / loaded.max(axis=1)).mean() if len(loaded) else float("nan")
    assert stats.balance_pooled == pytest.approx(expected, nan_ok=True)
    assert stats.load_LE.sum() == (trace.experts_TLK != NO_CHOICE).sum()


@PROPERTY
@given(traces(), st.data())
def test_batches_add_up_to_the_whole(trace, data):
    step = data.draw(st.integers(1, trace.n_tokens))
    ranks_LE = contiguous_ranks_LE(trace.meta, data.draw(st.integers(1, trace.meta.experts)))
    ask = {"rank_of_expert_LE": ranks_LE, "coactivation": True, "transition": True}
    whole = trace_stats(trace, **ask)
    parts = trace_stats((trace.select(slice(i, i + step)) for i in range(0, trace.n_tokens, step)), **ask)
    for name in type(whole).__dataclass_fields__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_counts_spill_before_they_overflow(monkeypatch):
    monkeypatch.setattr("moecast.traces.statistics.counter._SPILL_TOKENS", 5)
    counter = TraceCounter(small().meta, coactivation=True, transition=True)
    for _ in range(7):
        counter.add(small())
    stats = counter.stats()
    assert counter.stats().load_LE.tolist() == stats.load_LE.tolist() == [[28, 28, 0, 0]] * 2
    assert stats.coactivation_LEE[0, 0, 1] == stats.transition_LEE[0, 1, 0] == 28


def test_blocks_do_not_change_the_counts():
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(6, dtype=np.uint16), (2000, 3, 1)), axis=2)[:, :, :3].copy()
    trace = small(2000, 3, 6, 3, experts_TLK=ids)
    ranks_LE = contiguous_ranks_LE(trace.meta, 3)
    load, together, after, fan, crossing = by_hand(trace, ranks_LE)
    np.testing.assert_array_equal(load_LE(trace), load)
    np.testing.assert_array_equal(coactivation_LEE(trace), together)
    np.testing.assert_array_equal(transition_LEE(trace), after)
    assert fan_out(trace, ranks_LE) == pytest.approx(fan)
    assert crossings(trace, ranks_LE) == pytest.approx(crossing)


@pytest.mark.parametrize("n_ranks", [5, 64, 65, 130])
def test_threads_and_many_ranks_change_no_count(monkeypatch, n_ranks):
    monkeypatch.setattr("moecast.traces.statistics.counter._MIN_PART", 100)
    rng = np.random.default_rng(n_ranks)
    ids = rng.permuted(np.tile(np.arange(130, dtype=np.uint16), (700, 2, 1)), axis=2)[:, :, :5].copy()
    ids[rng.random(ids.shape) < 0.1] = NO_CHOICE
    trace = small(700, 2, 130, 5, experts_TLK=ids)
    ranks_LE = rng.integers(0, n_ranks, (2, 130))
    load, together, after, fan, crossing = by_hand(trace, ranks_LE)
    batches = [trace.select(slice(0, 300)), trace.select(slice(300, 301)), trace.select(slice(301, None))]
    for threads in (1, 2, 7):
        monkeypatch.setenv("MOECAST_THREADS", str(threads))
        stats = trace_stats(batches, rank_of_expert_LE=ranks_LE, n_ranks=n_ranks, coactivation=True, transition=True)
        np.testing.assert_array_equal(stats.load_LE, load)
        np.testing.assert_array_equal(stats.coactivation_LEE, together)
        np.testing.assert_array_equal(stats.transition_LEE, after)
        assert stats.fan_out == pytest.approx(fan)
        assert stats.crossings == pytest.approx(crossing)


def test_crossings_are_left_out_where_not_asked_for():
    trace = small()
    counter = TraceCounter(trace.meta, rank_of_expert_LE=contiguous_ranks_LE(trace.meta, 2), crossings=False)
    counter.add(trace)
    assert counter.stats().fan_out == 1
    with pytest.raises(ValueError, match="not counted"):
        _ = counter.stats().crossings


def test_many_choices_of_a_token_do_not_overflow():
    """Choices of 1024 experts on one rank, which makes 2**20 pairs per token."""
    ids = np.tile(np.arange(1024, dtype=np.uint16), (3, 2, 1))
    trace = small(3, 2, 1024, 1024, experts_TLK=ids)
    stats = trace_stats(trace, rank_of_expert_LE=np.zeros((2, 1024), int))
    assert stats.fan_out == 1
    assert stats.same_rank_L.tolist() == stats.pairs_L.tolist() == [3 << 20]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²", "9999"])
def test_a_bad_number_of_threads_is_refused(monkeypatch, text):
    monkeypatch.setenv("MOECAST_THREADS", text)
    with pytest.raises(MoecastError, match="MOECAST_THREADS"):
        trace_stats(small())


def test_gini_in_closed_form():
    one_takes_all = small(experts_TLK=np.tile(np.array([[[0]]], np.uint16), (4, 2, 1)), choices=1)
    assert trace_stats(one_takes_all).gini == pytest.approx(3 / 4)
    all_alike = small(experts_TLK=np.tile(np.arange(4, dtype=np.uint16)[:, None, None], (1, 2, 1)), choices=1)
    assert trace_stats(all_alike).gini == pytest.approx(0)


def test_nothing_chosen_is_nan_and_not_an_error():
    empty = small(experts_TLK=np.full((4, 2, 2), NO_CHOICE, np.uint16))
    stats = trace_stats(empty, rank_of_expert_LE=contiguous_ranks_LE(empty.meta, 2))
    assert np.isnan([stats.balance_pooled, stats.crossings, stats.fan_out, stats.gini]).all()


def test_an_idle_rank_counts_towards_balance():
    trace = small()  # all choices fall on experts 0 and 1
    ranks_LE = np.array([[0, 1, 1, 1]] * 2)
    assert balance_pooled(trace, ranks_LE) == 1
    assert balance_pooled(trace, ranks_LE, n_ranks=4) == 0.5


def test_contiguous_ranks_of_sizes_that_do_not_divide():
    meta = TraceMeta(model="m", layers=2, experts=7, choices=1)
    assert contiguous_ranks_LE(meta, 3).tolist() == [[0, 0, 0, 1, 1, 2, 2]] * 2
    for ranks in (0, 8):
        with pytest.raises(ValueError, match="n_ranks"):
            contiguous_ranks_LE(meta, ranks)


@pytest.mark.parametrize("ranks", [[[0, 1]], [[0, 0, 0, -1]] * 2, [[0.5] * 4] * 2, [[0, 1, 2, 9]] * 2])
def test_ranks_that_do_not_fit_are_refused(ranks):
    with pytest.raises((ValueError, TypeError), match="rank_of_expert_LE"):
        trace_stats(small(), rank_of_expert_LE=ranks, n_ranks=4)


def test_what_was_not_counted_cannot_be_asked():
    stats = trace_stats(small())
    with pytest.raises(ValueError, match="not counted"):
        _ = stats.fan_out
    with pytest.raises(ValueError, match="no batches"):
        trace_stats(iter(()))
    with pytest.raises(ValueError, match="L, E, K"):
        trace_stats([small(), small(layers=3)])
    with pytest.raises(ValueError, match=r"take .* GiB"):
        TraceCounter(TraceMeta(model="m", layers=2, experts=65535, choices=1), coactivation=True)


def test_a_published_trace_gives_its_published_numbers(shared_traces):
    _, measuring = import_npz(shared_traces / "deepseek-v2-lite.npz").split(0.5)
    assert measuring.n_tokens == 16641
    stats = trace_stats(measuring, rank_of_expert_LE=contiguous_ranks_LE(measuring.meta, 8))
    assert round(stats.balance_pooled, 3) == 0.795
    assert round(stats.fan_out, 3) == 4.552


# Load tables.


@PROPERTY
@given(traces())
def test_a_load_table_survives_a_file(tmp_path_factory, trace):
    table = LoadTable.count(trace)
    path = tmp_path_factory.mktemp("t") / "load.json"
    write_load_table(table, path)
    back = read_load_table(path)
    np.testing.assert_array_equal(back.load_LE, load_LE(trace))
    assert back.meta == trace.meta


TABLE = '{"schema": 1, "model": "m", "layers": 1, "experts": 2, "choices": 1, "load": %s}'


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 1, "load": [[1]]}', TABLE % "[[1]]", TABLE % "[[1, -2]]", TABLE % "[[1], [1, 2]]"],
)
def test_bad_load_tables_fail_in_one_line(tmp_path, text):
    path = tmp_path / "load.json"
    path.write_text(text)
    with pytest.raises(MoecastError, match=r"load\.json"):
        read_load_table(path)
