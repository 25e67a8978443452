"""Dying in the middle of training, and comparing what training left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moecast.traces.capture.own.tokens import Tokens
from moecast.traces.capture.own.train import TrainConfig, Trained, train


def same_weights(first: Trained, second: Trained) -> bool:
    """Whether all weights and biases are the same, bit for bit."""
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def killed_at(step: int, config: TrainConfig, tokens: Tokens, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the process would read the batch of `step`, and die there."""

    class DeadError(Exception):
        pass

    def batch(self: Tokens, asked: int, **settings: int) -> np.ndarray:
        if asked == step:
            raise DeadError
        return read(self, asked, **settings)

    read = Tokens.batch
    with monkeypatch.context() as patch:
        patch.setattr(Tokens, "batch", batch)
        with pytest.raises(DeadError):
            train(config, tokens, folder=folder, log_every=0)
