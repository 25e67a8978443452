"""Responses that SGLang 0.5.23's own modules made (`record_sglang_returned.py`), against the routing they captured."""

import base64
import json
import subprocess
import sys
from math import comb
from pathlib import Path

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.traces import PHASES, ImportOptions, contiguous_ranks_LE, import_trace, read_trace, trace_stats
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


def hash_layers(folder):
    """What the server returns of a model whose first 3 of 6 MoE layers route by a hash of the token's id: zeros."""
    rng, layers, choices, experts, prompt, generated = np.random.default_rng(0), 6, 4, 16, 12, 8
    count = prompt + generated - 1
    lines = []
    for request in range(40):
        ids = np.argpartition(rng.random((count * layers, experts)), choices, axis=1)[:, :choices]
        ids = ids.reshape(count, layers, choices).astype("<i4")
        ids[:, :3] = 0
        info = {
            "id": f"r{request}",
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "cached_tokens": 0,
            "routed_experts": base64.b64encode(ids.tobytes()).decode(),
        }
        lines.append(json.dumps({"text": "", "meta_info": info}))
    (folder / "r.jsonl").write_text("\n".join(lines) + "\n")
    config = {
        "model_type": "deepseek_v4", "num_hidden_layers": layers, "n_routed_experts": experts,
        "num_experts_per_tok": choices, "num_hash_layers": 3, "first_k_dense_replace": 0,
        "moe_intermediate_size": 64, "hidden_size": 128, "vocab_size": 1000,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "r.jsonl", folder / "config.json"


def test_layers_that_were_not_recorded_are_told_and_pull_no_mean(tmp_path):
    file, config = hash_layers(tmp_path)
    command = [sys.executable, "-m", "moecast", "trace", "import", file, "--config", config, "--out"]
    result = subprocess.run(
        [*command, tmp_path / "t.parquet"], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    told = "3 of the 6 MoE layers of the model's config were not recorded"
    assert f"warning: {told}" in result.stderr
    assert "all zeros or empty): 0, 1, 2." in result.stderr
    trace = read_trace(tmp_path / "t.parquet")
    assert told in trace.meta.notes
    stats = trace_stats(trace, rank_of_expert_LE=contiguous_ranks_LE(trace.meta, 4), n_ranks=4)
    # 4 of 16 experts drawn at random lie on 4 · (1 − C(12,4)/C(16,4)) = 2.912 of 4 ranks
    expected = 4 * (1 - comb(12, 4) / comb(16, 4))
    assert stats.fan_out == pytest.approx(expected, rel=0.02)
    np.testing.assert_allclose(stats.fan_out_L[3:], expected, rtol=0.04)
    assert (stats.fan_out_L[:3] == 0).all()
