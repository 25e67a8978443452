"""What a search for a training layout found: the winner, what lies behind it, what did not fit, and the certificate."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moecast.placement.layouts.mappings import CONSECUTIVE, mapping_json

if TYPE_CHECKING:
    from moecast.placement.layouts.fitted import Fitting
    from moecast.placement.layouts.mappings import Tried
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.sim.training import TrainingPrediction


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedLayout:
    """A layout whose step a rung has timed.

    Parameters
    ----------
    prediction
        All that `moecast train` says of it.
    """

    layout: TrainingLayout
    prediction: TrainingPrediction

    @property
    def step_s(self) -> float:
        """Seconds of its step."""
        return self.prediction.step_time_s

    @property
    def held_bytes(self) -> int:
        """Of the fullest rank, all parts."""
        return self.prediction.memory_bytes["total"]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values: the layout, and of the forecast what tells layouts apart."""
        told = self.prediction.to_json()
        names = (
            "step_time_s",
            "interval_s",
            "tokens_per_s",
            "tokens_per_s_per_gpu",
            "model_tflops_per_gpu",
            "breakdown_s",
            "overlapped_s",
            "critical_path",
            "waiting_P",
            "in_flight_P",
            "memory_bytes",
            "microbatches",
        )
        return {"name": self.layout.name(), "layout": self.layout.to_json(), **{name: told[name] for name in names}}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRunnerUp:
    """The best of another kind than the winner.

    Parameters
    ----------
    slower
        By what part its step is longer than the winner's.
    faster_step
        By what part it must be shorter to win.
    """

    timed: TimedLayout
    slower: float
    faster_step: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundTraining:
    """What a search found.

    Parameters
    ----------
    winner, runner_up
        The fastest; and the fastest of another kind, None where all that were timed are of one.
    timed
        All that the rung timed, fastest first.
    least_step_s
        The certificate: no layout of the searched space has a shorter step, whatever its placement.
    legal, refused, fitted
        How many layouts there were, why combinations were refused, and what fits.
    left_out, scored
        Layouts whose lower bound is above the winner's step; and those that were scored.
    best_scored
        The best of those that were scored: layout, seconds by its layers, and bytes of its fullest rank.
    recut
        Layouts that were tried with a cut of layers of their own.
    mappings
        What other ways to put the winner's ranks on GPUs make of it, against consecutive ones.
    """

    winner: TimedLayout
    runner_up: TrainingRunnerUp | None
    timed: tuple[TimedLayout, ...]
    least_step_s: float
    legal: int
    refused: dict[str, int]
    fitted: Fitting[TrainingLayout]
    left_out: int
    scored: int
    best_scored: tuple[tuple[TrainingLayout, float, int], ...]
    recut: int
    mappings: tuple[Tried, ...]
    gpus: int
    network: str

    @property
    def gap(self) -> float:
        """By what part of its speed any layout could beat the winner, at the most."""
        return max(self.winner.step_s / self.least_step_s - 1, 0.0)

    @property
    def front(self) -> tuple[TimedLayout, ...]:
        """Those that none beats in both the step's time and the memory of the fullest rank; the fastest first."""
        kept: list[TimedLayout] = []
        for one in self.timed:
            if not kept or one.held_bytes < kept[-1].held_bytes:
                kept.append(one)
        return tuple(kept)

    def best_of(self, schedules: Collection[str]) -> TimedLayout | None:
        """The fastest that runs by one of some schedules; None where none was timed."""
        return next((one for one in self.timed if one.layout.schedule in schedules), None)

    def _scored(self, layout: TrainingLayout, step_s: float, held_bytes: int) -> dict[str, Any]:
        tokens_per_s_per_gpu = self.winner.prediction.tokens_per_s_per_gpu * self.winner.step_s / step_s
        return {
            "name": layout.name(),
            "step_time_s": step_s,
            "tokens_per_s_per_gpu": tokens_per_s_per_gpu,
            "memory_bytes": held_bytes,
        }

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        other = self.runner_up
        return {
            "gpus": self.gpus,
            "network": self.network,
            "winner": self.winner.to_json(),
            "runner_up": None
            if other is None
            else {**other.timed.to_json(), "slower": other.slower, "faster_step": other.faster_step},
            "timed": [one.to_json() for one in self.timed],
            "front": [one.to_json() for one in self.front],
            "scored": [self._scored(*one) for one in self.best_scored],
            "certificate": {"least_step_s": self.least_step_s, "gap": self.gap},
            "mapping": mapping_json(self.winner.layout.mapping.name, self.mappings),
            "searched": {
                "legal": self.legal,
                "refused": self.refused,
                "fit": len(self.fitted.layouts),
                "do_not_fit": self.fitted.overfull,
                "left_out_by_floors": self.left_out,
                "scored": self.scored,
                "recut": self.recut,
                "nearest_that_do_not_fit": {
                    str(pp): {"layout": near.layout.name(), "missing_bytes": near.missing_bytes}
                    for pp, near in self.fitted.nearest.items()
                },
            },
        }


def kind_of(layout: TrainingLayout) -> TrainingLayout:
    """What is one layout to a reader: recomputation, ZeRO, the cut of layers and where ranks stand are its settings."""
    return replace(layout, recompute="none", zero=1, cut=(), mapping=CONSECUTIVE)


def runner_up(order: Sequence[TimedLayout]) -> TrainingRunnerUp | None:
    """Find the fastest of another kind than the first of an order."""
    winner = order[0]
    for one in order[1:]:
        if kind_of(one.layout) != kind_of(winner.layout):
            slower = one.step_s / winner.step_s - 1
            return TrainingRunnerUp(timed=one, slower=slower, faster_step=1 - winner.step_s / one.step_s)
    return None


def by_speed(timed: Iterable[TimedLayout]) -> tuple[TimedLayout, ...]:
    """The fastest first; of equals the one that needs less memory."""
    return tuple(sorted(timed, key=lambda one: (one.step_s, one.held_bytes, one.layout)))
