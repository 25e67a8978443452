"""The search's moves, one at a time: what only compiled loops call, made callable."""

from __future__ import annotations

from typing import Any

from moecast.compiled import entry
from moecast.placement import anneal, replica_moves


@entry
def allowed(layer: Any, a: int, b: int) -> bool:
    return anneal.allowed(layer, a, b)


@entry
def gain(layer: Any, a: int, b: int) -> float:
    return anneal.gain(layer, a, b)


@entry
def apply(layer: Any, a: int, b: int) -> None:
    anneal.apply(layer, a, b)


@entry
def convertible(layer: Any, v: int, expert: int) -> bool:
    return replica_moves.convertible(layer, v, expert)


@entry
def conversion_gain(layer: Any, v: int, expert: int) -> float:
    return replica_moves.conversion_gain(layer, v, expert)


@entry
def convert(layer: Any, v: int, expert: int) -> None:
    replica_moves.convert(layer, v, expert)
