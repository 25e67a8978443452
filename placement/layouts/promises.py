"""What layouts can serve at the most, by the lower bounds of their steps: thousands at once.

Axes: Y layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.placement.layouts.serving_layout import ServingLayout
from moecast.placement.layouts.steady import Slo

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Promises:
    """Most output tokens per second and GPU of each layout, and least times, served one way.

    Parameters
    ----------
    mode
        `agg` or `disagg`.
    rate_Y, tpot_Y, ttft_Y
        Tokens/s of a GPU; seconds of an output token; seconds of the first.
    """

    mode: str
    rate_Y: Float
    tpot_Y: Float
    ttft_Y: Float

    def within_Y(self, slo: Slo) -> Bool:
        """Which could meet the limits."""
        return np.asarray((self.tpot_Y <= slo.tpot_s) & (self.ttft_Y <= slo.ttft_s) & (self.rate_Y > 0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Floors:
    """Layouts for decode, those for prompts that go with them, and the lower bounds of both's steps.

    Parameters
    ----------
    prompts
        The layouts for prompts, each once; `prompt_Y` says which goes with each decoding layout, -1 where that does not
        fit.
    """

    layouts: Sequence[ServingLayout]
    decode_Y: Float
    prompts: Sequence[ServingLayout]
    prompt_Y: npt.NDArray[np.int64]
    prefill_P: Float
    gpus: int
    isl: int
    osl: int
    _columns: dict[str, Float] = field(default_factory=dict, repr=False)

    def together(self) -> Promises:
        """Instances that do both; see `moecast.placement.layouts.steady.together`."""
        fits_Y = self.prompt_Y >= 0
        prefill_Y = self.prefill_P[self.prompt_Y]
        chunk_P = np.array([one.batch for one in self.prompts], np.float64)
        chunk_Y = chunk_P[self.prompt_Y]
        tpot_Y = self.decode_Y + self._of("batch") * prefill_Y * self.isl / chunk_Y / self.osl
        used_Y = (self.gpus // self._of("gpus")) * self._of("sequences")
        return Promises(
            mode="agg",
            rate_Y=np.where(fits_Y, used_Y / tpot_Y / self.gpus, 0.0),
            tpot_Y=tpot_Y,
            ttft_Y=prefill_Y * np.ceil(self.isl / chunk_Y),
        )

    def apart(self, slo: Slo) -> Promises:
        """Instances of two kinds, of which those for prompts are the best that any floor allows within the limit.

        Where k whole instances decode, prompts have at most the GPUs that are left, of which each runs no more prompts
        than any layout's does: the best k counts.
        """
        ttft_P = self.ttft_P()
        meets_P = ttft_P <= slo.ttft_s
        sequences, gpus = (np.array([getattr(one, name) for one in self.prompts]) for name in ("sequences", "gpus"))
        prompts_P = np.where(meets_P, sequences / self.prefill_P / self.isl / gpus, 0.0)
        prompts = float(prompts_P.max(initial=0.0))
        least = int(gpus[meets_P].min(initial=self.gpus + 1))
        used_Y, requests_Y = self._of("gpus"), self._of("sequences") / self.decode_Y / self.osl
        best_Y = np.zeros(len(self.layouts))
        for instances in range(1, self.gpus // int(used_Y.min(initial=1)) + 1):
            left_Y = self.gpus - instances * used_Y
            served_Y = np.minimum(instances * requests_Y, left_Y * prompts)
            best_Y = np.maximum(best_Y, np.where(left_Y >= least, served_Y, 0.0))
        return Promises(
            mode="disagg",
            rate_Y=best_Y * self.osl / self.gpus,
            tpot_Y=self.decode_Y,
            ttft_Y=np.full(len(self.layouts), ttft_P.min(initial=np.inf)),
        )

    def split_with(self, prompts: ServingLayout, prefill_s: float, decode_Y: Float) -> Float:
        """Tokens/s of a GPU where decode takes so long and prompts have whole instances of one layout; no bound."""
        each, used_Y = prompts.sequences / prefill_s / self.isl, self._of("gpus")
        requests_Y = self._of("sequences") / decode_Y / self.osl
        best_Y = np.zeros(len(self.layouts))
        for ones in range(1, self.gpus // prompts.gpus + 1):
            left = self.gpus - ones * prompts.gpus
            best_Y = np.maximum(best_Y, np.minimum(ones * each, (left // used_Y) * requests_Y))
        return best_Y * self.osl / self.gpus

    def ttft_P(self) -> Float:
        """Seconds of a prompt's own steps."""
        return self.prefill_P * np.array([-(-self.isl // one.batch) for one in self.prompts])

    def _of(self, name: str) -> Float:
        if name not in self._columns:
            self._columns[name] = np.array([getattr(layout, name) for layout in self.layouts], np.float64)
        return self._columns[name]
