"""The context manager in people's own scripts: padding, phases, caches, ends, kills and what it refuses."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache, MixtralForCausalLM

from moecast.errors import MoecastError
from moecast.traces import NO_CHOICE, PHASES, RoutingTrace, describe_trace, read_trace
from moecast.traces.capture.hf import RoutingCapture, capture_routing

ROOT = Path(__file__).resolve().parents[2]
IDS_BQ = torch.randint(3, 64, (3, 6), generator=torch.Generator().manual_seed(5))
LENGTHS = (2, 6, 4)
CACHE = "cache" if "cache" in inspect.signature(MixtralForCausalLM.forward).parameters else "past_key_values"


def recorded(model: nn.Module, out: Path, work: Callable[[RoutingCapture], Any], **options: Any) -> RoutingTrace:
    with capture_routing(model, out, **options) as routing, torch.no_grad():
        work(routing)
    return read_trace(out, weights=bool(options.get("weights")))


def alone(model: nn.Module, out: Path) -> list[np.ndarray]:
    """The experts of each row without its padding, run by itself."""

    def one_by_one(_routing: RoutingCapture) -> None:
        for row, length in enumerate(LENGTHS):
            model(IDS_BQ[row : row + 1, :length])

    trace = recorded(model, out, one_by_one)
    return [trace.experts_TLK[trace.sequence_T == row] for row in range(len(LENGTHS))]


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BQ, mask_BQ = torch.zeros_like(IDS_BQ), torch.zeros_like(IDS_BQ)
    for row, length in enumerate(LENGTHS):
        at = slice(6 - length, None) if side == "left" else slice(0, length)
        ids_BQ[row, at], mask_BQ[row, at] = IDS_BQ[row, :length], 1
    return ids_BQ, mask_BQ


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("four_dimensional", [False, True])
def test_padding_is_not_recorded_and_changes_nothing(
    side: str, four_dimensional: bool, model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    ids_BQ, mask_BQ = padded(side)
    mask = mask_BQ
    if four_dimensional:
        mask = (mask_BQ[:, None, None, :] * torch.tril(torch.ones(6, 6, dtype=torch.long))).bool()
    position_BQ = (mask_BQ.cumsum(1) - 1).clamp(min=0)
    trace = recorded(model, tmp_path / "t", lambda _: model(ids_BQ, attention_mask=mask, position_ids=position_BQ))
    assert trace.n_tokens == sum(LENGTHS)
    expected = alone(model, tmp_path / "alone")
    for row, length in enumerate(LENGTHS):
        own = trace.sequence_T == row
        assert trace.token_id_T is not None
        assert trace.token_id_T[own].tolist() == IDS_BQ[row, :length].tolist()
        assert trace.position_T[own].tolist() == list(range(length))
        assert (np.sort(trace.experts_TLK[own]) == np.sort(expected[row])).all()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_generate_routes_as_each_row_alone_does(
    cache: str, chunk: int | None, model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    ids_BQ, mask_BQ = padded("left")
    options = {"max_new_tokens": 4, "do_sample": False}
    chosen = {"cache_implementation": cache, "prefill_chunk_size": chunk, **options}
    both = recorded(model, tmp_path / "t", lambda _: model.generate(ids_BQ, attention_mask=mask_BQ, **chosen))

    def one_by_one(_routing: RoutingCapture) -> None:
        for row, length in enumerate(LENGTHS):
            model.generate(IDS_BQ[row : row + 1, :length], **options)

    single = recorded(model, tmp_path / "alone", one_by_one)
    for row in range(len(LENGTHS)):
        a, b = both.select(both.sequence_T == row), single.select(single.sequence_T == row)
        assert a.n_tokens == LENGTHS[row] + 3
        for name in ("position_T", "phase_T", "token_id_T"):
            assert getattr(a, name).tolist() == getattr(b, name).tolist()
        assert (np.sort(a.experts_TLK) == np.sort(b.experts_TLK)).all()


def test_rows_that_have_ended_are_not_recorded(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    """`generate` feeds the end and then padding to such rows, with a mask that calls it real."""
    free_BQ = model.generate(IDS_BQ, max_new_tokens=6, do_sample=False)
    end = int(free_BQ[0, 8])  # the third token that row 0 generates
    model.generation_config.eos_token_id = end
    trace = recorded(
        model, tmp_path / "t", lambda _: model.generate(IDS_BQ, max_new_tokens=6, do_sample=False, pad_token_id=0)
    )
    decoded = trace.select(trace.phase_T == PHASES.index("decode"))
    assert decoded.token_id_T is not None
    for row in range(3):
        new = free_BQ[row, 6:-1].tolist()
        new = new[: new.index(end)] if end in new else new
        assert decoded.token_id_T[decoded.sequence_T == row].tolist() == new
    every = recorded(
        model, tmp_path / "every", lambda _: model.generate(IDS_BQ, max_new_tokens=6, do_sample=False), end_ids=()
    )
    assert every.n_tokens > trace.n_tokens


def test_a_loop_of_ones_own_and_chunks_of_a_prompt_go_on_in_their_sequence(
    model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    def loop(_routing: RoutingCapture) -> None:
        first = model(IDS_BQ[:, :2], use_cache=True)
        second = model(IDS_BQ[:, 2:5], **{CACHE: getattr(first, CACHE)})
        model(IDS_BQ[:, 5:], **{CACHE: getattr(second, CACHE)}, return_dict=False)
        model(IDS_BQ[:1])

    trace = recorded(model, tmp_path / "t", loop)
    whole = recorded(model, tmp_path / "whole", lambda _: model(IDS_BQ))
    assert trace.step_T is not None
    assert [int((trace.step_T == step).sum()) for step in range(4)] == [6, 9, 3, 6]
    assert [PHASES[trace.phase_T[trace.step_T == step][0]] for step in range(4)] == [
        *["prefill"] * 2,
        "decode",
        "prefill",
    ]
    for row in range(3):
        own = trace.sequence_T == row
        assert trace.position_T[own].tolist() == list(range(6))
        assert (np.sort(trace.experts_TLK[own]) == np.sort(whole.experts_TLK[whole.sequence_T == row])).all()
    assert set(trace.sequence_T[trace.step_T == 3].tolist()) == {3}


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", sorted({"past_key_values", CACHE}))
def test_a_prefix_filled_before_the_capture_is_counted(
    model: transformers.PreTrainedModel, tmp_path: Path, name: str
) -> None:
    """Under the name that transformers 5.24 gave the cache, and under the older one that scripts still use."""
    cache = DynamicCache()
    with torch.no_grad():
        model(IDS_BQ[:, :4], **{name: cache})
    trace = recorded(model, tmp_path / "t", lambda _: model(IDS_BQ[:, 4:], **{name: cache}))
    assert trace.position_T.tolist() == [4, 5] * 3
    assert set(trace.phase_T.tolist()) == {PHASES.index("prefill")}
    assert "reorder_cache" not in vars(cache)


def test_packed_rows_are_several_sequences(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    trace = recorded(model, tmp_path / "t", lambda _: model(IDS_BQ[:1], position_ids=positions))
    assert trace.sequence_T.tolist() == [0, 0, 0, 1, 1, 2]
    assert trace.position_T.tolist() == positions[0].tolist()


def test_training_steps_are_phase_train_once_also_with_checkpointing(
    model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    model.train()
    older = model.gradient_checkpointing_enable  # its name in earlier versions
    getattr(model, "activation_checkpointing_enable", older)()
    with capture_routing(model, tmp_path / "t"):
        model(IDS_BQ, labels=IDS_BQ, use_cache=False).loss.backward()
    trace = read_trace(tmp_path / "t")
    assert trace.n_tokens == IDS_BQ.numel()
    assert {PHASES[phase] for phase in trace.phase_T} == {"train"}


def test_topics_go_with_their_sequences(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    def work(routing: RoutingCapture) -> None:
        model(IDS_BQ)
        routing.topic = ["law", None, "code"]
        model.generate(IDS_BQ, max_new_tokens=3, do_sample=True, num_return_sequences=2)

    trace = recorded(model, tmp_path / "t", work, topic="prose", source_rank=3, weights=True)
    named = [None if topic < 0 else trace.topics[topic] for topic in trace.topic_T]
    expected = ["prose"] * 3 + [topic for topic in ("law", None, "code") for _ in range(2)]
    assert named == [expected[sequence] for sequence in trace.sequence_T]
    assert trace.source_rank_T is not None
    assert set(trace.source_rank_T.tolist()) == {3}
    assert trace.weights_TLK is not None
    assert trace.weights_TLK.astype(float).sum(2) == pytest.approx(1, abs=2e-3)


def test_embeddings_have_no_ids(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    embeds = model.get_input_embeddings()(IDS_BQ).detach()
    plain = recorded(model, tmp_path / "ids", lambda _: model(IDS_BQ))
    trace = recorded(
        model, tmp_path / "t", lambda _: model.generate(inputs_embeds=embeds, max_new_tokens=3, do_sample=False)
    )
    assert trace.token_id_T is None
    assert (trace.experts_TLK[:18] == plain.experts_TLK).all()
    with pytest.raises(MoecastError, match="token_ids=False"):
        recorded(model, tmp_path / "mixed", lambda _: [model(IDS_BQ), model(inputs_embeds=embeds)])


def test_compiled_models_are_heard(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    plain = recorded(model, tmp_path / "plain", lambda _: model(IDS_BQ))
    model.model.layers[0].compile(backend="eager")
    with torch.no_grad():
        model(IDS_BQ)
    trace = recorded(model, tmp_path / "t", lambda _: model(IDS_BQ))
    assert trace.experts_TLK.tolist() == plain.experts_TLK.tolist()


def test_the_model_is_left_as_it_was(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        before = model(IDS_BQ).logits
        with capture_routing(model, tmp_path / "t"):
            during = model(IDS_BQ).logits
    assert torch.equal(before, during)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_pass_takes_three_copies_off_the_device_however_many_layers_it_has(
    model: transformers.PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids, mask and choices: each copy waits for the device, so their number is what a capture costs on a GPU."""
    copied = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copied.append(tuple(tensor.shape)) or cpu(tensor))
    recorded(model, tmp_path / "t", lambda _: model(IDS_BQ, attention_mask=torch.ones_like(IDS_BQ)))
    assert sorted(copied) == [(3, 6), (3, 6), (18, 3, 2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, "num_beams=1"),
        ({"assistant_model": "itself"}, "assisted decoding"),
    ],
)
def test_generation_that_takes_tokens_back_is_refused(
    options: dict[str, Any], said: str, model: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    if options.get("assistant_model"):
        assistant = type(model)(model.config)  # other random weights, so that it guesses wrong
        assistant.generation_config = model.generation_config
        options = {"assistant_model": assistant.eval()}
    with pytest.raises(MoecastError, match=said):
        recorded(
            model, tmp_path / "t", lambda _: model.generate(IDS_BQ[:1], max_new_tokens=12, do_sample=False, **options)
        )
    assert read_trace(tmp_path / "t").n_tokens >= 6


def test_models_that_cannot_be_heard_are_named_in_one_line(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, num_attention_heads=2))
    jet = transformers.JetMoeForCausalLM(
        transformers.JetMoeConfig(**small, num_key_value_heads=2, kv_channels=8, num_local_experts=4)
    )
    switch = transformers.SwitchTransformersModel(
        transformers.SwitchTransformersConfig(
            vocab_size=64, d_model=16, d_ff=16, num_layers=2, num_heads=2, num_experts=4
        )
    )
    for wrong, said in [
        (dense, "no MoE layers"),
        (jet, "none that are told"),
        (switch, "encoder-decoder"),
        (nn.Linear(2, 2), "not a transformers model"),
        (nn.DataParallel(model), "process per GPU"),
    ]:
        with pytest.raises(MoecastError, match=said):
            capture_routing(wrong, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_layer_that_a_kernel_replaced_is_named(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    block = model.model.layers[1].mlp
    block.forward = lambda hidden: hidden
    with pytest.raises(MoecastError, match=r"model\.layers\.1\.mlp\.experts: was not heard"):
        recorded(model, tmp_path / "t", lambda _: model(IDS_BQ))


def test_expert_parallel_models_are_refused(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    model.model.layers[0].mlp.experts._is_expert_parallel = True
    with pytest.raises(MoecastError, match="expert parallelism"):
        capture_routing(model, tmp_path / "t")


def test_no_forward_pass_is_an_error(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(MoecastError, match="no forward pass"), capture_routing(model, tmp_path / "t"):
        pass


def test_an_existing_folder_is_not_touched(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(MoecastError, match="holds something already"):
        capture_routing(model, tmp_path)


def test_an_exception_inside_keeps_what_was_recorded(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    def work(_routing: RoutingCapture) -> None:
        model(IDS_BQ)
        with pytest.raises(RuntimeError):
            model(IDS_BQ.float())  # a pass that fails is no pass
        model(IDS_BQ)
        raise KeyError("the script's own")

    with pytest.raises(KeyError, match="own"):
        recorded(model, tmp_path / "t", work, shard_tokens=10)
    trace = read_trace(tmp_path / "t")
    assert trace.n_tokens == 36
    assert trace.sequence_T.max() == 5
    assert (trace.experts_TLK != NO_CHOICE).all()


KILLED = """
import sys, torch
from tests.hf.families import FAMILIES
from moecast.traces.capture.hf import capture_routing
model = FAMILIES[0].build()
with capture_routing(model, sys.argv[1], shard_tokens=50) as routing, torch.no_grad():
    while True:
        model(torch.randint(3, 64, (2, 10)))
        print(routing.n_tokens, flush=True)
"""


def test_kill_9_loses_at_most_the_open_shard(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "t")],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        assert process.stdout is not None
        told = 0
        while told < 220:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split())])
    assert process.returncode == -signal.SIGKILL
    trace = read_trace(tmp_path / "t")
    assert told - 50 < trace.n_tokens <= told + 20
    assert trace.n_tokens % 50 == 0
    assert describe_trace(tmp_path / "t").shards == trace.n_tokens // 50
    first = trace.select(slice(0, 200))
    assert first.position_T.tolist() == list(range(10)) * 20
