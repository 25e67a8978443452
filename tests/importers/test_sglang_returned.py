"""Responses that SGLang 0.5.23's own modules made (`record_sglang_returned.py`), against the routing they captured."""

from pathlib import Path

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.traces import PHASES, ImportOptions, import_trace
from tests.importers.layouts import as_choices
from tests.importers.record_sglang_returned import CHOICES, DENSE, EXPERTS, HIDDEN_LAYERS, REQUESTS, routing

FOLDER = Path(__file__).parent / "sglang-0.5.23"
MOE_LAYERS = tuple(range(DENSE, HIDDEN_LAYERS))
OPTIONS = ImportOptions(experts=EXPERTS, choices=CHOICES, hidden_layers=HIDDEN_LAYERS, layer_ids=MOE_LAYERS)


@pytest.mark.parametrize("server", ["generate", "completions"])
def test_responses(server):
    trace = import_trace(FOLDER / f"{server}.jsonl", OPTIONS)
    rows = [
        (sequence, position, "prefill" if position < prompt else "decode", routing(name, position))
        for sequence, (name, prompt, generated, _, start) in enumerate(REQUESTS)
        for position in range(start, prompt + generated - 1)
    ]
    np.testing.assert_array_equal(trace.experts_TLK, as_choices(np.stack([row[3] for row in rows])))
    columns = (trace.sequence_T.tolist(), trace.position_T.tolist(), [PHASES[phase] for phase in trace.phase_T])
    assert list(zip(*columns, strict=True)) == [row[:3] for row in rows]
    assert trace.meta.layer_ids == MOE_LAYERS
    assert "out of the prefix cache" in trace.meta.notes


def test_the_config_must_fit():
    with pytest.raises(MoecastError, match="are not int32 of 4 layers and 2 choices"):
        import_trace(FOLDER / "generate.jsonl", ImportOptions(choices=2, hidden_layers=4, layer_ids=(1, 2)))
