"""What runs in a module's place: compiled code, other ways to compute the experts, kernels that route on their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations import mxfp4
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from moecast.errors import MoecastError
from moecast.traces import RoutingTrace, read_trace
from moecast.traces.capture.hf import capture_routing
from moecast.traces.capture.hf.load import ModelSource
from tests.hf.families import FAMILIES, HIDDEN

IDS_BQ = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(5))
Model = transformers.PreTrainedModel


def recorded(model: nn.Module, out: Path) -> RoutingTrace:
    with capture_routing(model, out), torch.no_grad():
        model(IDS_BQ)
        model.generate(IDS_BQ, max_new_tokens=3, do_sample=False)
    return read_trace(out)


def _compiled_forward(model: Model) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def _compiled_in_place(model: Model) -> nn.Module:
    model.compile(backend="eager")
    return model


def _compiled_layers(model: Model) -> nn.Module:
    for layer in model.model.layers:
        layer.compile(backend="eager", fullgraph=True)
    return model


COMPILED: dict[str, Callable[[Model], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "compile": _compiled_in_place,
    "forward": _compiled_forward,
    "layers": _compiled_layers,
}


@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_is_captured_and_stays_compiled(how: str, tmp_path: Path) -> None:
    model = replace(FAMILIES[0], config=FAMILIES[0].config | {"num_hidden_layers": 1}).build()
    plain = recorded(model, tmp_path / "plain")
    torch.compiler.reset()
    compiled = COMPILED[how](model)
    with torch.no_grad():
        before = compiled(IDS_BQ).logits
        trace = recorded(compiled, tmp_path / "t")
        assert np.array_equal(trace.experts_TLK, plain.experts_TLK)
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(IDS_BQ).logits, before)
    torch.compiler.reset()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_however_the_experts_are_computed_they_are_told(implementation: str, model: Model, tmp_path: Path) -> None:
    plain = recorded(model, tmp_path / "plain")
    model.set_experts_implementation(implementation)
    trace = recorded(model, tmp_path / "t")
    assert (np.sort(trace.experts_TLK) == np.sort(plain.experts_TLK)).all()


def gpt_oss() -> Model:
    (family,) = (family for family in FAMILIES if family.name == "gpt-oss")
    return family.build()


def _kernels() -> SimpleNamespace:
    """What MXFP4's kernels are called by; they choose from the logits and tell nobody."""

    def matmul(tokens: torch.Tensor, *_args: Any, **options: Any) -> torch.Tensor:
        return tokens.new_zeros(len(tokens), HIDDEN) if "scatter_indx" in options else tokens

    made = SimpleNamespace(gate_scal=None)
    return SimpleNamespace(
        routing=SimpleNamespace(routing=lambda _logits, _choices: (made, None, None)),
        swiglu=SimpleNamespace(swiglu_fn=None),
        matmul_ogs=SimpleNamespace(
            FnSpecs=lambda *_: None, FusedActivation=lambda *_: None, matmul_ogs=matmul, PrecisionConfig=None
        ),
    )


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="stands in for kernels as transformers 5.23 loads them"
)
def test_mxfp4_kernels_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The replacement is transformers' own, by `replace_with_mxfp4_linear`; only the kernels' sums are left out."""
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", lambda *_args, **_options: _kernels())
    monkeypatch.setattr(mxfp4, "triton_kernels_hub", None, raising=False)
    model = mxfp4.replace_with_mxfp4_linear(gpt_oss(), transformers.Mxfp4Config())
    told = []
    for name, module in model.named_modules():
        if name.endswith("mlp.experts"):
            assert type(module).__name__ == "Mxfp4GptOssExperts"
            module.to_empty(device="cpu").register_forward_pre_hook(lambda *_: told.append(1))
    with torch.no_grad():
        assert model(IDS_BQ).logits.shape[:2] == IDS_BQ.shape
    assert not told  # nobody is told: that is why it is refused
    with pytest.raises(MoecastError, match=r"model\.layers\.0\.mlp.*Mxfp4Config\(dequantize=True\)") as error:
        capture_routing(model, tmp_path / "t")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "t").exists()


def _save_mxfp4(folder: Path) -> None:
    """A checkpoint as gpt-oss is published: experts in blocks of 32 four-bit numbers and a scale each."""
    model = gpt_oss()
    model.save_pretrained(folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(3)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.full(shape, 122, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_command_loads_mxfp4_so_that_it_can_be_heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _save_mxfp4(tmp_path / "gpt-oss")
    asked, validate = [], Mxfp4HfQuantizer.validate_environment

    def spy(self: Mxfp4HfQuantizer, *args: Any, **options: Any) -> None:
        asked.append(self.quantization_config.dequantize)
        validate(self, *args, **options)

    monkeypatch.setattr(Mxfp4HfQuantizer, "validate_environment", spy)
    model = ModelSource(name=str(tmp_path / "gpt-oss"), dtype="float32").load_model()
    assert asked == [True]
    trace = recorded(model, tmp_path / "t")
    assert trace.meta.shape_LEK == (3, 8, 2)
    assert model.model.layers[0].mlp.experts.gate_up_proj.abs().max() > 0
