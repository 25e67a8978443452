"""Models that carry adapters of PEFT: what is captured is the routing of the adapted model, and the trace says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from moecast.errors import MoecastError
from moecast.traces import RoutingTrace, read_trace
from moecast.traces.capture.hf import capture_routing
from moecast.traces.capture.hf.load import ModelSource
from moecast.traces.capture.hf.run import RunConfig, run
from tests.hf.test_cli import model_folder, texts  # noqa: F401  fixtures

IDS_BQ = torch.randint(3, 64, (3, 6), generator=torch.Generator().manual_seed(5))
ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
ROUTER = {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}
ADAPTERS = {"attention": ATTENTION, "experts": EXPERTS, "router": ROUTER}
# Its own calls of names that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def recorded(model: Any, out: Path) -> RoutingTrace:
    with capture_routing(model, out), torch.no_grad():
        model(input_ids=IDS_BQ)
        model.generate(input_ids=IDS_BQ, max_new_tokens=3, do_sample=False)
    return read_trace(out)


def adapted(model: transformers.PreTrainedModel, **targets: Any) -> peft.PeftModel:
    """A model with adapters whose weights are large enough to change what is chosen."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **targets)).eval()
    generator = torch.Generator().manual_seed(9)
    for name, tensor in wrapped.named_parameters():
        if "lora" in name:
            tensor.data.normal_(0, 0.5, generator=generator)
    return wrapped


def same(a: RoutingTrace, b: RoutingTrace) -> bool:
    return bool((np.sort(a.experts_TLK) == np.sort(b.experts_TLK)).all())


@pytest.mark.parametrize("targets", ADAPTERS)
def test_adapters_route_as_the_merged_model_does(
    targets: str, model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    plain = recorded(model, tmp_path / "plain")
    wrapped = adapted(model, **ADAPTERS[targets])
    trace, inside = recorded(wrapped, tmp_path / "t"), recorded(wrapped.base_model.model, tmp_path / "inside")
    assert same(trace, inside)
    assert not same(trace, plain)
    assert trace.meta.source["adapters"] == {"default": "LORA"}
    assert "default (LORA)" in trace.meta.notes
    with wrapped.disable_adapter():
        assert same(recorded(wrapped, tmp_path / "off"), plain)
    merged = recorded(wrapped.merge_and_unload(), tmp_path / "merged")
    assert same(trace, merged)
    assert "adapters" not in merged.meta.source


@pytest.mark.parametrize("copied", ["gate", "experts", "mlp"])
def test_a_trained_copy_in_a_modules_place_is_heard(
    copied: str, model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    plain = recorded(model, tmp_path / "plain")
    wrapped = adapted(model, target_modules=["q_proj"], modules_to_save=[copied])
    for name, tensor in wrapped.named_parameters():
        if "lora" in name:
            tensor.data.zero_()
        if "modules_to_save" in name:
            tensor.data.copy_(tensor.data.flip(-1))
    trace = recorded(wrapped, tmp_path / "t")
    assert not same(trace, plain)
    with wrapped.disable_adapter():
        assert same(recorded(wrapped, tmp_path / "off"), plain)
    assert same(trace, recorded(wrapped.merge_and_unload(), tmp_path / "merged"))


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
def test_tokens_that_prompt_tuning_adds_are_tokens_without_ids(
    model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    """As many as the model was given: PEFT 0.21 beside transformers 5.24 adds its prompt at every decode step."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    given: list[int] = []

    def count(_model: object, _args: object, kwargs: dict[str, Any]) -> None:
        embeddings = kwargs.get("inputs_embeds")
        given.append(1 if embeddings is None else embeddings.shape[1])

    model.register_forward_pre_hook(count, with_kwargs=True)
    trace = recorded(peft.get_peft_model(model, config).eval(), tmp_path / "t")
    assert trace.token_id_T is None
    assert given[:2] == [8, 8]
    for sequence, length in enumerate([8] * 3 + [sum(given[1:])] * 3):
        assert trace.position_T[trace.sequence_T == sequence].tolist() == list(range(length))


@pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning")
def test_training_an_adapter_with_checkpointing(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    wrapped = adapted(model, **EXPERTS).train()
    with capture_routing(wrapped, tmp_path / "plain"):
        wrapped(input_ids=IDS_BQ, labels=IDS_BQ, use_cache=False)
    wrapped.gradient_checkpointing_enable()
    wrapped.enable_input_require_grads()
    with capture_routing(wrapped, tmp_path / "t"):
        wrapped(input_ids=IDS_BQ, labels=IDS_BQ, use_cache=False).loss.backward()
    assert same(read_trace(tmp_path / "plain"), read_trace(tmp_path / "t"))


def test_the_command_takes_a_folder_with_an_adapter(model_folder: Path, texts: Path, tmp_path: Path) -> None:  # noqa: F811
    base = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    wrapped = adapted(base, **ATTENTION)
    wrapped.save_pretrained(tmp_path / "adapter")
    config = RunConfig(max_tokens=40, sequence_length=20)
    run(ModelSource(name=str(tmp_path / "adapter")), [texts], tmp_path / "t", config)
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    source = ModelSource(name=str(tmp_path / "merged"), tokenizer=str(model_folder))
    run(source, [texts], tmp_path / "m", config)
    trace = read_trace(tmp_path / "t")
    assert same(trace, read_trace(tmp_path / "m"))
    assert trace.meta.source["adapters"] == {"default": "LORA"}
    with pytest.raises(MoecastError, match="no random weights"):
        run(ModelSource(name=str(tmp_path / "adapter"), random_weights=True), [texts], tmp_path / "r", config)


def test_an_adapter_of_nothing_is_one_line(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "adapter").mkdir()
    for text, said in [("{}", "which model it adapts"), ("{", "cannot be loaded"), ("[]", "cannot be loaded")]:
        (tmp_path / "adapter" / "adapter_config.json").write_text(text)
        with pytest.raises(MoecastError, match=said) as error:
            run(ModelSource(name=str(tmp_path / "adapter")), [texts], tmp_path / "t", RunConfig())
        assert "\n" not in str(error.value)
