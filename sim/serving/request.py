"""A request: when it comes, and how long its prompt and its answer are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moecast.errors import MoecastError

MOST_TOKENS = 1 << 31
"""Of one request: traces number positions in 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and its answer, whose length is known to the simulator and not to the engine.

    Parameters
    ----------
    id
        Unique in a run; requests that come at one time are served by rising ids.
    arrival_s
        When it reaches the engine. Of a closed loop, the earliest time.
    prompt_tokens, output_tokens
        Each at least 1: the first output token comes with the end of prefill.
    prefix_group, prefix_tokens
        Requests of one group have their first tokens in common, as many as the shorter
        `prefix_tokens` of two says; -1: of no group.
    topic
        Which of the trace's topics its tokens are routed like; -1: any.

    Raises
    ------
    MoecastError
        A value out of its range.
    """

    id: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_group: int = -1
    prefix_tokens: int = 0
    topic: int = -1

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (math.isfinite(self.arrival_s) and self.arrival_s >= 0):
            rule = "finite seconds, not negative"
            raise MoecastError(rule, field="arrival_s", value=self.arrival_s)
        for field, least, most in (
            ("id", 0, MOST_TOKENS),
            ("prompt_tokens", 1, MOST_TOKENS),
            ("output_tokens", 1, MOST_TOKENS),
            ("prefix_group", -1, MOST_TOKENS),
            ("prefix_tokens", 0, self.prompt_tokens),
            ("topic", -1, MOST_TOKENS),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise MoecastError(f"a whole number of {least} to {most}", field=field, value=value)

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer; the last one of them is never in the cache."""
        return self.prompt_tokens + self.output_tokens
