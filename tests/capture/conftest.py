"""A tiny corpus, tiny configurations, and a model trained on them once per session."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the capture needs torch")

from moecast.traces import TraceMeta  # noqa: E402
from moecast.traces.capture.own.corpus import folder_corpus  # noqa: E402
from moecast.traces.capture.own.run import SIZES  # noqa: E402
from moecast.traces.capture.own.tokens import Tokens, tokenize  # noqa: E402
from moecast.traces.capture.own.train import TrainConfig, Trained, train  # noqa: E402

WORDS = {
    "animals": ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "the", "dog"],
    "code": ["def", "return", "x", "y", "print", "for", "in", "range"],
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for topic, words in WORDS.items():
        (folder / topic).mkdir()
        for index in range(40):
            text = " ".join(rng.choice(words) for _ in range(80))
            (folder / topic / f"{index}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokens(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return tokenize(folder_corpus(text_folder), vocabulary=257, folder=tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="session")
def config() -> TrainConfig:
    return SIZES["tiny"].train


@pytest.fixture(scope="session")
def trained(config: TrainConfig, tokens: Tokens, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(config, tokens, folder=tmp_path_factory.mktemp("run"), log_every=0)


@pytest.fixture(scope="session")
def meta(config: TrainConfig) -> TraceMeta:
    model = config.model
    return TraceMeta(model="tiny", layers=model.layers, experts=model.experts, choices=model.choices)
