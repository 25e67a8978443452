"""Traces that Megatron-Core's own tracer wrote (see `record_megatron.py`), against what its routers must choose."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from moecast.cli import app
from moecast.errors import MoecastError
from moecast.traces import ImportOptions, import_trace, read_trace
from tests.importers.layouts import as_choices, megatron_lines, write_lines
from tests.importers.record_megatron import CHOICES, EXPERTS, MICRO_BATCHES, RANKS_OF_STAGE, STAGES, STEPS, routing

FOLDER = Path(__file__).parent / "megatron-core"
REPLICAS = range(len(RANKS_OF_STAGE[0]))
BATCHES = [(step, batch) for step in range(STEPS) for batch in range(MICRO_BATCHES)]


def file_of(rank):
    return FOLDER / "stages" / f"router_trace_rank{rank}.jsonl"


def chosen(replicas, layers):
    """[tokens, layers, choices] of some replicas, by the model's layers."""
    return np.concatenate(
        [
            np.stack([routing(replica, step, batch, layer) for layer in layers], axis=1)
            for replica in replicas
            for step, batch in BATCHES
        ]
    )


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_a_stage(stage):
    first, moe_layers = STAGES[stage]
    trace = import_trace([file_of(rank) for rank in RANKS_OF_STAGE[stage]], ImportOptions(experts=EXPERTS))
    expected = chosen(REPLICAS, [first + layer for layer in moe_layers])
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(expected))
    assert trace.meta.layer_ids == moe_layers
    assert trace.meta.shape_LEK == (len(moe_layers), EXPERTS, CHOICES)
    assert "one pipeline stage" in trace.meta.notes
    columns = (trace.source_rank_T, trace.step_T, trace.sequence_T)
    tokens = len(expected) // len(REPLICAS) // len(BATCHES)
    rows = [
        (rank, step, sequence)
        for sequence, (rank, (step, _)) in enumerate((r, b) for r in RANKS_OF_STAGE[stage] for b in BATCHES)
        for _ in range(tokens)
    ]
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == rows


def test_stages_are_joined_by_the_layers_from_which_they_count():
    paths = [file_of(rank) for ranks in RANKS_OF_STAGE for rank in ranks]
    first_layers = tuple(first for (first, _), ranks in zip(STAGES, RANKS_OF_STAGE, strict=True) for _ in ranks)
    layers = [first + layer for first, moe_layers in STAGES for layer in moe_layers]
    trace = import_trace(paths, ImportOptions(experts=EXPERTS, first_layers=first_layers))
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(chosen(REPLICAS, layers)))
    assert trace.meta.layer_ids == tuple(layers)
    assert "one pipeline stage" not in trace.meta.notes
    assert set(trace.source_rank_T.tolist()) == set(RANKS_OF_STAGE[0])
    order = [paths[2], paths[0], paths[3], paths[1]]
    again = import_trace(order, ImportOptions(experts=EXPERTS, first_layers=(3, 0, 3, 0)))
    np.testing.assert_array_equal(again.experts_TLK, trace.experts_TLK)


def test_stages_in_folders_by_the_command(tmp_path):
    for stage, ranks in enumerate(RANKS_OF_STAGE):
        (tmp_path / f"{stage}").mkdir()
        for rank in ranks:
            (tmp_path / f"{stage}" / file_of(rank).name).write_bytes(file_of(rank).read_bytes())
    command = ["trace", "import", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path / "t.parquet")]
    result = CliRunner().invoke(app, [*command, "--first-layers", "0,3"])
    assert result.exit_code == 0, result.output
    trace = read_trace(tmp_path / "t.parquet")
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(chosen(REPLICAS, [1, 2, 3, 4])))
    assert trace.meta.layer_ids == (1, 2, 3, 4)


def test_prediction_layers_are_left_out_or_refused():
    """A hybrid model's are marked; a GPT model's are written as the decoder's, twice as many lines of layer 1."""
    trace = import_trace(FOLDER / "prediction-hybrid", ImportOptions(experts=EXPERTS))
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(chosen([0], [3, 4])))
    assert "Multi-token prediction layers are left out" in trace.meta.notes
    with pytest.raises(MoecastError, match=r"step 0: some layers have more micro-batches than others: perhaps a multi"):
        import_trace(FOLDER / "prediction-gpt")


def lines(rng, step, layers):
    return megatron_lines(step, 0, np.stack([rng.permutation(6)[:2] for _ in layers])[None], layers)


def test_a_prediction_layer_behind_dense_layers_is_seen_by_its_place(tmp_path):
    """With dense layers first, the number of the prediction layer is no other line's."""
    rng = np.random.default_rng(0)
    path = write_lines(tmp_path / "router_trace_rank0.jsonl", lines(rng, 0, [3, 4, 1]))
    with pytest.raises(MoecastError, match="layer 1 stands behind layer 4: perhaps a multi-token prediction layer"):
        import_trace(path)


@pytest.mark.parametrize(
    ("first_layers", "steps", "rule"),
    [
        ((0,), ((0,), (0,)), "one number for each file or folder"),
        ((0, 1), ((0,), (0,)), "layer 1: is of two stages"),
        ((0, 4), ((0,), (1,)), "the stages' ranks recorded different steps"),
        ((0, 4), ((0, 1), (0,)), "the stages' ranks recorded different steps"),
        ((0, 5000), ((0,), (0,)), "is too high"),
    ],
)
def test_stages_that_do_not_fit(tmp_path, first_layers, steps, rule):
    rng = np.random.default_rng(0)
    paths = [
        write_lines(tmp_path / f"{rank}.jsonl", [line for step in of for line in lines(rng, step, [0, 1])])
        for rank, of in enumerate(steps)
    ]
    with pytest.raises(MoecastError, match=re.escape(rule)) as caught:
        import_trace(paths, ImportOptions(first_layers=first_layers))
    assert "\n" not in str(caught.value)


def test_stages_of_other_sizes_and_recomputed_layers_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    once, other = lines(rng, 0, [0, 1]), lines(rng, 0, [0, 1])
    paths = [write_lines(tmp_path / f"{name}.jsonl", value) for name, value in (("a", once), ("b", other))]
    twice = write_lines(tmp_path / "c.jsonl", [*other, *other[::-1]])
    with pytest.raises(MoecastError, match="different numbers of ranks: layer 0: 1, layer 2: 2"):
        import_trace([*paths, twice], ImportOptions(first_layers=(0, 2, 2)))
    with pytest.raises(MoecastError, match="a micro-batch is there twice: recomputed layers"):
        import_trace([paths[0], twice], ImportOptions(first_layers=(0, 2)))
    with pytest.raises(MoecastError, match="the stages' MoE layers are 0, 1, 2, 3, the model's 0, 1, 2, 4"):
        import_trace(
            paths, ImportOptions(first_layers=(0, 2), experts=6, choices=2, hidden_layers=5, layer_ids=(0, 1, 2, 4))
        )


def test_first_layers_are_of_megatron_only(tmp_path):
    path = tmp_path / "r.npy"
    np.save(path, np.zeros((2, 2, 1), np.int16))
    with pytest.raises(MoecastError, match="only Megatron-Core's traces are of pipeline stages"):
        import_trace(path, ImportOptions(first_layers=(0,)))
    with pytest.raises(ValueError, match="layers count from 0"):
        ImportOptions(first_layers=(-1,))
    command = ["trace", "import", str(path), "--out", str(tmp_path / "t.parquet"), "--first-layers", "0,x"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert "numbers with commas between" in json.dumps(str(result.exception) + result.output)
