"""Generated routing, laid out as an engine writes it, imports as the same choices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moecast.traces import PHASES, ImportOptions, LoadTable, import_trace, load_LE, open_import
from tests.importers.layouts import (
    as_choices,
    base64_npy,
    draw_choices,
    megatron_lines,
    sglang_dump,
    sglang_pass,
    sglang_response,
    torch_save,
    trtllm_folder,
    vllm_split,
    vllm_whole,
    with_dense,
    write_lines,
)

PREFILL, DECODE, TRAIN = (PHASES.index(name) for name in ("prefill", "decode", "train"))
few = settings(deadline=None, max_examples=25)


@st.composite
def requests(draw):
    """Sizes, and (prompt, generated) routing of a few requests."""
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    choices = draw(st.integers(1, min(experts, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=4))
    return (layers, experts, choices), [
        (draw_choices(rng, a, layers, experts, choices), draw_choices(rng, b, layers, experts, choices))
        for a, b in lengths
    ]


def check_requests(trace, drawn):
    """All rows of prompt and generated tokens, with sequence, position and phase."""
    whole = [np.concatenate(pair) for pair in drawn]
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(np.concatenate(whole)))
    assert trace.sequence_T.tolist() == [q for q, rows in enumerate(whole) for _ in rows]
    assert trace.position_T.tolist() == [p for rows in whole for p in range(len(rows))]
    phases = [phase for a, b in drawn for phase in [PREFILL] * len(a) + [DECODE] * len(b)]
    assert trace.phase_T.tolist() == phases


@few
@given(requests())
def test_vllm_split_responses(tmp_path_factory, drawn):
    (_, experts, _), pairs = drawn
    path = write_lines(tmp_path_factory.mktemp("t") / "r.jsonl", [vllm_split(*pair) for pair in pairs])
    trace = import_trace(path, ImportOptions(experts=experts))
    assert trace.meta.source["importer"] == "vllm"
    # zeros in all places stand for what was never written, so only K = 1 may choose expert 0 alone
    check_requests(trace, pairs)


@few
@given(requests(), st.integers(0, 3))
def test_vllm_whole_responses_without_the_first_rows(tmp_path_factory, drawn, start):
    (_, experts, _), pairs = drawn
    path = write_lines(
        tmp_path_factory.mktemp("t") / "r.jsonl", [vllm_whole(a, b, start=min(start, len(a) - 1)) for a, b in pairs]
    )
    trace = import_trace(path, ImportOptions(experts=experts))
    rows = [np.concatenate(pair)[min(start, len(pair[0]) - 1) :] for pair in pairs]
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(np.concatenate(rows)))
    first = [min(start, len(a) - 1) for a, _ in pairs]
    assert trace.position_T.tolist() == [p for f, r in zip(first, rows, strict=True) for p in range(f, f + len(r))]
    assert (trace.phase_T == DECODE).sum() == sum(len(b) for _, b in pairs)


@few
@given(requests(), st.sampled_from(["npz", "safetensors"]))
def test_vllm_arrays(tmp_path_factory, drawn, kind):
    (_, experts, _), pairs = drawn
    arrays = {}
    for number, (prompt, generated) in enumerate(pairs):
        arrays[f"r{number}.prompt_routed_experts"] = prompt.astype(np.int16)
        arrays[f"r{number}.routed_experts"] = generated.astype(np.int16)
        arrays[f"r{number}.prompt_token_ids"] = np.arange(len(prompt))
        arrays[f"r{number}.token_ids"] = np.arange(len(generated) + 1) + 50
    path = tmp_path_factory.mktemp("t") / f"r.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    trace = import_trace(path, ImportOptions(experts=experts))
    assert trace.token_id_T is not None
    check_requests(trace, pairs)
    ids = [t for a, b in pairs for t in (*range(len(a)), *range(50, 50 + len(b)))]
    assert trace.token_id_T.tolist() == ids


@few
@given(requests())
def test_sglang_responses(tmp_path_factory, drawn):
    (layers, experts, choices), pairs = drawn
    dense = [0, 2][: max(1, layers)]
    wide = [tuple(with_dense(part, dense, 0) for part in pair) for pair in pairs]
    path = write_lines(tmp_path_factory.mktemp("t") / "r.jsonl", [sglang_response(*pair) for pair in wide])
    ids = tuple(row for row in range(layers + len(dense)) if row not in dense)
    options = ImportOptions(experts=experts, choices=choices, hidden_layers=layers + len(dense), layer_ids=ids)
    trace = import_trace(path, options)
    check_requests(trace, pairs)
    assert trace.meta.layer_ids == ids
    assert trace.meta.source["dense_layers_dropped"] == dense


@st.composite
def passes(draw):
    """Sizes, and routing by (rank, step)."""
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(2, 8))
    choices = draw(st.integers(1, min(experts, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks, steps = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return (
        (layers, experts, choices),
        {
            (rank, step): draw_choices(rng, draw(st.integers(2, 5)), layers, experts, choices)
            for rank in range(ranks)
            for step in range(steps)
        },
        rng,
    )


@settings(deadline=None, max_examples=12)
@given(passes(), st.integers(0, 3))
def test_sglang_per_token_with_replicas(tmp_path_factory, drawn, spare):
    (layers, experts, choices), of_pass, rng = drawn
    folder, dense = tmp_path_factory.mktemp("t"), [0]
    map_RP = np.stack(
        [rng.permutation(np.r_[np.arange(experts), rng.integers(0, experts, spare)]) for _ in range(layers + 1)]
    )
    ranks = sorted({rank for rank, _ in of_pass})
    for rank in ranks:
        records = []
        for (at, step), logical in of_pass.items():
            if at != rank:
                continue
            physical = np.empty_like(logical)
            for layer in range(layers):
                for index in np.ndindex(len(logical), choices):
                    places = np.flatnonzero(map_RP[layer + 1] == logical[index[0], layer, index[1]])
                    physical[index[0], layer, index[1]] = rng.choice(places)
            # token 0 is new in every pass, so that no two ranks record the same
            records.append(sglang_pass(step, rank, with_dense(physical, dense, -1), first=1000 * rank))
        sglang_dump(folder / f"expert_distribution_recorder_1.0_{rank}.pt", records, map_RP)
    trace = import_trace(folder)
    expected = np.concatenate([of_pass[key] for key in sorted(of_pass)])
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(expected))
    assert trace.meta.layer_ids == tuple(range(1, layers + 1))
    assert trace.meta.shape_LEK == (layers, experts, choices)
    keys = [key for key in sorted(of_pass) for _ in of_pass[key]]
    assert list(zip(trace.source_rank_T.tolist(), trace.step_T.tolist(), strict=True)) == keys
    assert trace.token_id_T.tolist() == [100 + t for key in sorted(of_pass) for t in range(len(of_pass[key]))]


@few
@given(passes(), st.integers(1, 3))
def test_megatron(tmp_path_factory, drawn, micro_batches):
    (layers, experts, _), of_pass, _ = drawn
    folder, layer_ids = tmp_path_factory.mktemp("t"), list(range(3, 3 + layers))
    for rank in {rank for rank, _ in of_pass}:
        lines = []
        for (at, step), choices_TLK in of_pass.items():
            if at == rank:
                for batch in range(micro_batches):
                    lines += megatron_lines(step, rank, np.roll(choices_TLK, batch, axis=0), layer_ids)
        write_lines(folder / f"router_trace_rank{rank}.jsonl", lines)
    trace = import_trace(folder, ImportOptions(experts=experts))
    expected = [np.roll(of_pass[key], b, axis=0) for key in sorted(of_pass) for b in range(micro_batches)]
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(np.concatenate(expected)))
    assert trace.meta.layer_ids == tuple(layer_ids)
    assert set(trace.phase_T.tolist()) == {TRAIN}
    assert trace.sequence_T.max() + 1 == len(expected)
    keys = [key for key in sorted(of_pass) for _ in range(micro_batches * len(of_pass[key]))]
    assert list(zip(trace.source_rank_T.tolist(), trace.step_T.tolist(), strict=True)) == keys


def counts_of(choices_TLK, experts):
    return np.stack(
        [np.bincount(choices_TLK[:, layer].ravel(), minlength=experts) for layer in range(choices_TLK.shape[1])]
    )


@few
@given(passes())
def test_trtllm_counts_and_choices(tmp_path_factory, drawn):
    (layers, experts, choices), of_pass, _ = drawn
    counts, tokens = {}, {}
    for (rank, step), choices_TLK in of_pass.items():
        for layer in range(layers):
            key = f"{step + 50}_{layer + 1}"
            counts.setdefault(rank, {})[key] = counts_of(choices_TLK, experts)[layer]
            tokens.setdefault(rank, {})[key] = np.ascontiguousarray(choices_TLK[:, layer])
    folder = trtllm_folder(tmp_path_factory.mktemp("t") / "s", counts, experts=experts, choices=choices)
    table = import_trace(folder)
    assert isinstance(table, LoadTable)
    sums = {rank: sum(counts_of(c, experts) for (at, _), c in of_pass.items() if at == rank) for rank, _ in of_pass}
    same = len(sums) > 1 and all((value == sums[0]).all() for value in sums.values())
    np.testing.assert_array_equal(table.load_LE, sums[0] if same else sum(sums.values()))
    assert table.meta.layer_ids == tuple(range(1, layers + 1))
    assert table.meta.shape_LEK == (layers, experts, choices)
    trtllm_folder(folder, {}, experts=experts, choices=choices, tokens=tokens)
    trace = import_trace(folder)
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(np.concatenate([of_pass[k] for k in sorted(of_pass)])))
    assert set(trace.step_T.tolist()) == {step + 50 for _, step in of_pass}


@few
@given(passes())
def test_sglang_counts(tmp_path_factory, drawn):
    (layers, experts, choices), of_pass, _ = drawn
    folder = tmp_path_factory.mktemp("t")
    steps = sorted({step for _, step in of_pass})
    by_step = np.stack(
        [
            np.insert(sum(counts_of(c, experts) for (_, at), c in of_pass.items() if at == step), 0, 0, axis=0)
            for step in steps
        ]
    )
    value = {"rank": 0, "logical_count": by_step.astype(np.int32), "average_utilization_rate_over_window": None}
    stat = torch_save(value, folder / "stat.pt")
    table = import_trace(stat, ImportOptions(choices=choices))
    np.testing.assert_array_equal(table.load_LE, by_step.sum(0)[1:])
    assert table.meta.layer_ids == tuple(range(1, layers + 1))
    assert "Counts only" in table.meta.notes
    assert f"Summed over {len(steps)} forward passes" in table.meta.notes


@pytest.mark.parametrize("kind", ["same", "own"])
def test_sglang_per_pass_counts_each_token_once(tmp_path, kind):
    """Ranks that attend to all tokens alike counted the same ones; ranks with tokens of their own add up."""
    map_RP = [[0, 1, 2, 0], [2, 1, 0, 1]]
    counts = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
    files = [
        sglang_dump(
            tmp_path / f"{rank}.pt",
            [
                {
                    "forward_pass_id": step,
                    "rank": rank,
                    "gatherer_key": "primary",
                    "global_physical_count": counts * (1 if kind == "same" else rank + 1),
                }
                for step in range(2)
            ],
            map_RP,
        )
        for rank in range(2)
    ]
    table = import_trace(files, ImportOptions(choices=2))
    once = np.array([[5, 2, 3], [7, 14, 5]])
    np.testing.assert_array_equal(table.load_LE, once * 2 if kind == "same" else once * 6)
    assert ("counted once" in table.meta.notes) == (kind == "same")


def test_many_files_are_joined_in_order_without_holding_them(tmp_path):
    rng = np.random.default_rng(0)
    drawn = [draw_choices(rng, 3, 2, 6, 2) for _ in range(5)]
    files = []
    for number, choices_TLK in enumerate(drawn):
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], choices_TLK.astype(np.int16))
    opened = open_import(files, ImportOptions(experts=6))
    assert opened.tokens == 15
    batches = list(opened.read())
    assert [batch.n_tokens for batch in batches] == [3] * 5
    assert [int(batch.sequence_T[0]) for batch in batches] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(load_LE(iter(batches)), load_LE(opened.read()))
    assert opened.meta.source["file"] == "5 files, the first 0.npy"


def test_vllm_completions_share_a_prompt_that_ran_once(tmp_path):
    rng = np.random.default_rng(1)
    prompt, one, two = (draw_choices(rng, n, 2, 6, 2) for n in (3, 2, 4))
    split = vllm_split(prompt, one)
    split["choices"].append({"index": 1, "routed_experts": two.tolist()})
    whole = vllm_whole(prompt, one)
    whole["choices"].append({"index": 1, "routed_experts": base64_npy(np.concatenate([prompt, two]))})
    for name, record in (("split", split), ("whole", whole)):
        trace = import_trace(write_lines(tmp_path / f"{name}.jsonl", [record]))
        assert trace.sequence_T.tolist() == [0] * 5 + [1] * 4
        assert trace.position_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]
        np.testing.assert_array_equal(trace.experts_TLK, np.concatenate([prompt, one, two]))


def test_vllm_rows_from_the_prefix_cache_are_left_out(tmp_path):
    prompt = draw_choices(np.random.default_rng(2), 4, 2, 6, 2)
    prompt[:2] = -1
    trace = import_trace(write_lines(tmp_path / "r.jsonl", [vllm_split(prompt, prompt[2:])]))
    assert trace.position_T.tolist() == [2, 3, 4, 5]
    assert "2 tokens without any choice" in trace.meta.notes


def test_vllm_dense_layers_by_their_zeros_and_by_the_config(tmp_path):
    prompt = draw_choices(np.random.default_rng(3), 4, 2, 6, 2)
    path = write_lines(tmp_path / "r.jsonl", [vllm_whole(with_dense(prompt, [0], 0), with_dense(prompt, [0], 0)[:1])])
    guessed = import_trace(path)
    assert guessed.meta.layer_ids == (1, 2)
    assert guessed.meta.source["dense_layers_dropped"] == [0]
    assert "Rows 0 hold no choice" in guessed.meta.notes
    told = import_trace(path, ImportOptions(hidden_layers=3, layer_ids=(1, 2)))
    assert "by the model's config" in told.meta.notes
    np.testing.assert_array_equal(told.experts_TLK, guessed.experts_TLK)


def test_zeros_of_a_single_choice_are_told_apart_by_the_config_only(tmp_path):
    prompt = draw_choices(np.random.default_rng(3), 9, 2, 6, 1)
    path = write_lines(tmp_path / "r.jsonl", [vllm_whole(with_dense(prompt, [0], 0), with_dense(prompt, [0], 0)[:1])])
    doubtful = import_trace(path)
    assert doubtful.meta.layers == 3
    assert "All tokens choose expert 0 in rows 0" in doubtful.meta.notes
    told = import_trace(path, ImportOptions(hidden_layers=3, layer_ids=(1, 2)))
    np.testing.assert_array_equal(told.experts_TLK, doubtful.experts_TLK[:, 1:])
    assert "All tokens" not in told.meta.notes


def test_sglang_decode_and_padding(tmp_path):
    rng = np.random.default_rng(4)
    extend, decode = draw_choices(rng, 5, 2, 6, 2), draw_choices(rng, 3, 2, 6, 2)
    decode[2] = -1
    records = [
        sglang_pass(7, 1, extend, lengths=[3, 1]),  # the fifth token pads the batch
        sglang_pass(8, 1, decode, mode=2, first=9),
        sglang_pass(9, 1, extend[:0], mode=4),
    ]
    trace = import_trace(sglang_dump(tmp_path / "x.pt", records, [list(range(6))] * 2))
    assert trace.sequence_T.tolist() == [0, 0, 0, 1, 2, 3]
    assert trace.position_T.tolist() == [0, 1, 2, 3, 9, 10]
    assert trace.phase_T.tolist() == [PREFILL] * 4 + [DECODE] * 2
    assert trace.step_T.tolist() == [7] * 4 + [8] * 2
    assert set(trace.source_rank_T.tolist()) == {1}
