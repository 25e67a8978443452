"""The options of ``moecast place`` about plans made anew over time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moecast.placement import Replanning

_OPTIONS = {
    "windows": "--windows",
    "window_steps": "--window-steps",
    "order": "--drift",
    "paused": "--beside-steps",
    "keep_ranks": "--keep-ranks",
    "engine_s": "--engine-s",
}


def read_replanning(every: str | None, **asked: float | str | None) -> Replanning | None:
    """Read what is asked of plans made anew over time; None where nothing is.

    Raises
    ------
    MoecastError
        Options about them without ``--replan-every``, or that it is no list of whole numbers.
    """
    from moecast.errors import MoecastError
    from moecast.placement import Replanning

    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if every is None:
        for name in given:
            rule = "is of plans made anew: say how often, as --replan-every 1,2,4"
            raise MoecastError(rule, field=_OPTIONS[name])
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", every):
        rule = "windows between two plans, as 1,2,4"
        raise MoecastError(rule, field="--replan-every", value=every)
    return Replanning(periods=tuple(int(period) for period in every.split(",")), **given)
