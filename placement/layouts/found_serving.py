"""What a search for a serving layout found: the winner and its front, what did not fit, and the certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.placement.layouts.mappings import mapping_json
from moecast.placement.layouts.steady import NO_QUEUE

if TYPE_CHECKING:
    from moecast.placement.layouts.fitted import Fitting
    from moecast.placement.layouts.front import RunnerUp
    from moecast.placement.layouts.mappings import Tried
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.steady import Slo, Steady
    from moecast.sim.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundServing:
    """What a search found.

    Parameters
    ----------
    winner, plan
        The best within the limits, by the last rung; and its plan, with its own placement.
    mappings
        What other ways to put the winner's ranks on GPUs make of it, against consecutive ones.
    runner_up
        The best of another kind; None where all that were placed are of one.
    scored, placed
        All that were timed by ``bound``; those timed by the last rung, best first.
    front
        Of both.
    most_tokens_per_s_per_gpu
        The certificate: no layout of the space within the limits serves more, whatever its placement.
    legal, refused, fitted
        How many layouts there were, why combinations were refused, and what fits.
    left_out, within
        Layouts that floors excluded from the limits; and those that could still meet them.
    network
        The rung of `placed`.
    """

    winner: Steady
    plan: Plan
    mappings: tuple[Tried, ...]
    runner_up: RunnerUp | None
    scored: tuple[Steady, ...]
    placed: tuple[Steady, ...]
    front: tuple[Steady, ...]
    most_tokens_per_s_per_gpu: float
    legal: int
    refused: dict[str, int]
    fitted: Fitting[ServingLayout]
    left_out: int
    within: int
    slo: Slo
    gpus: int
    network: str

    @property
    def gap(self) -> float:
        """By what part of its throughput any layout could beat the winner, at the most."""
        return max(self.most_tokens_per_s_per_gpu / self.winner.tokens_per_s_per_gpu - 1, 0.0)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, the plan left out."""
        other = self.runner_up
        return {
            "gpus": self.gpus,
            "slo": {name: _finite(getattr(self.slo, name)) for name in ("ttft_s", "tpot_s")},
            "model": NO_QUEUE,
            "network": self.network,
            "winner": self.winner.to_json(),
            "mapping": mapping_json(self.winner.mapping, self.mappings),
            "runner_up": None
            if other is None
            else {**other.steady.to_json(), "behind": other.behind, "faster_step": other.faster_step},
            "front": [one.to_json() for one in self.front],
            "placed": [one.to_json() for one in self.placed],
            "certificate": {"most_tokens_per_s_per_gpu": self.most_tokens_per_s_per_gpu, "gap": self.gap},
            "searched": {
                "legal": self.legal,
                "refused": self.refused,
                "fit": len(self.fitted.layouts),
                "do_not_fit": self.fitted.overfull,
                "left_out_by_floors": self.left_out,
                "within": self.within,
                "scored": len(self.scored),
                "nearest_that_do_not_fit": {
                    str(gpus): {"layout": near.layout.name(), "missing_bytes": near.missing_bytes}
                    for gpus, near in self.fitted.nearest.items()
                },
            },
        }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
