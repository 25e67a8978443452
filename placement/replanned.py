"""What re-planning over time came to, and what to do about it, in numbers and words.

Axes: W window, the first one left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.migration import Migration

LITTLE = 0.03
"""Of the total: what is won within it is inside the forecast's error, as in `moecast.placement.advice`."""


def break_even_steps(migration_s: float, gain_s: float) -> float | None:
    """Steps for which a plan must stay in use until its migration is earned: gain · steps ≥ migration.

    None: never, as it gains nothing.
    """
    if migration_s <= 0:
        return 0.0
    return migration_s / gain_s if gain_s > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """One way through the windows.

    Parameters
    ----------
    period
        Windows between two plans; 0: one plan is kept.
    step_s_W
        Mean step time in each window, once experts are in place.
    migrations
        One for each new plan.
    added_s
        What they add to the total.
    """

    period: int
    step_s_W: npt.NDArray[np.float64]
    migrations: tuple[Migration, ...]
    added_s: float

    def total_s(self, window_steps: int) -> float:
        """Seconds of all windows with the migrations."""
        return float(self.step_s_W.sum()) * window_steps + self.added_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replanned:
    """The courses that were compared; see `moecast.placement.replan.replan`.

    Parameters
    ----------
    window_steps, tokens_per_step
        Steps that a window lasts, and tokens in each, over all ranks.
    paused, order
        As asked.
    contiguous, static, replanned
        Experts in order; the first window's plan, kept; and made anew, by period.
    """

    window_steps: int
    tokens_per_step: float
    paused: bool
    order: str
    contiguous: Course
    static: Course
    replanned: tuple[Course, ...]

    def total_s(self, course: Course) -> float:
        """Seconds of a course with its migrations."""
        return course.total_s(self.window_steps)

    @property
    def best(self) -> Course:
        """The fastest course; the earlier of equals in the order nothing, static, longest period first."""
        return min((self.contiguous, self.static, *reversed(self.replanned)), key=self.total_s)

    @property
    def best_period(self) -> Course | None:
        """The period that is fastest; None where none was compared."""
        return min(reversed(self.replanned), key=self.total_s, default=None)

    def gain_s(self, course: Course) -> float:
        """Seconds that a step is shorter than the kept plan's, migrations left out, mean over windows."""
        return float(self.static.step_s_W.mean() - course.step_s_W.mean())

    def break_even(self, course: Course) -> dict[str, float] | None:
        """Steps, tokens and minutes after which a course's mean migration is earned; None: never."""
        if not course.migrations:
            return None
        steps = break_even_steps(course.added_s / len(course.migrations), self.gain_s(course))
        if steps is None:
            return None
        minutes = steps * float(course.step_s_W.mean()) / 60
        return {"steps": steps, "tokens": steps * self.tokens_per_step, "minutes": minutes}

    def words(self) -> list[str]:
        """Whether to rebalance, how often, and when it is earned."""
        course, kept_s = self.best_period, self.total_s(self.static)
        if course is None:
            return ["rebalance: too few windows to tell"]
        saved = 1 - self.total_s(course) / kept_s
        steps = course.period * self.window_steps
        every = f"every {steps} steps" if steps > 1 else "every step"
        earned = self._earned(course)
        if saved >= LITTLE:
            return [f"rebalance {every}: {format_percent(saved)} less than one plan kept; {earned}"]
        lost = f"{every} is {format_percent(saved)} less than one plan kept, inside the forecast's error"
        if saved < 0:
            ratio = self.total_s(course) / kept_s
            lost = f"{every}, the best of those tried, takes {ratio:.3g} times as long as one plan kept"
        gain = self.gain_s(course) / float(self.static.step_s_W.mean())
        if gain >= LITTLE:
            return [f"rebalance: not so often: {lost}; steps are {format_percent(gain)} shorter, and {earned}"]
        if gain > 0:
            earned = f"no gain is shown; by its mean, {earned}"
        return [f"rebalance: never, on this traffic: {lost}; {earned}"]

    def _earned(self, course: Course) -> str:
        """When a new plan has paid for its migration, in words."""
        even = self.break_even(course)
        if even is None:
            return "moving experts is never earned: later plans are no faster than the first one"
        return (
            f"moving experts ({format_s(course.added_s / len(course.migrations))} each) is earned "
            f"after {even['steps']:,.0f} steps, {even['tokens']:,.0f} tokens, "
            f"{even['minutes']:.2g} minutes"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        named = {"contiguous": self.contiguous, "static": self.static}
        return {
            "window_steps": self.window_steps,
            "tokens_per_step": self.tokens_per_step,
            "paused": self.paused,
            "order": self.order,
            **{name: self._course(course) for name, course in named.items()},
            "replanned": [self._course(course) for course in self.replanned],
            "words": self.words(),
        }

    def _course(self, course: Course) -> dict[str, Any]:
        kept = {"total_s": self.total_s(course), "step_s": course.step_s_W.tolist()}
        if course.period == 0:
            return kept
        return {
            "every_steps": course.period * self.window_steps,
            **kept,
            "added_s": course.added_s,
            "migrations": [moved.to_json() for moved in course.migrations],
            "break_even": self.break_even(course),
        }
