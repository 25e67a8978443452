"""Routing that is made: chances as asked, groups respected, and the same again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moecast.errors import MoecastError
from moecast.sim import ModelShape, Workload, draw_steps, fit_workload, load_model
from moecast.sim.made_routing import RoutingLaw, chances_LE, parse_law, routing_by_law, routing_by_load
from moecast.traces import LoadTable, RoutingTrace, TraceMeta, read_trace, shipped_trace_path

QWEN, V3, LITE = (load_model(name) for name in ("qwen3-30b-a3b", "deepseek-v3", "deepseek-v2-lite"))
TOKENS = 6000


def made(law: str, model=LITE, seed: int = 0) -> RoutingTrace:  # type: ignore[no-untyped-def]
    return routing_by_law(parse_law(law), model, tokens=TOKENS, sequence=100, phase="prefill", position=0, seed=seed)


@pytest.mark.parametrize("law", ["uniform", "zipf:0.5", "zipf:1.5", "power-law:1.2", "gamma:0.8"])
def test_experts_are_chosen_with_their_chance(law: str) -> None:
    """Chi-square over the experts of a layer, the variance of draws without replacement being smaller."""
    trace = made(law)
    rng = np.random.default_rng(
        [0, ["uniform", "zipf", "power-law", "trace", "load", "gamma"].index(parse_law(law).name)]
    )
    chance_LE = chances_LE(parse_law(law).share_LE(LITE.layers, 64, TOKENS, 6, rng), 6)
    assert chance_LE.sum(axis=1) == pytest.approx(np.full(LITE.layers, 6))
    for layer in (0, 13, 25):
        experts_TK = np.sort(trace.experts_TLK[:, layer].astype(int), axis=1)
        assert (np.diff(experts_TK, axis=1) > 0).all()
        count_E = np.bincount(experts_TK.ravel(), minlength=64)
        free = (chance_LE[layer] > 0.01) & (chance_LE[layer] < 0.99)
        z = (count_E - TOKENS * chance_LE[layer])[free] / np.sqrt(TOKENS * (chance_LE * (1 - chance_LE))[layer][free])
        assert (z**2).mean() < 1.8
        assert (count_E[chance_LE[layer] >= 1] == TOKENS).all()


def test_groups_of_the_router_are_respected() -> None:
    experts_TK = made("uniform", V3).experts_TLK[:, 5].astype(int)
    assert all(len({expert // 32 for expert in token}) == 4 for token in experts_TK[:500].tolist())
    load_E = np.bincount(experts_TK.ravel(), minlength=256) / TOKENS
    assert np.abs(load_E - 8 / 256).max() < 6 * np.sqrt(8 / 256 / TOKENS)


@pytest.mark.parametrize("number", [0, 0.3, 0.8, 10])
def test_gamma_shares_vary_by_their_number(number: float) -> None:
    """The spread of a gamma distribution is its number; a layer's shares are what is drawn, over their sum."""
    law = parse_law(f"gamma:{number}")
    share_LE = law.share_LE(400, 256, TOKENS, 8, np.random.default_rng(2))
    assert share_LE.sum(axis=1) == pytest.approx(np.ones(400))
    assert (share_LE >= 0).all()
    if number <= 1:  # beyond, so few experts have a share that their sum varies as well
        assert (share_LE * 256).std() == pytest.approx(number, rel=0.03, abs=1e-12)


def test_one_kind_of_recorded_text_is_as_uneven_as_serving_rows_are_asked(shared_traces: Path) -> None:
    from moecast.validate.published.serving import ONE_TEXT

    recorded = np.load(shared_traces / "deepseek-v2-lite.npz")
    kinds = ("intent", "law", "summary", "translation")
    load_KLE = np.stack(
        [[np.bincount(recorded[kind][:, layer].ravel(), minlength=64) for layer in range(26)] for kind in kinds]
    )
    spread_K = (load_KLE.std(axis=2) / load_KLE.mean(axis=2)).mean(axis=1)
    assert spread_K.mean() == pytest.approx(parse_law(ONE_TEXT).number, abs=0.05)


def test_the_same_seed_makes_the_same_routing() -> None:
    assert (made("zipf:1", QWEN).experts_TLK == made("zipf:1", QWEN).experts_TLK).all()
    assert (made("zipf:1", QWEN).experts_TLK != made("zipf:1", QWEN, seed=1).experts_TLK).any()


def test_a_load_table_is_followed() -> None:
    rng = np.random.default_rng(3)
    load_LE = rng.integers(1, 1000, (LITE.layers, 64))
    table = LoadTable(load_LE=load_LE, meta=TraceMeta(model="server", layers=LITE.layers, experts=64, choices=6))
    trace = routing_by_load(table, LITE, tokens=TOKENS, sequence=8, phase="decode", position=2040, seed=0)
    wanted_E = load_LE[4] / load_LE[4].sum()
    found_E = np.bincount(trace.experts_TLK[:, 4].ravel(), minlength=64) / (6 * TOKENS)
    assert np.abs(found_E - wanted_E).max() < 0.004
    assert "independent" in trace.meta.notes
    empty = LoadTable(load_LE=np.zeros((LITE.layers, 64), np.int64), meta=table.meta)
    with pytest.raises(MoecastError, match="layer 0: has no choice"):
        routing_by_load(empty, LITE, tokens=10, sequence=8, phase="decode", position=0, seed=0)
    with pytest.raises(MoecastError, match="experts = 64"):
        routing_by_load(
            table,
            V3.with_routing("x", layers=26, experts=256, choices=8),
            tokens=10,
            sequence=8,
            phase="decode",
            position=0,
            seed=0,
        )


@pytest.mark.parametrize(
    "text", ["zipf", "uniform:2", "zipf:x", "zipf:nan", "zipf:-1", "power-law:1e9", "gamma", "even", ""]
)
def test_a_law_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(MoecastError, match="--routing"):
        parse_law(text)


@pytest.mark.parametrize("model", [LITE, V3], ids=["no groups", "groups"])
def test_load_that_tokens_cannot_have_is_said(model: ModelShape) -> None:
    """What goes elsewhere is what a count of the choices finds, and nothing of a load that tokens can have."""
    even = routing_by_law(parse_law("uniform"), model, tokens=10, sequence=10, phase="prefill", position=0, seed=0)
    assert even.meta.source["made"]["moved_load"] == pytest.approx(0, abs=1e-6)
    load_LE = np.random.default_rng(0).integers(1, 10, (model.layers, model.experts))
    load_LE[:, 5] = load_LE.sum(axis=1)  # half of the choices, which only one choice of each token can be
    table = LoadTable(
        load_LE=load_LE,
        meta=TraceMeta(model="x", layers=model.layers, experts=model.experts, choices=model.choices),
    )
    trace = routing_by_load(table, model, tokens=2000, sequence=8, phase="decode", position=0, seed=0)
    found_E = np.bincount(trace.experts_TLK[:, 3].ravel(), minlength=model.experts) / (2000 * model.choices)
    moved = np.abs(found_E - load_LE[3] / load_LE[3].sum()).sum() / 2
    assert moved > 0.3
    assert trace.meta.source["made"]["moved_load"] == pytest.approx(moved, abs=0.03)


def test_a_power_law_reaches_as_far_as_a_step() -> None:
    asked = {"sequence": 10, "phase": "decode", "position": 0, "seed": 0, "step_tokens": 128}
    few, many = (
        np.bincount(routing_by_law(parse_law("power-law:1.2"), QWEN, tokens=tokens, **asked).experts_TLK[:, 0].ravel())
        for tokens in (2000, 8000)
    )
    assert np.abs(few / few.sum() - many / many.sum()).max() < 0.01


def test_power_law_counts_stay_in_their_range() -> None:
    share_LE = RoutingLaw(name="power-law", number=1.2).share_LE(3, 256, 4096, 8, np.random.default_rng(0))
    assert share_LE.sum(axis=1) == pytest.approx(np.ones(3))
    assert (share_LE.max(axis=1) / share_LE.min(axis=1)).max() <= 0.8 * 4096 * (1 + 1e-9)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("ranks", [8, 32, 128])
def test_defaults_take_what_the_shipped_trace_fills(phase: str, ranks: int) -> None:
    trace = read_trace(shipped_trace_path())
    asked = Workload(phase=phase, tokens_per_rank={"prefill": 512, "decode": 32}[phase], steps=8)
    fitted = fit_workload(trace, asked, ranks=ranks)
    assert 1 <= fitted.tokens_per_rank <= asked.tokens_per_rank
    steps = draw_steps(trace, fitted, ranks=ranks)
    assert [step.n_tokens for step in steps] == [ranks * fitted.tokens_per_rank] * 8
