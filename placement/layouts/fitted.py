"""What a search for a layout says of memory: the layouts that fit, and how far off the nearest others are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

LayoutT = TypeVar("LayoutT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfull(Generic[LayoutT]):
    """The layout that comes closest to fitting, of those of a kind of which none fits.

    Parameters
    ----------
    missing_bytes
        What its fullest GPU has too little.
    """

    layout: LayoutT
    missing_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting(Generic[LayoutT]):
    """The layouts that fit, how many do not, and how far off the nearest of each kind is.

    Parameters
    ----------
    nearest
        By GPUs of an instance in serving, by pipeline stages in training.
    """

    layouts: tuple[LayoutT, ...]
    overfull: int
    nearest: dict[int, Overfull[LayoutT]]
