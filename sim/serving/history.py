"""State over time in bounded memory: sums in bins of one width, which doubles when the run outgrows them.

What happens between two times is spread evenly over the bins that it touches. Doubling adds up
neighbours, so that sums over all time stay exact however long the run is, and means of a bin are
those of its time.

Axes: B bin, V value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

BINS = 512
FIRST_S = 2.0**-10
VALUES = (
    "running", "waiting", "kv_used", "prompt_s", "decode_s", "iterations", "prompt_tokens", "output_tokens",
    "kv_wait_s", "seat_wait_s", "prompt_wait_s",
)  # fmt: skip
"""What is summed up; of what is a state and no event, state times seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTime:
    """A pool over time, bin by bin from 0 on; the last bin ends with the run.

    Parameters
    ----------
    bin_s
        Seconds of a bin.
    running, waiting, kv_used
        Requests in flight and in the queue, and the part of KV blocks that is held, mean over the
        bin's time.
    prompt_s, decode_s
        Seconds of instances in iterations with prompts, and without.
    iterations, prompt_tokens, output_tokens
        Of the bin.
    kv_wait_s, seat_wait_s, prompt_wait_s
        Seconds of instances during which someone waited to be admitted, by what was in the way.
    """

    bin_s: float
    running: tuple[float, ...]
    waiting: tuple[float, ...]
    kv_used: tuple[float, ...]
    prompt_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    iterations: tuple[float, ...]
    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    kv_wait_s: tuple[float, ...]
    seat_wait_s: tuple[float, ...]
    prompt_wait_s: tuple[float, ...]

    @property
    def times_s(self) -> Float:
        """The middle of each bin."""
        return np.asarray(self.bin_s * (np.arange(len(self.running)) + 0.5), np.float64)


class History:
    """Sums of values by time.

    Parameters
    ----------
    bins
        How many at the most; even.
    """

    def __init__(self, *, bins: int = BINS) -> None:
        self._sums_BV = np.zeros((bins, len(VALUES)))
        self.bin_s = FIRST_S

    @property
    def total_V(self) -> Float:
        """Sums over all time."""
        return np.asarray(self._sums_BV.sum(axis=0))

    def add(self, start_s: float, end_s: float, sums_V: Sequence[float]) -> None:
        """Add what came up between two times, evenly over them."""
        while end_s >= len(self._sums_BV) * self.bin_s:
            self._double()
        first, last = int(start_s / self.bin_s), int(end_s / self.bin_s)
        if first == last:
            self._sums_BV[first] += sums_V
            return
        edges_s = self.bin_s * np.arange(first, last + 2)
        edges_s[0], edges_s[-1] = start_s, end_s
        self._sums_BV[first : last + 1] += np.outer(np.diff(edges_s) / (end_s - start_s), sums_V)

    def _double(self) -> None:
        half = len(self._sums_BV) // 2
        self._sums_BV[:half] = self._sums_BV[0::2] + self._sums_BV[1::2]
        self._sums_BV[half:] = 0.0
        self.bin_s *= 2

    def over_time(self, duration_s: float, instances: int) -> OverTime:
        """Means and sums by bin, up to the end of a run of so many instances."""
        used = min(len(self._sums_BV), max(1, int(np.ceil(duration_s / self.bin_s))))
        found = dict(zip(VALUES, self._sums_BV[:used].T.copy(), strict=True))
        length_B = np.full(used, self.bin_s)
        length_B[-1] = max(duration_s - (used - 1) * self.bin_s, 1e-300)
        for name, most in (("running", 1), ("waiting", 1), ("kv_used", instances)):
            found[name] /= length_B * most
        lists = {name: tuple(value_B.tolist()) for name, value_B in found.items()}
        return OverTime(bin_s=self.bin_s, **lists)


assert tuple(field.name for field in fields(OverTime))[1:] == VALUES
