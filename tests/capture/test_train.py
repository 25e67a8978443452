"""Training learns, resumes bit for bit, and can be cut short without becoming another run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from moecast.errors import MoecastError
from moecast.traces.capture.own.model import ModelConfig
from moecast.traces.capture.own.policies import AuxGlobal, Policy
from moecast.traces.capture.own.policies.stochastic import Stochastic, symmetric_divergence
from moecast.traces.capture.own.score import score
from moecast.traces.capture.own.tokens import Tokens
from moecast.traces.capture.own.train import TrainConfig, Trained, train
from tests.capture.helpers import killed_at, same_weights


def test_the_loss_falls(trained: Trained) -> None:
    assert np.mean(trained.losses[-5:]) < np.mean(trained.losses[:5]) - 1


def test_the_same_seed_gives_the_same_weights(
    config: TrainConfig, tokens: Tokens, trained: Trained, tmp_path: Path
) -> None:
    again = train(config, tokens, folder=tmp_path, log_every=0)
    assert again.losses == trained.losses
    assert same_weights(again, trained)


def test_resuming_after_a_kill_is_the_uninterrupted_run(
    config: TrainConfig, tokens: Tokens, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(14, config, tokens, tmp_path, monkeypatch)
    again = train(config, tokens, folder=tmp_path, log_every=0)
    assert again.losses == trained.losses
    assert same_weights(again, trained)


def test_a_run_cut_in_its_constant_part_is_the_shorter_run(
    config: TrainConfig, tokens: Tokens, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(14, dataclasses.replace(config, steps=300), tokens, tmp_path, monkeypatch)
    assert same_weights(train(config, tokens, folder=tmp_path, log_every=0), trained)


def test_a_time_limit_ends_early_and_says_after_how_many_steps(
    config: TrainConfig, tokens: Tokens, tmp_path: Path
) -> None:
    cut = train(dataclasses.replace(config, steps=100_000, minutes=0.005), tokens, folder=tmp_path, log_every=0)
    assert len(cut.losses) == cut.steps < 10_000
    assert cut.tokens == cut.steps * 2 * config.row_tokens


class Twice(AuxGlobal):
    """Two passes that do not differ, and nothing that compares them."""

    @property
    def passes(self) -> int:
        return 2


def with_policy(config: TrainConfig, policy: Policy) -> TrainConfig:
    return dataclasses.replace(config, steps=6, model=dataclasses.replace(config.model, policy=policy))


def test_two_equal_passes_are_one(config: TrainConfig, tokens: Tokens, tmp_path: Path) -> None:
    runs = []
    for policy in (AuxGlobal(), Twice()):
        (tmp_path / type(policy).__name__).mkdir()
        folder = tmp_path / type(policy).__name__
        runs.append(train(with_policy(config, policy), tokens, folder=folder, log_every=0))
    # Gradients of the two add up in another order.
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-5)


def test_passes_learn_to_agree(config: TrainConfig, tokens: Tokens, tmp_path: Path) -> None:
    rows = torch.from_numpy(config.batch(tokens, 1000)).long()
    apart = []
    for weight in (0.0, 50.0):
        (tmp_path / str(weight)).mkdir()
        policy = with_policy(config, Stochastic(consistency_weight=weight))
        model = train(dataclasses.replace(policy, steps=30), tokens, folder=tmp_path / str(weight), log_every=0).model
        with torch.no_grad():
            first, second = (model.scored(rows, seed=(9, turn))[2] for turn in range(2))
        apart.append(float(symmetric_divergence(first, second)))
    assert 0 < apart[1] < 0.7 * apart[0]


def test_a_checkpoint_of_another_configuration_is_refused(config: TrainConfig, tokens: Tokens, tmp_path: Path) -> None:
    train(dataclasses.replace(config, steps=10), tokens, folder=tmp_path, log_every=0)
    with pytest.raises(MoecastError, match="another configuration"):
        train(dataclasses.replace(config, seed=1), tokens, folder=tmp_path, log_every=0)
    with pytest.raises(MoecastError, match="steps = 30"):
        train(config, tokens, folder=tmp_path, log_every=0)
    (checkpoint,) = tmp_path.glob("*.pt")
    for damaged in (checkpoint.read_bytes()[:1000], b"", b"text"):
        checkpoint.write_bytes(damaged)
        with pytest.raises(MoecastError, match="damaged one; remove it"):
            train(config, tokens, folder=tmp_path, log_every=0)


@pytest.mark.parametrize(
    "change",
    [
        {"history": None}, {"history": [1.0]}, {"steps": None}, {"fingerprint": 1}, {"model": {}}, {"optimizer": {}},
        {"model": None}, {"optimizer": {"state": {}, "param_groups": 3}},
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_values_is_damaged(
    config: TrainConfig, tokens: Tokens, tmp_path: Path, change: dict[str, object]
) -> None:
    config = dataclasses.replace(config, steps=2)
    train(config, tokens, folder=tmp_path, log_every=0)
    (checkpoint,) = tmp_path.glob("*.pt")
    torch.save(torch.load(checkpoint, weights_only=True) | change, checkpoint)
    with pytest.raises(MoecastError, match=r"damaged one; remove it|another configuration"):
        train(config, tokens, folder=tmp_path, log_every=0)


def test_every_row_is_read_once_before_any_is_read_again(tokens: Tokens) -> None:
    rows = len(tokens.training["code"]) // 64
    seen = [tokens.batch(step, row_tokens=64, rows_per_topic=1, seed=3)[1].tobytes() for step in range(2 * rows)]
    assert len(set(seen[:rows])) == rows
    assert set(seen[rows:]) == set(seen[:rows])
    assert seen[rows:] != seen[:rows]


def test_the_baselines_are_those_of_counting(config: TrainConfig, trained: Trained, tokens: Tokens) -> None:
    found = score(trained.model, tokens, read=config.read(tokens, trained.steps), row_tokens=32)
    assert found.bigram_of_all < found.bigram < found.unigram < np.log(257)
    assert found.model < np.log(257) - 1
    assert set(found.model_by_topic) == set(tokens.topics)


@pytest.mark.parametrize("wrong", [{"choices": 65}, {"choices": 0}, {"heads": 5}])
def test_a_shape_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"choices|hidden"):
        ModelConfig(**wrong)
