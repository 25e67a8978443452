"""In what order layouts are timed: by their lower bounds, and by how far above these others of their kind were.

An order excludes nothing. Axes: Y layout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moecast.placement.layouts.promises import Promises
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.steady import Slo, Steady

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

AT_ONCE = 16
"""Layouts that are timed before the rest are put in order again."""
NEARLY = 0.03
"""What layouts are expected to miss a limit by is told apart in steps of this: it is not exact."""
OF_A_KIND = 1
"""Of those at most so many of a kind, whose times say much of each other."""


class TimingOrder:
    """What is learnt of kinds of layouts while some are timed, and which to time next."""

    def __init__(self, layouts: Sequence[ServingLayout]) -> None:
        self.kinds = [_kinds_of(layout) for layout in layouts]
        self.every_kind = list(dict.fromkeys(self.kinds))
        number = {both: i for i, both in enumerate(self.every_kind)}
        self.kind_Y = np.array([number[both] for both in self.kinds])
        self.over: dict[tuple[str, object], list[tuple[float, float]]] = defaultdict(list)
        """By way to serve and kind of layout: what both times of those that were timed were, over their floors."""

    def learn(self, promised: Promises, y: int, one: Steady) -> None:
        """Note how far above its floors a layout was that has been timed."""
        over = (max(one.tpot_s / float(promised.tpot_Y[y]), 1.0), max(one.ttft_s / float(promised.ttft_Y[y]), 1.0))
        for kind in self.kinds[y]:
            self.over[promised.mode, kind].append(over)

    def over_Y(self, mode: str, which: int = 0, *, unknown: float | None = 1.0) -> Float:
        """By what factor each layout's time per token (or, 1, to the first) is taken to be above its floor.

        Of a kind the least that was seen; `unknown`: of kinds of which none was timed; None: the least of all.
        """
        over = {kind: min(each[which] for each in of) for (of_mode, kind), of in self.over.items() if of_mode == mode}
        other = min(over.values(), default=1.0) if unknown is None else unknown
        of_kind = {both: over.get(both[0], over.get(both[1], other)) for both in self.every_kind}
        return np.array([of_kind[both] for both in self.every_kind])[self.kind_Y]

    def late_Y(self, promised: Promises, limit: Slo, *, unknown: float | None = 1.0) -> Float:
        """The expected times over their limits, the later of the two; up to 1 is within."""
        tpot_Y = promised.tpot_Y * self.over_Y(promised.mode, 0, unknown=unknown) / limit.tpot_s
        ttft_Y = promised.ttft_Y * self.over_Y(promised.mode, 1, unknown=unknown) / limit.ttft_s
        return np.maximum(tpot_Y, ttft_Y)

    def best_first(self, promised: Promises, limit: Slo, rate_Y: Float, open_Y: Bool) -> list[int]:
        """Order open layouts by what they are expected to serve.

        Those that are expected within the limits come first, then those that would miss them by little.
        """
        misses_Y = np.ceil(np.maximum(self.late_Y(promised, limit) - 1, 0) / NEARLY)
        order = np.lexsort((-rate_Y, misses_Y, ~open_Y))[: int(open_Y.sum())]
        return self._of_all_kinds(y for y in order.tolist() if rate_Y[y] > 0)

    def nearest_first(self, promised: Promises, limit: Slo, open_Y: Bool) -> list[int]:
        """Order open layouts by how near to the limits they are expected, whatever they serve."""
        late_Y = self.late_Y(promised, limit, unknown=None)
        order = np.argsort(np.where(open_Y, late_Y, np.inf), kind="stable")[: int(open_Y.sum())]
        return self._of_all_kinds(order.tolist())

    def _of_all_kinds(self, order: Iterable[int]) -> list[int]:
        """The first of an order, of each kind a few."""
        taken: Counter[object] = Counter()
        chosen = []
        for y in order:
            kind = self.kinds[y][0]
            taken[kind] += 1
            if taken[kind] <= OF_A_KIND:
                chosen.append(y)
            if len(chosen) == AT_ONCE:
                break
        return chosen


def _kinds_of(one: ServingLayout) -> tuple[object, object]:
    """What layouts have in common that are about as far above their floors: finely, and roughly."""
    ways = (one.dispatch, one.schedule, one.sequence_parallel, one.cp, one.pp, one.etp > 1)
    return (*ways, one.gpus, one.tp), (*ways,)
