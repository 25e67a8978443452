"""What vLLM 0.32.0 itself returned (see `record_vllm.py`), against our capture of the same weights and tokens.

The models are built anew and run with transformers in float32; the experts must be the same for every token and layer.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.traces import PHASES, ImportOptions, import_trace, read_trace
from tests.importers.record_vllm import BLOCK, NEW, prompts
from tests.importers.tiny_models import MODELS, tiny_model

FOLDER = Path(__file__).parent / "vllm-0.32.0"
LAYERS = {"qwen3-moe": (0, 2), "olmoe": (0, 1)}


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """(model, ids) -> the experts [tokens, layers, choices] of all but the last, sorted, by our capture."""
    torch = pytest.importorskip("torch", reason="runs the model")
    pytest.importorskip("transformers", minversion="5.0", reason="runs the model")
    from moecast.traces.capture.hf import capture_routing

    models = {}

    def capture(name, ids):
        model = models.setdefault(name, tiny_model(name))
        out = tmp_path_factory.mktemp("t") / "t.parquet"
        with torch.no_grad(), capture_routing(model, out):
            model(input_ids=torch.tensor([ids[:-1]]))
        return np.sort(read_trace(out).experts_TLK, axis=2)

    return capture


def options(name):
    """What the model's config says."""
    sizes = MODELS[name]
    return ImportOptions(
        experts=sizes["num_experts"],
        choices=sizes["num_experts_per_tok"],
        hidden_layers=sizes["num_hidden_layers"],
        layer_ids=LAYERS[name],
    )


def response(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def asked(name):
    return import_trace(FOLDER / f"{name}.json", options("qwen3-moe"))


def check(trace, captured, whole, *, model="qwen3-moe", positions=None):
    """Each sequence's rows are those of its ids, prompt and generated, the prompt's length given."""
    found = np.sort(trace.experts_TLK, axis=2)
    for sequence, (ids, prompt) in enumerate(whole):
        rows = trace.sequence_T == sequence
        expected = np.arange(len(ids) - 1) if positions is None else positions[sequence]
        assert trace.position_T[rows].tolist() == list(expected)
        np.testing.assert_array_equal(found[rows], captured(model, ids)[expected])
        np.testing.assert_array_equal(
            trace.phase_T[rows], np.where(expected < prompt, PHASES.index("prefill"), PHASES.index("decode"))
        )
        if trace.token_id_T is not None:
            np.testing.assert_array_equal(trace.token_id_T[rows], np.array(ids)[expected])
    assert int(trace.sequence_T.max()) + 1 == len(whole)
    assert trace.meta.layer_ids == LAYERS[model]


@pytest.mark.parametrize("name", MODELS)
def test_arrays(captured, name):
    """Prompts in a batch, and one whose first block came out of the prefix cache: its rows are there all the same."""
    arrays = np.load(FOLDER / f"{name}.npz")
    trace = import_trace(FOLDER / f"{name}.npz", options(name))
    ids = [arrays[f"r{number}/prompt_token_ids"].tolist() for number in range(len(prompts()))]
    assert ids == prompts()
    whole = [([*prompt, *arrays[f"r{n}/token_ids"].tolist()], len(prompt)) for n, prompt in enumerate(ids)]
    assert trace.token_id_T is not None
    assert arrays["r0/routed_experts"].dtype == np.uint8
    check(trace, captured, whole, model=name)


def test_dense_layers_are_found_without_a_config():
    trace = import_trace(FOLDER / "qwen3-moe.npz")
    assert trace.meta.layer_ids == LAYERS["qwen3-moe"]
    assert trace.meta.source["dense_layers_dropped"] == [1]
    told = import_trace(FOLDER / "qwen3-moe.npz", options("qwen3-moe"))
    np.testing.assert_array_equal(trace.experts_TLK, told.experts_TLK)


def generated(name, prompt, number=0):
    return [*prompt, *response(name)["choices"][number]["token_ids"]], len(prompt)


@pytest.mark.parametrize(("name", "number"), [("completion", 0), ("fresh", 3), ("cached", 3)])
def test_completion(captured, name, number):
    check(asked(name), captured, [generated(name, prompts()[number])])


def test_the_prefix_cache_gives_its_routing():
    np.testing.assert_array_equal(asked("cached").experts_TLK, asked("fresh").experts_TLK)
    assert len(prompts()[3]) > BLOCK


def test_a_completion_without_ids_is_placed_by_the_usage():
    trace = asked("counts")
    assert trace.token_id_T is None
    np.testing.assert_array_equal(trace.experts_TLK, asked("completion").experts_TLK)
    np.testing.assert_array_equal(trace.phase_T, asked("completion").phase_T)


def test_two_completions_of_a_prompt(captured):
    prompt = prompts()[1]
    whole = [generated("completions", prompt, number) for number in range(2)]
    rows = np.arange(len(prompt) + NEW - 1)
    check(asked("completions"), captured, whole, positions=[rows, rows[len(prompt) :]])
    counts = asked("completions-counts")
    np.testing.assert_array_equal(counts.experts_TLK, asked("completions").experts_TLK)


def test_a_list_of_prompts(captured):
    whole = [generated("prompts", prompts()[number], number) for number in range(2)]
    check(asked("prompts"), captured, whole)
    with pytest.raises(MoecastError, match="several prompts without their lengths: record with return_token_ids"):
        asked("prompts-counts")


def test_rows_from_a_start_on(captured):
    prompt = prompts()[1]
    check(asked("start"), captured, [generated("start", prompt)], positions=[np.arange(15, len(prompt) + NEW - 1)])


def test_chat(captured):
    ids = response("chat")["prompt_token_ids"]
    check(asked("chat"), captured, [generated("chat", ids)])
