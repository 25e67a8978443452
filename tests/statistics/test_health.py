"""Each check of the health of a trace, on a trace that has exactly that fault."""

import dataclasses

import numpy as np
import pytest

from moecast.traces import NO_CHOICE, TraceMeta, import_npz, profile_trace, read_trace, shipped_trace_path
from tests.statistics.made import batches, by_id, trace_of, uniform

TOKENS, LAYERS, EXPERTS, CHOICES, SEQUENCES = 4800, 4, 16, 3, 48
LENGTHS = [100] * SEQUENCES
IDS_T = np.random.default_rng(7).integers(0, 400, TOKENS)


def rows(seed=0):
    return uniform(TOKENS, LAYERS, EXPERTS, CHOICES, seed=seed)


def healthy(ids=None, **changes):
    """Two topics in turn, many sequences, every expert in use."""
    made = {
        "experts": EXPERTS, "lengths": LENGTHS, "ids_T": IDS_T, "topics": ("a", "b"), "topic_Q": [0, 1] * 24,
    }  # fmt: skip
    return trace_of(rows() if ids is None else ids, **(made | changes))


def found(trace, **more):
    return {finding.code: finding for finding in profile_trace(trace, **more).health}


def test_a_healthy_trace_has_no_findings():
    assert found(healthy()) == {}


def warm_up():
    ids = rows()
    ids[:40] = ids[0]
    return healthy(ids)


def zero_router():
    ids = rows()
    ids[500:520] = np.arange(CHOICES)
    return healthy(ids)


def padding():
    ids = rows()
    for sequence in range(0, SEQUENCES, 4):
        ids[sequence * 100 + 80 : sequence * 100 + 100] = ids[sequence * 100 + 80]
    return healthy(ids)


def constant_sequences():
    ids = rows()
    for sequence in (3, 9):
        ids[sequence * 100 : sequence * 100 + 100] = ids[sequence * 100]
    return healthy(ids)


def stuck():
    ids = rows()
    for token in range(10, TOKENS - 20, 37):
        ids[token] = ids[token - 1]
    return healthy(ids)


def one_prompt():
    ids = rows()
    for sequence in range(10, 40):
        ids[sequence * 100 : sequence * 100 + 100] = ids[:100]
    return healthy(ids)


def one_prefix():
    ids = rows()
    for sequence in range(10, 40):
        ids[sequence * 100 : sequence * 100 + 20] = ids[:20]
    return healthy(ids)


def dead():
    ids = rows()
    ids[:, 2] = uniform(TOKENS, 1, EXPERTS - 1, CHOICES)[:, 0]
    return healthy(ids)


def few():
    lengths = [4] * 40
    return trace_of(uniform(160, 4, 16, 3), experts=16, lengths=lengths, topics=("a", "b"), topic_Q=[0, 1] * 20)


def silent():
    ids = rows()
    ids[:, 1] = NO_CHOICE
    return healthy(ids)


def constant_layer():
    ids = rows()
    ids[:, 3] = [4, 9, 2]
    return healthy(ids)


def twice():
    ids = rows()
    ids[:, 2] = ids[:, 1]
    return healthy(ids)


def mostly_empty():
    ids = rows()
    ids[:, :, 1:] = NO_CHOICE
    return healthy(ids)


def dropped():
    ids = rows()
    ids[np.random.default_rng(1).random(ids.shape) < 0.1] = NO_CHOICE
    return healthy(ids)


def wrong_e():
    return healthy(meta=TraceMeta(model="made", layers=LAYERS, experts=64, choices=CHOICES))


def physical():
    return healthy(
        meta=TraceMeta(model="m", layers=LAYERS, experts=EXPERTS, choices=CHOICES, config={"n_routed_experts": 12})
    )


def in_order():
    return healthy(np.sort(rows(), axis=2))


def one_text():
    return healthy(lengths=[2400, 2400], topic_Q=[0, 1])


def one_id():
    ids_T = IDS_T.copy()
    ids_T[np.random.default_rng(1).random(TOKENS) < 0.6] = 0
    return healthy(ids_T=ids_T)


def id_run():
    ids_T = IDS_T.copy()
    ids_T[1000:1080] = 5
    return healthy(ids_T=ids_T)


def numbers_again():
    trace = healthy()
    return dataclasses.replace(trace, sequence_T=trace.sequence_T % 24)


def gaps():
    trace = healthy()
    return trace.select(np.arange(TOKENS) % 100 != 50)


def steps_fall():
    return healthy(step_T=np.tile(np.arange(100, dtype=np.uint32), SEQUENCES))


FAULTS = [
    (warm_up, "dummy-rows", "warning", r"the first 40 rows \(0\.8 %\).*--drop-first 40"),
    (zero_router, "zero-router-rows", "warning", r"20 rows choose experts 0 to 2"),
    (padding, "padding", "warning", r"5\.0 % of the tokens.*12 sequences"),
    (constant_sequences, "constant-sequences", "warning", r"2 sequences \(4\.2 %"),
    (stuck, "repeated-rows", "warning", r"2\.\d % of the rows"),
    (one_prompt, "repeated-sequences", "warning", r"64\.6 % of the sequences.*31 times"),
    (one_prefix, "shared-prefix", "note", r"64\.6 % of the sequences begin with the same 16 rows"),
    (dead, "dead-experts", "note", r"is 15 at layer 2"),
    (few, "few-choices", "warning", r"fewer than 100 choices"),
    (silent, "empty-layer", "warning", r"layer 1 without any choice"),
    (constant_layer, "constant-layer", "warning", r"at layer 3 only 3 experts"),
    (twice, "equal-layers", "warning", r"layer 1 and the one after"),
    (mostly_empty, "mostly-empty", "warning", r"66\.7 % of the K = 3"),
    (dropped, "empty-choices", "note", r"10\.\d %|9\.\d %"),
    (wrong_e, "unused-ids", "warning", r"no id above 15 is used though E = 64"),
    (physical, "experts-differ", "warning", r"12 routed experts, the trace E = 16: ids may be slots"),
    (in_order, "sorted-choices", "note", r"rising order of id"),
    (one_text, "few-sequences", "warning", r"2 in all"),
    (one_id, "one-token-id", "warning", r"6\d\.\d % of the tokens have id 0"),
    (id_run, "token-id-run", "note", r"8\d rows in a row"),
    (numbers_again, "repeated-positions", "warning", r"2,400 tokens"),
    (gaps, "position-gaps", "note", r"48 gaps"),
    (steps_fall, "step-order", "note", r"falls 47 times"),
    (lambda: healthy(topics=("law",), topic_Q=[0] * SEQUENCES), "one-topic", "warning", r"all tokens are 'law'"),
    (lambda: healthy(topic_Q=[0] * 46 + [1] * 2), "one-topic", "note", r"95\.8 % of the tokens are 'a'"),
    (lambda: healthy(topics=(), topic_Q=None), "no-topics", "note", r"none recorded"),
]
# What else a trace with the fault cannot help showing.
ALSO = {
    "constant-layer": {"dead-experts"},
    "silent": {"empty-choices"},
    "empty-layer": {"dead-experts", "empty-choices"},
    "unused-ids": {"dead-experts"},
    # runs of 16 equal rows or more, which --drop-dummies leaves out
    "zero-router-rows": {"dummy-rows"},
    "padding": {"dummy-rows"},
    "constant-sequences": {"dummy-rows"},
}


@pytest.mark.parametrize(("make", "code", "severity", "words"), FAULTS, ids=[f"{f[1]}-{f[2]}" for f in FAULTS])
def test_a_fault_is_named_and_nothing_else(make, code, severity, words):
    import re

    trace = make()
    seen = found(trace)
    assert set(seen) - ALSO.get(code, set()) == {code}, seen
    assert seen[code].severity == severity
    assert re.search(words, seen[code].message), seen[code].message
    assert "\n" not in seen[code].message
    assert found(batches(trace, 137)).keys() == seen.keys()


def test_warnings_come_first():
    trace = dropped()
    severities = [
        f.severity for f in profile_trace(dataclasses.replace(trace, topics=("a",), topic_T=trace.topic_T * 0)).health
    ]
    assert severities == ["warning", "note"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.79, 0.98])
def test_a_warm_up_at_one_layer_is_found_whatever_its_share(share):
    """One layer of 60 experts, 4 chosen, as an engine's log has it: the dummies' load would hide them."""
    real, dummy = 4384, int(4384 * share / (1 - share))
    ids = np.concatenate([np.tile([[[43, 5, 7, 58]]], (dummy, 1, 1)), uniform(real, 1, 60, 4)])
    seen = found(trace_of(ids, experts=60, lengths=[dummy] + [137] * 32))
    assert f"the first {dummy:,} rows" in seen["dummy-rows"].message
    assert f"--drop-first {dummy})" in seen["dummy-rows"].message
    assert ("repeated-rows" in seen) == (share > 0.5)


def test_runs_anywhere_are_counted():
    ids = rows()
    for start in (150, 2110, 4020):
        ids[start : start + 30] = ids[start]
    assert found(healthy(ids))["dummy-rows"].message.startswith(
        "experts: 90 rows (1.9 %) lie in 3 runs of equal ones (the longest, 30, from row 150)"
    )


def test_small_routers_may_repeat_rows():
    ids = uniform(TOKENS, 1, 4, 1)
    assert found(healthy(ids, experts=4)) == {}


def test_routing_by_token_id_is_not_padding():
    assert found(healthy(by_id(IDS_T, LAYERS, EXPERTS, CHOICES))) == {}


def test_the_shipped_trace_has_one_note():
    assert found(read_trace(shipped_trace_path())).keys() == {"step-order"}


def test_a_published_trace_has_no_findings(shared_traces):
    assert found(import_npz(shared_traces / "deepseek-v2-lite.npz")) == {}
