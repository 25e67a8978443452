"""What a plan can say and the simulator, or a part of it, does not run: refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim.plan import Plan

_NOT_STAYING = {
    "tp": "cannot share heads",
    "cp": "cannot share sequences",
    "etp": "cannot share them by width",
    "pp": "do not leave a pipeline stage together",
}
_NOT_SIMULATED = {
    "pp": "no pipelines here (moecast simulate and train have them)",
    "microbatches": "no pipelines here (moecast simulate has them)",
}


def check_simulated(plan: Plan, *, pipeline: bool = False, file: str | Path | None = None) -> None:
    """Refuse what can be said and not simulated yet.

    Everything that lays a plan out asks this first.

    `pipeline`: whoever asks goes through pipeline stages, as serving and training do.

    Raises
    ------
    MoecastError
        Names the degree.
    """
    for field_, reason in _NOT_SIMULATED.items():
        if getattr(plan, field_) > 1 and not (pipeline and field_ in ("pp", "microbatches")):
            raise MoecastError(f"{reason}: use 1", file=file, field=field_, value=getattr(plan, field_))
    for field_, reason in _NOT_STAYING.items():
        if getattr(plan, field_) > 1 and plan.dispatch == "stay":
            rule = f"tokens that stay with their experts {reason}: use {field_} 1"
            raise MoecastError(rule, file=file, field=field_, value=getattr(plan, field_))


def check_whole_experts(plan: Plan, *, file: str | Path | None = None) -> None:
    """Refuse expert tensor parallelism: whoever asks for one rank for each slot asks this first.

    Raises
    ------
    MoecastError
        Ranks share experts by width.
    """
    if plan.etp > 1:
        rule = "a slot is taken to stand on one rank here: use 1"
        raise MoecastError(rule, file=file, field="etp", value=plan.etp)
