"""What `place` found: the plan, its step time and certificate, and how it was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecast.sim.shown import ShownAsTable
from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.advice import Advice
    from moecast.placement.replanned import Replanned
    from moecast.sim.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement(ShownAsTable):
    """What `place` found; all numbers are of the planning part of the trace.

    Parameters
    ----------
    plan
        The legal plan.
    objective_s, bound_s, gap
        Mean time of the judged planning steps by the rung ``fluid`` (``bound`` where timing steps
        event by event takes longer than a search should: many layers on 64 ranks, or more ranks);
        the certificate, which no legal plan with these slots can beat; (objective - certificate) /
        objective.
    solver, seconds
        Who found it, and how long that took on the clock.
    balance_pooled, fan_out, fan_out_domains
        Of the planning steps.
    legal, wasted_slots
        Checked, not assumed; slots that repeat an expert of their own rank.
    note
        What a reader should know of how it was found.
    work
        How much work was done where no limit said how much.
    advice
        What to do about it, in words; None where none was asked for.
    replanned
        Whether to make new plans over time; None where it was not asked for.
    """

    plan: Plan
    objective_s: float
    bound_s: float | None
    gap: float | None
    solver: str
    seconds: float
    balance_pooled: float
    fan_out: float
    fan_out_domains: float
    legal: bool
    wasted_slots: int
    note: str = ""
    work: str = ""
    advice: Advice | None = None
    replanned: Replanned | None = None

    @property
    def table_title(self) -> str:
        """Who found the plan."""
        return self.solver

    def table_rows(self) -> list[tuple[str, str]]:
        """What `moecast place` prints."""
        return [
            ("objective: step time, on the planning part", format_s(self.objective_s)),
            *self._certificate_rows(),
            ("balance pooled", f"{self.balance_pooled:.3f}"),
            ("fan-out, ranks", f"{self.fan_out:.3f}"),
            ("fan-out, domains", f"{self.fan_out_domains:.3f}"),
            ("wasted slots", str(self.wasted_slots)),
            ("solver's time", format_s(self.seconds)),
        ]

    def _certificate_rows(self) -> list[tuple[str, str]]:
        if self.bound_s is None or self.gap is None:
            return []
        return [
            ("certificate: no plan with these slots can beat", format_s(self.bound_s)),
            ("gap", format_percent(self.gap)),
        ]

    def table_notes(self) -> list[str]:
        """How it was found."""
        words = [word for word in self.advice.words() if word not in self.note] if self.advice else []
        words += self.replanned.words() if self.replanned and not self.advice else []
        return [*words, *([f"note: {self.note}"] if self.note else []), *([self.work] if self.work else [])]

    def to_json(self) -> dict[str, Any]:
        """Everything but the plan, as plain JSON values."""
        words = ("advice", "replanned")
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in {"plan", *words}}
        asked = {name: getattr(self, name) for name in words}
        return plain | {name: value.to_json() for name, value in asked.items() if value is not None}
