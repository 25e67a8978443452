"""One of `SIZES` with some of its values replaced: what both command lines offer."""

from __future__ import annotations

import dataclasses

from moecast.errors import MoecastError
from moecast.traces.capture.own.policies import AuxGlobal, policy_named
from moecast.traces.capture.own.run import SIZES, Size


def sized(
    name: str,
    *,
    policy: str = AuxGlobal.name,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
) -> Size:
    """Take the size called `name` with this router policy and seed, and these steps or this time for training.

    Raises
    ------
    MoecastError
        No such size or policy, or no training at all.
    """
    if name not in SIZES:
        raise MoecastError(f"one of {', '.join(SIZES)}", field="size", value=name)
    if steps is not None and steps < 1:
        raise MoecastError("at least 1", field="steps", value=steps)
    if minutes is not None and not minutes > 0:
        raise MoecastError("more than 0", field="minutes", value=minutes)
    size = SIZES[name]
    trained = dataclasses.replace(
        size.train,
        model=dataclasses.replace(size.train.model, policy=policy_named(policy)),
        seed=seed,
        steps=steps or size.train.steps,
        minutes=minutes,
    )
    return Size(name=name, train=trained, capture=dataclasses.replace(size.capture, seed=seed))
