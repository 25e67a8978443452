"""Every model family: what is captured is what its published rule makes of the routers' inputs and weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from moecast.sim import ModelShape
from moecast.traces import NO_CHOICE, PHASES, RoutingTrace, read_trace
from moecast.traces.capture.hf import capture_routing
from tests.hf.families import FAMILIES, Family, blocks, logits_and_bias, router_of

PROMPTS, LENGTH, NEW = (3, 5), 5, 4


@contextmanager
def router_inputs(model: nn.Module, family: Family) -> Iterator[list[list[np.ndarray]]]:
    """Logits [T, E] and bias of each router in turn, one list for each forward pass, by hooks of the test's own."""
    passes: list[list[tuple[np.ndarray, np.ndarray]]] = []
    routers = [router_of(block) for block in blocks(model)]

    def listen(index: int, router: nn.Module) -> object:
        def before(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if index == 0:
                passes.append([])
            passes[-1].append(logits_and_bias(router, model, args[0].detach()))

        def after(_module: nn.Module, _args: object, output: tuple[torch.Tensor, ...]) -> None:
            if index == 0:
                passes.append([])
            bias = router.balancing_biases.double().numpy()
            passes[-1].append((output[0].detach().double().numpy(), bias))

        return (
            router.register_forward_hook(after)
            if family.logits_from_output
            else router.register_forward_pre_hook(before)
        )

    hooks = [listen(index, router) for index, router in enumerate(routers)]
    yield passes
    for hook in hooks:
        hook.remove()


def chosen(trace: RoutingTrace, layer: int) -> list[set[int]]:
    return [set(row.tolist()) - {NO_CHOICE} for row in trace.experts_TLK[:, layer]]


def expected(passes: list, family: Family, layer: int, choices: int, kept: np.ndarray) -> list[set[int]]:
    rows = [family.rule(*one_pass[layer], choices) for one_pass in passes]
    flat = [row for one_pass in rows for row in one_pass]
    return [row for row, keep in zip(flat, kept, strict=True) if keep]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_choices_are_those_of_the_published_rule(family: Family, tmp_path: Path) -> None:
    """One plain forward pass, then `generate` over prompts of different lengths, padded on the left."""
    model = family.build()
    ids_BQ = torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    mask_BQ = torch.ones_like(ids_BQ)
    mask_BQ[0, : LENGTH - PROMPTS[0]] = 0
    capture = capture_routing(model, tmp_path / "t", weights=True)
    with router_inputs(model, family) as passes, torch.no_grad(), capture as routing:
        model(ids_BQ)
        out_BQ = model.generate(ids_BQ, attention_mask=mask_BQ, max_new_tokens=NEW, do_sample=False)
    trace = read_trace(tmp_path / "t", weights=True)
    check_meta(trace, family, model.config)
    check_sequences(trace, out_BQ)

    decodes = NEW - 1  # the last token sampled is not run
    assert routing.steps == len(passes) == 1 + 1 + decodes
    kept = np.concatenate([np.ones(2 * LENGTH), mask_BQ.numpy().ravel(), np.ones(2 * decodes)]).astype(bool)
    for layer, id_ in enumerate(family.layer_ids):
        choices = family.choices if family.name != "hunyuan-v1-moe" else model.config.moe_topk[id_]
        assert chosen(trace, layer) == expected(passes, family, layer, choices, kept)


def check_meta(trace: RoutingTrace, family: Family, config: transformers.PretrainedConfig) -> None:
    meta = trace.meta
    assert meta.shape_LEK == (len(family.layer_ids), family.experts, family.choices)
    assert meta.layer_ids == family.layer_ids
    assert meta.config is not None
    assert meta.config["model_type"] == config.model_type
    told = trace.experts_TLK != NO_CHOICE
    assert trace.weights_TLK is not None
    assert (trace.weights_TLK[told] > 0).all()
    if family.rule.__name__ not in ("zero_experts", "skip_expert") and family.name != "hunyuan-v1-moe":
        assert told.all()


def check_sequences(trace: RoutingTrace, out_BQ: torch.Tensor) -> None:
    """Sequences 0 and 1 were the plain pass; 2 and 3 run on from prefill to decode."""
    assert trace.token_id_T is not None
    for row, prompt in enumerate(PROMPTS):
        own = trace.sequence_T == 2 + row
        assert trace.position_T[own].tolist() == list(range(prompt + NEW - 1))
        assert trace.token_id_T[own].tolist() == out_BQ[row, LENGTH - prompt : -1].tolist()
        phases = [PHASES[phase] for phase in trace.phase_T[own]]
        assert phases == ["prefill"] * prompt + ["decode"] * (NEW - 1)


def test_the_simulator_reads_the_config_that_a_trace_carries(tmp_path: Path) -> None:
    model = FAMILIES[0].build()
    with capture_routing(model, tmp_path / "t"), torch.no_grad():
        model(torch.arange(3, 8)[None])
    meta = read_trace(tmp_path / "t").meta
    assert meta.config is not None
    shape = ModelShape.from_config(dict(meta.config), name="tiny")
    assert (shape.layers, shape.experts, shape.choices) == meta.shape_LEK
    assert shape.moe_layer_ids == meta.layer_ids


def test_the_page_lists_the_families_that_are_tested() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (experts|router) \| `\[([\w.-]+)\]` \|", page, re.MULTILINE)
    assert [(config, name) for config, _heard, name in rows] == [
        (family.prefix + family.config_suffix, family.name) for family in FAMILIES
    ]
