"""Re-planning over time: whether a new plan every so many steps pays for moving the experts.

A trace is cut, in its recorded order, into windows of equally many tokens; in each, the Workload's
steps are drawn and timed, and stand for all `window_steps` that a window lasts in service. Like an
online balancer, who re-plans at the start of a window knows only the one before. Compared over all
windows but the first: experts in order (no balancing), the plan made on the first window and kept,
and that plan made anew every so many windows. The first plan is loaded with the weights, so that
only later changes cost.

Axes: L MoE layer, G rank, P slot, W window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.arrays import index
from moecast.errors import MoecastError
from moecast.placement.finish import check_taken, finished
from moecast.placement.keep_ranks import keep_ranks
from moecast.placement.limit import Budget, Limit
from moecast.placement.migration import Migration, migration
from moecast.placement.objective import Objective
from moecast.placement.problem import PlacementProblem
from moecast.placement.replanned import Course, Replanned
from moecast.placement.solvers import find_solver
from moecast.traces import PHASES

if TYPE_CHECKING:
    from moecast.placement.solver import Solver
    from moecast.traces import RoutingTrace

Int32 = npt.NDArray[np.int32]

ORDERS = ("recorded", "topic")
NEVER = 0
MOST_WINDOWS, MOST_STEPS = 1 << 12, 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Replanning:
    """What is compared.

    Parameters
    ----------
    windows, window_steps
        Pieces of the trace, and how many steps each lasts in service (None: the Workload's).
    periods
        Windows between two plans; those that never re-plan within the windows are left out.
    paused
        Serving stands still while experts move. Else they move beside the steps of the old plan, in
        the time in which no exchange of the busiest rank runs, and the new plan counts from when
        all have come; what is left at the window's end adds to it.
    keep_ranks
        Ranks of one domain trade what they hold in a new plan, so that the fewest experts move;
        engines do not.
    engine_s
        What the engine itself takes for each new plan beside moving experts, during which serving
        stands still.
    order
        ``recorded``, or ``topic``: one topic after another, the strongest drift that a trace has.

    Raises
    ------
    MoecastError
        A value out of range.
    """

    windows: int = 8
    window_steps: int | None = None
    periods: tuple[int, ...] = (1, 2, 4, 8)
    paused: bool = True
    keep_ranks: bool = False
    engine_s: float = 0.0
    order: str = "recorded"

    def __post_init__(self) -> None:
        try:
            index("windows", self.windows, least=2, most=MOST_WINDOWS)
            if self.window_steps is not None:
                index("window_steps", self.window_steps, least=1, most=MOST_STEPS)
            for period in self.periods:
                index("periods", period, least=1, most=MOST_WINDOWS)
        except (TypeError, ValueError) as error:
            raise MoecastError(str(error), field="replanning") from error
        if not 0 <= self.engine_s < float("inf"):
            raise MoecastError("seconds, not negative", field="engine_s", value=self.engine_s)
        if self.order not in ORDERS:
            raise MoecastError(f"one of {', '.join(ORDERS)}", field="order", value=self.order)


def replan(
    problem: PlacementProblem,
    asked: Replanning,
    *,
    solver: str | Solver = "eplb",
    work_limit: int | None = None,
) -> Replanned:
    """Compare plans made anew every so many windows with one plan kept, and with none.

    Parameters
    ----------
    problem
        The question; its trace is what is cut into windows, and its Workload's steps are drawn in
        each.
    work_limit
        Of each search, as of `place`.

    Raises
    ------
    MoecastError
        A window too small for the Workload's steps, a solver that does not take the problem.
    """
    window_steps = asked.window_steps or problem.workload.steps
    parts = [replace(problem, trace=part) for part in cut(problem.trace, asked.windows, order=asked.order)]
    service = _Service(parts, find_solver(solver), asked, work_limit=work_limit)
    used = sorted({period for period in asked.periods if period < asked.windows - 1})
    courses = [service.course(period) for period in (NEVER, *used)]
    tokens = float(np.mean([step.n_tokens for part in parts[1:] for step in part.steps]))
    return Replanned(
        window_steps=window_steps,
        tokens_per_step=tokens,
        paused=asked.paused,
        order=asked.order,
        contiguous=service.contiguous(),
        static=courses[0],
        replanned=tuple(courses[1:]),
    )


def cut(trace: RoutingTrace, windows: int, *, order: str = "recorded") -> list[RoutingTrace]:
    """Cut a trace between sequences into windows of about equally many tokens, each phase by itself.

    Sequences come in the order of their first rows; ``topic``: sorted by topic first.

    Raises
    ------
    MoecastError
        A phase has fewer sequences than windows.
    """
    window_T = np.empty(trace.n_tokens, np.int64)
    for phase in np.unique(trace.phase_T):
        rows = np.flatnonzero(trace.phase_T == phase)
        _, first_S, number_T = np.unique(trace.sequence_T[rows], return_index=True, return_inverse=True)
        topic_S = trace.topic_T[rows[first_S]] if order == "topic" else np.zeros(len(first_S))
        order_S = np.lexsort((first_S, topic_S))
        tokens_S = np.bincount(number_T)[order_S]
        middle_S = np.cumsum(tokens_S) - tokens_S / 2
        window_S = np.empty(len(first_S), np.int64)
        window_S[order_S] = middle_S * windows / tokens_S.sum()
        if len(np.unique(window_S)) < windows:
            raise MoecastError(
                f"{len(first_S)} {PHASES[phase]} sequences do not fill them", field="windows", value=windows
            )
        window_T[rows] = window_S[number_T]
    return [trace.select(window_T == window) for window in range(windows)]


class _Service:
    """The windows of one service; no window is planned on twice, no plan timed twice in one."""

    def __init__(
        self, parts: list[PlacementProblem], solver: Solver, asked: Replanning, *, work_limit: int | None
    ) -> None:
        check_taken(solver.name, solver.supports(parts[0]))
        self._parts, self._solver, self._asked = parts, solver, asked
        self._steps = asked.window_steps or parts[0].workload.steps
        self._limit = Limit(work=work_limit)
        self._objectives = [Objective(part) for part in parts]
        self._slots: dict[int, Int32] = {}

    def contiguous(self) -> Course:
        """Experts in order, as many as fit, in every window."""
        slots_LGP = self._parts[0].any_plan().slots_DLGP[0]
        seconds = [objective.step_s(slots_LGP) for objective in self._objectives[1:]]
        return Course(period=NEVER, step_s_W=np.array(seconds), migrations=(), added_s=0.0)

    def course(self, period: int) -> Course:
        """The plan of window 0, made anew every `period` windows (`NEVER`: kept)."""
        step_s_W, migrations, added_s = [], [], 0.0
        slots_LGP = self._planned(0)
        for window in range(1, len(self._parts)):
            if period != NEVER and window > 1 and (window - 1) % period == 0:
                before_LGP, slots_LGP = slots_LGP, self._anew(window - 1, slots_LGP)
                moved = self._migration(window, before_LGP, slots_LGP)
                migrations.append(moved)
                added_s += self._asked.engine_s + self._added_s(window, before_LGP, slots_LGP, moved.seconds)
            step_s_W.append(self._objectives[window].step_s(slots_LGP))
        return Course(period=period, step_s_W=np.array(step_s_W), migrations=tuple(migrations), added_s=added_s)

    def _added_s(self, window: int, before_LGP: Int32, after_LGP: Int32, seconds: float) -> float:
        """What a migration adds to its window, beyond all of its steps by the new plan."""
        if self._asked.paused or not seconds:
            return seconds
        objective = self._objectives[window]
        free_s = objective.free_links_s(before_LGP)
        steps = min(seconds / free_s if free_s > 0 else np.inf, float(self._steps))
        slower_s = objective.step_s(before_LGP) - objective.step_s(after_LGP)
        return steps * slower_s + max(0.0, seconds - self._steps * free_s)

    def _anew(self, window: int, before_LGP: Int32) -> Int32:
        """The plan made on a window, where another one is in place."""
        part, slots_LGP = self._parts[window], self._planned(window)
        if not self._asked.keep_ranks:
            return slots_LGP
        return keep_ranks(before_LGP, slots_LGP, domain_G=part.domain_G, slots_G=part.slots_G)

    def _planned(self, window: int) -> Int32:
        """The plan made on a window, as slots; each is made once."""
        if window not in self._slots:
            part, budget = self._parts[window], Budget(self._limit)
            solved = self._solver.solve(part, self._objectives[window], budget, seed=part.seed)
            self._slots[window] = finished(solved, part, self._solver.name, by_choice=False, fill=False)[0]
            part.plan(self._slots[window]).check_legal()
        return self._slots[window]

    def _migration(self, window: int, before_LGP: Int32, after_LGP: Int32) -> Migration:
        part = self._parts[window]
        before, after = part.plan(before_LGP), part.plan(after_LGP)
        return migration(part.cluster, part.model, before, after, network=part.network, seed=part.seed)
