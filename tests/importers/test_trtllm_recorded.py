"""Folders that TensorRT-LLM's own statistics modules wrote (see `record_trtllm.py`), against what they were given."""

from pathlib import Path

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.traces import ImportOptions, LoadTable, import_trace, load_LE
from tests.importers.layouts import as_choices
from tests.importers.record_trtllm import CHOICES, EXPERTS, LAYERS, RANKS, START, STOP, routing

FOLDER = Path(__file__).parent / "tensorrt-llm"
OPEN_END = range(START, STOP)
WHOLE = range(START, STOP + 1)
"""The variant `raw` records the last iteration of the range too."""


def chosen(iterations):
    """[tokens, layers, choices], ranks one after the other."""
    return np.concatenate(
        [
            np.stack([routing(rank, iteration, layer) for layer in LAYERS], axis=1)
            for rank in range(RANKS)
            for iteration in iterations
        ]
    )


def counted(iterations):
    return np.stack([np.bincount(ids.ravel(), minlength=EXPERTS) for ids in chosen(iterations).transpose(1, 0, 2)])


@pytest.mark.parametrize(("variant", "iterations"), [("counts", OPEN_END), ("tokens", OPEN_END), ("raw", WHOLE)])
def test_counts(variant, iterations):
    table = import_trace([FOLDER / variant / f"rank{rank}.safetensors" for rank in range(RANKS)])
    assert isinstance(table, LoadTable)
    np.testing.assert_array_equal(table.load_LE, counted(iterations))
    assert table.meta.layer_ids == LAYERS
    assert table.meta.shape_LEK == (len(LAYERS), EXPERTS, CHOICES)
    assert f"Summed over {len(iterations)} iterations" in table.meta.notes


@pytest.mark.parametrize(("variant", "iterations"), [("tokens", OPEN_END), ("raw", WHOLE)])
def test_choices(variant, iterations):
    trace = import_trace(FOLDER / variant, ImportOptions(phase="decode"))
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(chosen(iterations)))
    np.testing.assert_array_equal(load_LE(trace), counted(iterations))
    assert trace.meta.layer_ids == LAYERS
    rows = [(rank, at) for rank in range(RANKS) for at in iterations for _ in routing(rank, at, LAYERS[0])]
    assert list(zip(trace.source_rank_T.tolist(), trace.step_T.tolist(), strict=True)) == rows


def test_a_folder_of_counts_only():
    table = import_trace(FOLDER / "counts")
    np.testing.assert_array_equal(table.load_LE, counted(OPEN_END))


def test_choices_and_counts_are_not_joined():
    with pytest.raises(MoecastError, match="choices and counts cannot be joined"):
        import_trace([FOLDER / "raw" / f"rank0{kind}.safetensors" for kind in ("", "_raw")])
