"""The one function behind which an iteration's cost stands, and the simplest of its kind.

Axes: G DP rank, W iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.serving.cost.step_load import StepLoad

Float = npt.NDArray[np.float64]


class StepCost(Protocol):
    """Seconds of an iteration, from what its ranks have to do."""

    @property
    def by_request(self) -> bool:
        """Whether it asks who is in the iteration (`StepLoad.scheduled_G`), so that none can be skipped."""
        ...

    def seconds(self, load: StepLoad) -> float:
        """Seconds of one iteration."""
        ...

    def ahead(self, load: StepLoad, steps: int) -> Float:
        """Seconds of so many decode iterations in turn [W], the first of which has this load: each adds a key."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearCost:
    """A line: what tests with closed forms and quick looks want.

    Parameters
    ----------
    fixed_s
        Of every iteration.
    prompt_token_s, decode_s, decode_key_s
        Of each token of a prompt, running sequence, and key that one attends to, on the rank that
        has most to do.

    Raises
    ------
    MoecastError
        A negative number, or nothing but zeros.
    """

    fixed_s: float = 0.0
    prompt_token_s: float = 0.0
    decode_s: float = 0.0
    decode_key_s: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        values = {name: getattr(self, name) for name in ("fixed_s", "prompt_token_s", "decode_s", "decode_key_s")}
        for name, value in values.items():
            if not 0 <= value < np.inf:
                raise MoecastError("finite seconds, not negative", field=name, value=value)
        if not any(values.values()):
            raise MoecastError("an iteration takes time", field="fixed_s", value=self.fixed_s)

    @property
    def by_request(self) -> bool:
        """It does not ask."""
        return False

    def seconds(self, load: StepLoad) -> float:
        """Seconds of one iteration."""
        work_G = self.prompt_token_s * load.prompt_tokens_G + self.decode_s * load.decodes_G
        return self.fixed_s + float((work_G + self.decode_key_s * load.decode_keys_G).max(initial=0.0))

    def ahead(self, load: StepLoad, steps: int) -> Float:
        """Seconds of so many decode iterations [W]."""
        keys_WG = load.decode_keys_G + np.arange(steps)[:, None] * load.decodes_G
        work_WG = self.decode_s * load.decodes_G + self.decode_key_s * keys_WG
        return np.asarray(self.fixed_s + work_WG.max(axis=1, initial=0.0))
