"""What is said where no layout was found: what misses by how much, and which limits would be met."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moecast.units import format_percent, format_s

if TYPE_CHECKING:
    from moecast.placement.layouts.fitted import Fitting
    from moecast.placement.layouts.serving_layout import ServingLayout
    from moecast.placement.layouts.steady import Slo, Steady


def nothing_fits(fits: Fitting[ServingLayout], legal: int) -> str:
    """By how much the nearest layout misses the GPUs' memory."""
    if not legal:
        return "no layout of the model on so many GPUs is legal"
    near = min(fits.nearest.values(), key=lambda near: near.missing_bytes, default=None)
    told = (
        "" if near is None else f"; the nearest misses {near.missing_bytes / 2**30:.1f} GiB a GPU: {near.layout.name()}"
    )
    return f"none of {legal} layouts fits into the GPUs' memory{told}"


def cannot_be_met(least: Slo, nearest: Steady | None) -> str:
    """Limits below what is proved of every layout."""
    told = f"no layout can meet it: the least possible are tpot {format_s(least.tpot_s)} and ttft "
    told += format_s(least.ttft_s) if np.isfinite(least.ttft_s) else "none, as no step of prompts fits"
    return told if nearest is None else f"{told}; the nearest of some that were timed: {_times(nearest)}"


def nothing_meets(slo: Slo, nearest: Steady, *, timed: int, untimed: int) -> str:
    """Limits that none of those that were timed is within, though lower bounds do not exclude some.

    Parameters
    ----------
    nearest
        Of those that were timed.
    timed, untimed
        How many were; and how many could be within the limits and were not.
    """
    misses = " and ".join(
        f"{name} by {format_percent(value / limit - 1)}"
        for name, value, limit in (("tpot", nearest.tpot_s, slo.tpot_s), ("ttft", nearest.ttft_s, slo.ttft_s))
        if value > limit
    )
    rest = f"{untimed:,} more could be within it by their lower bounds: --scored" if untimed else "no other could be"
    return f"none of {timed:,} layouts timed meets it; the nearest misses {misses}: {_times(nearest)}. {rest}"


def _times(one: Steady) -> str:
    met = f"tpot={_above(one.tpot_s * 1e3)}ms,ttft={_above(one.ttft_s * 1e3)}ms"
    return f"tpot {format_s(one.tpot_s)}, ttft {format_s(one.ttft_s)} (--slo {met} is met), {one.name()}"


def _above(value: float) -> str:
    """Three digits, rounded up: a limit that is met."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit) * unit:.4g}"
