"""A tiny model is trained, killed, resumed and captured under every router policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from moecast.traces import NO_CHOICE, PHASES, RoutingTrace, TraceMeta, load_LE, read_trace, write_trace
from moecast.traces.capture.own.options import sized
from moecast.traces.capture.own.policies import POLICIES
from moecast.traces.capture.own.record import capture
from moecast.traces.capture.own.run import read_material, run
from moecast.traces.capture.own.tokens import Tokens
from moecast.traces.capture.own.train import TrainConfig, train
from tests.capture.helpers import killed_at, same_weights

STEPS = 14


@pytest.fixture(scope="module", params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cache(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all policies: each has a checkpoint of its own in it."""
    folder = tmp_path_factory.mktemp("cache")
    read_material(size=sized("tiny"), cache=folder, text=text_folder)
    return folder


@pytest.fixture(scope="module")
def trace(policy: str, cache: Path, text_folder: Path) -> RoutingTrace:
    out = cache / f"{policy}.parquet"
    run(out, size=sized("tiny", policy=policy, steps=STEPS), cache=cache, text=text_folder, threads=1, draws=0)
    return read_trace(out)


def config_of(policy: str) -> TrainConfig:
    return dataclasses.replace(sized("tiny", policy=policy, steps=STEPS).train, checkpoint_every=5)


def test_a_killed_training_goes_on_bit_for_bit(
    policy: str, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(policy)
    (tmp_path / "whole").mkdir()
    whole = train(config, tokens, folder=tmp_path / "whole", log_every=0)
    killed_at(8, config, tokens, tmp_path, monkeypatch)
    again = train(config, tokens, folder=tmp_path, log_every=0)
    assert again.losses == whole.losses
    assert again.uneven == whole.uneven
    assert same_weights(again, whole)
    biased = any(bool(router.bias_E.any()) for router in whole.model.routers())
    assert biased == (policy in ("aux-free", "group-limited"))


def test_the_capture_is_valid_and_says_what_made_it(policy: str, trace: RoutingTrace) -> None:
    made = trace.meta.source["policy"]
    assert made["name"] == policy
    assert made["source"] == POLICIES[policy].source
    assert dataclasses.asdict(POLICIES[policy]).items() <= made.items()
    assert policy in trace.meta.model
    assert trace.meta.config is not None
    assert trace.meta.config["router_policy"] == policy
    assert trace.meta.config["num_experts_per_tok"] == trace.meta.choices
    assert POLICIES[policy].note(8, 2) in trace.meta.notes
    chosen_TLK = trace.experts_TLK != NO_CHOICE
    assert chosen_TLK[:, :, -1].any()
    ordered_TLK = np.sort(trace.experts_TLK, axis=2)
    twice = (np.diff(ordered_TLK.astype(int), axis=2) == 0) & (ordered_TLK[:, :, 1:] != NO_CHOICE)
    assert not twice.any()
    most = POLICIES[policy].most_choices(8, 2)
    assert trace.meta.choices <= most
    if policy not in ("expert-choice", "null-experts", "top-p", "capacity"):
        assert chosen_TLK.all()


def test_the_same_model_captures_the_same_trace_again(policy: str, tokens: Tokens, tmp_path: Path) -> None:
    size = sized("tiny", policy=policy, steps=2)
    trained = train(size.train, tokens, folder=tmp_path, log_every=0)
    model = size.train.model
    meta = TraceMeta(model="tiny", layers=2, experts=8, choices=model.policy.most_choices(8, 2))
    first, second = (capture(trained.model, tokens, size.capture, meta) for _ in range(2))
    assert first.content_hash() == second.content_hash()
    write_trace(first, tmp_path / "t.parquet")
    assert read_trace(tmp_path / "t.parquet").content_hash() == first.content_hash()


def test_policies_read_the_same_text(trace: RoutingTrace, cache: Path, text_folder: Path) -> None:
    out = cache / "again.parquet"
    run(out, size=sized("tiny", steps=STEPS), cache=cache, text=text_folder, threads=1, draws=0)
    prefill, other = (part.select(part.phase_T == PHASES.index("prefill")) for part in (trace, read_trace(out)))
    assert np.array_equal(prefill.token_id_T, other.token_id_T)
    assert np.array_equal(prefill.sequence_T, other.sequence_T)
    assert np.array_equal(prefill.step_T, other.step_T)


@pytest.mark.parametrize("policy", ["expert-choice"], indirect=True)
def test_expert_choice_loads_every_expert_alike_in_every_pass(trace: RoutingTrace) -> None:
    assert trace.step_T is not None
    for step in np.unique(trace.step_T):
        tokens = trace.select(trace.step_T == step)
        assert np.all(load_LE(tokens) == max(1, tokens.n_tokens * 2 // 8))


@pytest.mark.parametrize("policy", ["capacity"], indirect=True)
def test_late_tokens_are_dropped_more(trace: RoutingTrace) -> None:
    prefill = trace.select(trace.phase_T == PHASES.index("prefill"))
    dropped_T = (prefill.experts_TLK == NO_CHOICE).mean(axis=(1, 2))
    early, late = prefill.position_T < 4, prefill.position_T >= 12
    assert dropped_T[early].mean() < 0.5 * dropped_T[late].mean()
