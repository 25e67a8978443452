"""Models that accelerate spreads, offloads, prepares and trains: the same routing as without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

from moecast.errors import MoecastError
from moecast.traces import PHASES, RoutingTrace, read_trace
from moecast.traces.capture.hf import capture_routing
from tests.hf.families import FAMILIES

IDS_BQ = torch.randint(3, 64, (4, 6), generator=torch.Generator().manual_seed(5))
MASK_BQ = torch.ones_like(IDS_BQ)
MASK_BQ[0, :3] = 0
CPU = torch.device("cpu")
PARTS = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
HALF_ON_DISK = dict.fromkeys(PARTS, "cpu") | {"model.layers.2": "disk"}
Model = transformers.PreTrainedModel
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # its older name


@pytest.fixture(autouse=True)
def _forget_the_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def recorded(model: torch.nn.Module, out: Path) -> RoutingTrace:
    with capture_routing(model, out), torch.no_grad():
        model(IDS_BQ)
        model.generate(IDS_BQ, attention_mask=MASK_BQ, max_new_tokens=3, do_sample=False)
    return read_trace(out)


def loaded(model: Model, folder: Path, **where: Any) -> Model:
    model.save_pretrained(folder / "saved")
    again = type(model).from_pretrained(folder / "saved", offload_folder=folder / "offloaded", **where).eval()
    again.generation_config = model.generation_config
    return again


PLACES: dict[str, Callable[[Model, Path], torch.nn.Module]] = {
    "device_map=auto": lambda model, folder: loaded(model, folder, device_map="auto"),
    "device_map=cpu": lambda model, folder: loaded(model, folder, device_map="cpu"),
    "cpu and disk": lambda model, folder: loaded(model, folder, device_map=HALF_ON_DISK),
    "all on disk": lambda model, folder: loaded(model, folder, device_map="auto", max_memory={"cpu": "1KB"}),
    "cpu_offload": lambda model, _: accelerate.cpu_offload(model, execution_device=CPU),
    "disk_offload": lambda model, folder: accelerate.disk_offload(model, folder / "o", execution_device=CPU),
    "dispatch_model": lambda model, folder: accelerate.dispatch_model(
        model, HALF_ON_DISK, main_device="cpu", offload_dir=folder / "o"
    ),
    "prepare": lambda model, _: accelerate.Accelerator(cpu=True).prepare(model),
}


@pytest.mark.parametrize("place", PLACES)
def test_wherever_the_weights_lie_the_routing_is_the_same(place: str, model: Model, tmp_path: Path) -> None:
    plain = recorded(model, tmp_path / "plain")
    trace = recorded(PLACES[place](model, tmp_path), tmp_path / "t")
    for column in ("experts_TLK", "sequence_T", "position_T", "phase_T", "token_id_T"):
        assert np.array_equal(getattr(trace, column), getattr(plain, column))
    assert trace.meta.source["device"] == plain.meta.source["device"]


def test_a_router_that_is_offloaded_is_heard(tmp_path: Path) -> None:
    (llama,) = (family for family in FAMILIES if family.name == "llama-4")
    plain = recorded(llama.build(), tmp_path / "plain")
    where = HALF_ON_DISK | {"model.layers.1": "disk", "model.layers.3": "disk"}
    spread = accelerate.dispatch_model(llama.build(), where, main_device="cpu", offload_dir=tmp_path / "o")
    trace = recorded(spread, tmp_path / "t")
    assert np.array_equal(trace.experts_TLK, plain.experts_TLK)
    assert trace.meta.source["device"] == plain.meta.source["device"]


def test_weights_on_the_meta_device_are_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match=r"MixtralForCausalLM.*meta device"):
        capture_routing(model.to("meta"), tmp_path / "t")


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
def test_a_training_loop_records_each_batch_once(
    checkpointing: dict[str, bool] | None, model: Model, tmp_path: Path
) -> None:
    with capture_routing(model, tmp_path / "plain"), torch.no_grad():
        model(IDS_BQ[:2])
        model(IDS_BQ[2:])
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.enable_input_require_grads()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    data = torch.utils.data.DataLoader([{"input_ids": row, "labels": row} for row in IDS_BQ], batch_size=2)
    model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), data)
    with capture_routing(model, tmp_path / "t"):
        for batch in data:  # two of them are one step: the second still sees the weights of the first
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch, use_cache=False).loss)
                optimizer.step()
                optimizer.zero_grad()
    plain, trace = read_trace(tmp_path / "plain"), read_trace(tmp_path / "t")
    assert {PHASES[phase] for phase in trace.phase_T} == {"train"}
    assert np.array_equal(trace.experts_TLK, plain.experts_TLK)
    assert np.array_equal(trace.step_T, plain.step_T)


def test_mixed_precision_is_said(model: Model, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    trace = recorded(prepared, tmp_path / "t")
    assert (trace.meta.source["dtype"], trace.meta.source["autocast"]) == ("float32", "bfloat16")


def test_a_trainers_steps_are_train_and_its_evaluation_is_prefill(model: Model, tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in IDS_BQ]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        gradient_checkpointing=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:1])
    with capture_routing(model, tmp_path / "t"):
        trainer.train()
    trace = read_trace(tmp_path / "t")
    assert [(PHASES[trace.phase_T[trace.step_T == step][0]], int((trace.step_T == step).sum())) for step in (0, 1)] == [
        ("train", 12),
        ("prefill", 6),
    ]
