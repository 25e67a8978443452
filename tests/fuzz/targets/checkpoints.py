"""The checkpoints of moecast's own training, which a killed run left and anyone may have changed."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutations import SCALARS, mutate, mutate_bytes, often_mutated
from tests.fuzz.runner import Target

_STEPS = 2


@functools.cache
def _trained() -> tuple[Any, Any, bytes]:
    """A tiny configuration, its tokens, and the checkpoint that its whole training leaves."""
    import dataclasses

    from moecast.traces.capture.own.corpus import folder_corpus
    from moecast.traces.capture.own.run import SIZES
    from moecast.traces.capture.own.tokens import tokenize
    from moecast.traces.capture.own.train import train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for topic, word in (("law", "the court "), ("code", "return x ")):
            (folder / "text" / topic).mkdir(parents=True)
            for index in range(40):
                (folder / "text" / topic / f"{index}.txt").write_text(f"{word * 60}{index}", encoding="utf-8")
        (folder / "tokens").mkdir()
        tokens = tokenize(folder_corpus(folder / "text"), vocabulary=257, folder=folder / "tokens")
        config = dataclasses.replace(SIZES["tiny"].train, steps=_STEPS)
        train(config, tokens, folder=folder, log_every=0)
        return config, tokens, (folder / "checkpoint.pt").read_bytes()


def _write(_: None, rng: Random, folder: Path) -> Path:
    import torch

    data, path = _trained()[2], folder / "checkpoint.pt"
    if rng.random() < 0.6:
        state = torch.load(io.BytesIO(data), weights_only=True)
        buffer = io.BytesIO()
        torch.save(_changed(state, rng), buffer)
        data = buffer.getvalue()
    path.write_bytes(often_mutated(data, rng, mutate_bytes, part=0.3))
    return path


def _changed(state: dict[str, Any], rng: Random) -> Any:
    """Its plain values changed, or a tensor: of another type, cut, or not finite."""
    import torch

    holder = rng.choice((state, state, state["model"], state["optimizer"]["state"], state["optimizer"]))
    key = rng.choice(list(holder))
    old = holder[key]
    if isinstance(old, torch.Tensor):
        changes = (old.double(), old[:1], old.flatten(), old * float("nan"), old.to(torch.int8), old.new_zeros(0))
        holder[key] = rng.choice((*changes, None, 1))
    elif isinstance(old, int | str | list):
        holder[key] = mutate(old, rng)
    elif rng.random() < 0.5:
        del holder[key]
    else:
        holder[key] = rng.choice(SCALARS)
    return state


def _read(path: Path) -> object:
    from moecast.traces.capture.own.train import train

    config, tokens, _ = _trained()
    return train(config, tokens, folder=path.parent, log_every=0).losses


TARGETS = (Target(name="checkpoint", documents=st.none, write=_write, read=_read, share=0.15),)
