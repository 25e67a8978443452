"""The two parts that a step may have, prompts and running sequences, and what depends on which of them tokens are of.

Elsewhere nothing asks for a phase by its name but what knows kernels: in `moecast.sim.cost` the
name is the key under which their parameters stand, and a `Part` is its own name there.

Axes: T token.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]


class Part(StrEnum):
    """Tokens of prompts, whose keys are new, or of running sequences, which read what is in the cache."""

    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def counts(self) -> str:
        """What a Workload has so many of on each rank."""
        return _COUNTS[self]

    @property
    def latency_kind(self) -> str:
        """What the time of a step is to a user."""
        return _LATENCY_KIND[self]

    def wanted_T(self, last_T: Bool) -> Bool | None:
        """Whose logits are wanted, where these are the last of their sequences [T]; None: everybody's."""
        return last_T if self is Part.PREFILL else None

    def readers(self, queries: float) -> float:
        """Tokens that share one reading of keys in the cache, where running sequences have so many in a step."""
        return queries if self is Part.DECODE else 1.0


_COUNTS = {Part.PREFILL: "tokens", Part.DECODE: "sequences"}
_LATENCY_KIND = {Part.PREFILL: "time to first token", Part.DECODE: "inter-token latency"}

PARTS_OF = {"prefill": (Part.PREFILL,), "decode": (Part.DECODE,), "mixed": (Part.PREFILL, Part.DECODE)}
"""The phases that can be simulated, and their parts: a mixed step holds chunks of prompts beside running sequences."""

PHASES = tuple(PARTS_OF)


def phase_of(parts: Collection[Part]) -> str:
    """The phase that has just these parts."""
    return next(phase for phase, its in PARTS_OF.items() if set(its) == set(parts))
