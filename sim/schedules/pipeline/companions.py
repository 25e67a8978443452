"""What is sent beside a pipeline's passes: parameters that a layer waits for, and gradients that it gives.

A lowering asks for it at the start and at the end of each layer's tasks in a cell, and puts it on
streams of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from moecast.sim.program import Exchange
from moecast.sim.schedules.pipeline.cells import Cell

Spot = Literal["turn", "rest", "end"]
"""Where in a layer something can be put: where its chunks turn between domains, behind the last of them that comes home
there (both of FSMoE's chunks only), and at the layer's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """An exchange beside a cell; its stream is where it stands.

    Parameters
    ----------
    key
        What a layer that waits for it names; one each.
    at_once
        Whether it starts as soon as its stream is free; else where the layer starts beside which it
        was put.
    """

    exchange: Exchange
    key: Hashable = None
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What goes with the start of a layer.

    Parameters
    ----------
    sent
        Put in front of the layer's tasks, which do not wait for it.
    wanted
        Keys of what was put earlier, or now: the layer's tasks start when it is there.
    """

    sent: Sequence[Companion] = ()
    wanted: Sequence[Hashable] = ()


class Companions(Protocol):
    """What is sent beside cells, layer by layer."""

    def ahead(self, cell: Cell, layer: int) -> Ahead:
        """Give what goes with the start of a layer's tasks in a cell."""

    def behind(self, cell: Cell, layer: int, spot: Spot) -> Sequence[Exchange]:
        """Give what can be sent at a spot of a layer in a cell.

        Nobody in the pipeline waits for it.

        It waits for all of the layer's tasks at its end, elsewhere for those of the layers before.
        """

    def slow(self, cell: Cell, layer: int) -> bool:
        """Whether a layer's kernels have fewer SMs in a cell, since some of this is sent beside them."""


class Nothing:
    """Nothing is sent beside the passes."""

    def ahead(self, _cell: Cell, _layer: int) -> Ahead:
        """Nothing."""
        return Ahead()

    def behind(self, _cell: Cell, _layer: int, _spot: Spot) -> Sequence[Exchange]:
        """Nothing."""
        return ()

    def slow(self, _cell: Cell, _layer: int) -> bool:
        """Never."""
        return False
