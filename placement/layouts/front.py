"""The front of throughput against latency, and what lies just behind its winner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moecast.placement.layouts.mappings import CONSECUTIVE

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.steady import Slo, Steady


def pareto(found: Iterable[Steady]) -> tuple[Steady, ...]:
    """Those that none beats in both tokens per second of a GPU and time per output token; the fastest first."""
    kept: list[Steady] = []
    for one in sorted(found, key=lambda one: (one.tpot_s, -one.tokens_per_s_per_gpu)):
        if not kept or one.tokens_per_s_per_gpu > kept[-1].tokens_per_s_per_gpu:
            kept.append(one)
    return tuple(kept)


def by_lateness(found: Iterable[Steady], slo: Slo) -> list[Steady]:
    """Those nearest to the limits first; whoever is within both is nearer the further it is from the nearer limit."""
    return sorted(found, key=lambda one: (one.late(slo), -one.tokens_per_s_per_gpu, one.decode))


def ranked(found: Iterable[Steady], slo: Slo) -> list[Steady]:
    """Those within the limits, the best first; of equals the one that answers sooner."""
    within = [one for one in found if one.meets(slo)]
    return sorted(within, key=lambda one: (-one.tokens_per_s_per_gpu, one.tpot_s, one.ttft_s, one.decode))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """The best of another kind than the winner.

    Parameters
    ----------
    behind
        The part of the winner's throughput that it lacks.
    faster_step
        By what part its steps, decode's and prefill's alike, must be shorter for it to win.
    """

    steady: Steady
    behind: float
    faster_step: float


def runner_up(winner: Steady, others: Sequence[Steady]) -> RunnerUp | None:
    """Find the best whose degrees or way to travel are not the winner's; other batches of it are no other layout."""
    for one in others:
        if kind_of(one) != kind_of(winner):
            behind = 1 - one.tokens_per_s_per_gpu / winner.tokens_per_s_per_gpu
            # All times of a layout shrink in proportion, so its rate grows by as much.
            return RunnerUp(steady=one, behind=behind, faster_step=behind)
    return None


def kind_of(one: Steady) -> object:
    """What is one layout to a reader: batches, redundant slots and where ranks stand are its settings."""
    return one.split, _kind(one.decode), _kind(one.prefill) if one.split else None


def _kind(layout: ServingLayout) -> ServingLayout:
    return replace(layout, batch=layout.microbatches, spare_slots=0, mapping=CONSECUTIVE)


def best_of_kinds(order: Sequence[Steady], most: int, *, of_each: int = 2, filled: bool = False) -> list[Steady]:
    """The first of an order, not more than a few of each kind; `filled`: then whoever is next, up to `most`."""
    taken: Counter[object] = Counter()
    chosen: list[Steady] = []
    rest: list[Steady] = []
    for one in order:
        taken[kind_of(one)] += 1
        (chosen if taken[kind_of(one)] <= of_each else rest).append(one)
    return [*chosen, *(rest if filled else ())][:most]
