"""Requests that are made: how long they are, how they come, what they have in common and what they are about."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.arrivals import ArrivalLaw
from moecast.sim.serving.request import MOST_TOKENS, Request

Int = npt.NDArray[np.int64]

MOST_REQUESTS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How many tokens requests have: uniform between `least_part` of a number and the number, as public runs draw them.

    Parameters
    ----------
    prompt, output
        The longest ones.
    least_part
        1: all are of these lengths.

    Raises
    ------
    MoecastError
        A number out of its range.
    """

    prompt: int = 1024
    output: int = 1024
    least_part: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("prompt", "output"):
            if not 1 <= getattr(self, name) <= MOST_TOKENS:
                rule = "tokens, at least 1"
                raise MoecastError(rule, field=f"{name}_tokens", value=getattr(self, name))
        if not (math.isfinite(self.least_part) and 0 < self.least_part <= 1):
            rule = "a part, more than 0 and at most 1"
            raise MoecastError(rule, field="length_ratio", value=self.least_part)

    def drawn(self, requests: int, rng: np.random.Generator) -> tuple[Int, Int]:
        """Tokens of prompts and answers."""
        drawn = [
            rng.integers(max(1, math.ceil(self.least_part * most)), most + 1, requests)
            for most in (self.prompt, self.output)
        ]
        return drawn[0], drawn[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What requests have in common.

    Parameters
    ----------
    groups, tokens
        How many prefixes there are, each as likely, and how long; of none, 0.
    topics
        Weights of the trace's topics, by their place in it; empty: any.

    Raises
    ------
    MoecastError
        One of groups and tokens without the other, or a weight below 0.
    """

    groups: int = 0
    tokens: int = 0
    topics: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges."""
        if (self.groups > 0) != (self.tokens > 0) or min(self.groups, self.tokens) < 0:
            rule = "prefixes have a number and a length: give both (--prefix-groups, --prefix-tokens)"
            raise MoecastError(rule, field="prefix_groups", value=self.groups)
        if self.topics and (min(self.topics) < 0 or not sum(self.topics) > 0):
            raise MoecastError("weights, of which one is more than 0", field="topics", value=self.topics)


def make_requests(
    arrivals: ArrivalLaw, lengths: Lengths, requests: int, *, sharing: Sharing | None = None, seed: int = 0
) -> tuple[Request, ...]:
    """Make so many requests, with ids from 0 on.

    Raises
    ------
    MoecastError
        None or too many of them, or a prefix as long as the shortest prompt.
    """
    if not 1 <= requests <= MOST_REQUESTS:
        raise MoecastError(f"1 to {MOST_REQUESTS:,}", field="num_requests", value=requests)
    rng, shared = np.random.default_rng(seed), sharing or Sharing()
    prompts, outputs = lengths.drawn(requests, rng)
    times_s = arrivals.times_s(requests, rng)
    if shared.tokens and shared.tokens >= prompts.min():
        rule = f"shorter than the shortest prompt, which has {prompts.min()} tokens"
        raise MoecastError(rule, field="prefix_tokens", value=shared.tokens)
    groups = rng.integers(0, shared.groups, requests) if shared.groups else np.full(requests, -1)
    topics = np.full(requests, -1)
    if shared.topics:
        weights = np.array(shared.topics) / sum(shared.topics)
        topics = rng.choice(len(weights), requests, p=weights)
    return tuple(
        Request(
            id=number,
            arrival_s=time_s,
            prompt_tokens=prompt,
            output_tokens=output,
            prefix_group=group,
            prefix_tokens=shared.tokens,
            topic=topic,
        )
        for number, (time_s, prompt, output, group, topic) in enumerate(
            zip(times_s.tolist(), prompts.tolist(), outputs.tolist(), groups.tolist(), topics.tolist(), strict=True)
        )
    )
