"""Dumps that SGLang 0.5.23's own recorder wrote (`record_sglang.py` says how), against the routing it was given."""

from pathlib import Path

import numpy as np
import pytest

from moecast.traces import PHASES, ImportOptions, LoadTable, import_trace
from tests.importers.layouts import as_choices, write_lines
from tests.importers.record_sglang import (
    CHOICES,
    DENSE,
    EXPERTS,
    HIDDEN_LAYERS,
    PASSES,
    RANKS,
    physical_to_logical,
    routing,
)

DUMPS = Path(__file__).parent / "sglang-0.5.23"
MOE_LAYERS = tuple(range(DENSE, HIDDEN_LAYERS))


def logical(rank, forward_pass, tokens):
    """The logical experts of a pass: [tokens, MoE layers, choices]."""
    maps = physical_to_logical()[DENSE:]
    return maps[np.arange(len(MOE_LAYERS))[:, None], routing(rank, forward_pass, tokens)]


def counted(ranks):
    load_LE = np.zeros((len(MOE_LAYERS), EXPERTS), np.int64)
    for rank in ranks:
        for forward_pass, _, lengths in PASSES:
            for layer, ids in enumerate(logical(rank, forward_pass, sum(lengths)).transpose(1, 0, 2)):
                load_LE[layer] += np.bincount(ids.ravel(), minlength=EXPERTS)
    return load_LE


def test_per_token():
    trace = import_trace(sorted(DUMPS.glob("*_per_token_*.pt")))
    passes = [(rank, *one) for rank in range(RANKS) for one in PASSES]
    expected = [logical(rank, forward_pass, sum(lengths)) for rank, forward_pass, _, lengths in passes]
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(np.concatenate(expected)))
    assert trace.meta.shape_LEK == (len(MOE_LAYERS), EXPERTS, CHOICES)
    assert trace.meta.layer_ids == MOE_LAYERS
    assert trace.meta.source["dense_layers_dropped"] == list(range(DENSE))
    rows = [
        (rank, forward_pass, PHASES.index("prefill" if mode == "EXTEND" else "decode"))
        for rank, forward_pass, mode, lengths in passes
        for _ in range(sum(lengths))
    ]
    columns = (trace.source_rank_T, trace.step_T, trace.phase_T)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == rows
    lengths = [n for *_, lengths in passes for n in lengths]
    assert np.bincount(trace.sequence_T).tolist() == lengths
    assert trace.position_T[:6].tolist() == [0, 1, 2, 3, 0, 1]


def test_per_pass_and_stat_count_the_same_routing():
    options = ImportOptions(choices=CHOICES)
    every = import_trace(sorted(DUMPS.glob("*_per_pass_*.pt")), options)
    first = import_trace(DUMPS / "expert_distribution_recorder_stat_0.pt", options)
    assert isinstance(every, LoadTable)
    assert isinstance(first, LoadTable)
    np.testing.assert_array_equal(every.load_LE, counted(range(RANKS)))
    np.testing.assert_array_equal(first.load_LE, counted([0]))
    assert every.meta.layer_ids == first.meta.layer_ids == MOE_LAYERS


def test_dumps_of_different_modes_are_not_joined():
    from moecast.errors import MoecastError

    with pytest.raises(MoecastError, match=r"recorded in mode per_token, .* in mode per_pass"):
        import_trace(sorted(DUMPS.glob("*.pt")))


def test_torch_reads_the_same_from_them():
    """Our reader against torch's own, on every tensor of every dump."""
    import torch

    from moecast.traces.importers.torch_file import open_torch
    from moecast.traces.importers.torch_pickle import TensorView

    for path in sorted(DUMPS.glob("*.pt")):
        with open_torch(path, limit_bytes=1 << 26) as file:

            def same(ours, theirs, file=file):
                if isinstance(theirs, torch.Tensor):
                    assert isinstance(ours, TensorView)
                    np.testing.assert_array_equal(file.read(ours, "x", theirs.ndim), theirs.numpy())
                elif isinstance(theirs, dict):
                    assert list(ours) == list(theirs)
                    for key in theirs:
                        same(ours[key], theirs[key])
                elif isinstance(theirs, list):
                    for one, other in zip(ours, theirs, strict=True):
                        same(one, other)
                else:
                    assert ours == theirs

            same(file.value, torch.load(path, weights_only=True))


@pytest.mark.parametrize("name", ["sglext", "sgl_ext"])
def test_routing_of_the_openai_server(tmp_path, name):
    """0.5.23 has it in the response, for its first choice; the documentation, in the choice."""
    import base64

    rows = np.zeros((5, HIDDEN_LAYERS, CHOICES), "<i4")
    rows[:, DENSE:] = logical(0, 1, 5)
    field = {name: {"routed_experts": base64.b64encode(rows.tobytes()).decode()}}
    response = {
        "choices": [{"index": 0, "text": "x", **(field if name == "sgl_ext" else {})}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2},
        **(field if name == "sglext" else {}),
    }
    options = ImportOptions(experts=EXPERTS, choices=CHOICES, hidden_layers=HIDDEN_LAYERS, layer_ids=MOE_LAYERS)
    trace = import_trace(write_lines(tmp_path / "x.jsonl", [response]), options)
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(logical(0, 1, 5)))
    assert [PHASES[phase] for phase in trace.phase_T] == ["prefill"] * 4 + ["decode"]
