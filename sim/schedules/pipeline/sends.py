"""What the stages of a pipeline send each other: the hidden values of a microbatch's tokens, or their gradients.

Axes: R rank of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.forward import ForwardPass
from moecast.sim.program import Exchange
from moecast.sim.sites import Sites
from moecast.sim.stage_tasks import OUTSIDE

Int32 = npt.NDArray[np.int32]

HIDDEN_BYTES = 2
"""Of an element that one pipeline stage gives to the next: bf16."""


class Sender(Protocol):
    """A chunk, as what it sends depends on it."""

    @property
    def ranks_R(self) -> Int32:
        """Its ranks in the job."""

    @property
    def hidden(self) -> int:
        """Width of the model."""

    def step(self, microbatch: int) -> ForwardPass:
        """The forward pass of a microbatch: its tokens."""


class HiddenSends:
    """Each rank of a chunk sends to the same one of the next.

    Paths are found once between two pipeline ranks.

    Parameters
    ----------
    sites
        Where the job's ranks stand.
    works
        The work of each chunk.
    """

    def __init__(self, sites: Sites, works: Sequence[Sender]) -> None:
        self._sites, self._works = sites, works
        self._templates: dict[tuple[int, int], FlowTemplate] = {}
        self._group_R = np.zeros(2 * len(works[0].ranks_R), np.int32)

    def __call__(self, source: int, destination: int, microbatch: int) -> Exchange:
        """Give what a microbatch's tokens are from one chunk to another."""
        work = self._works[source]
        bytes_R = work.step(microbatch).tokens_at(0) * (HIDDEN_BYTES * work.hidden)
        return Exchange(
            kind="other",
            layer=OUTSIDE,
            flows=self._template(work.ranks_R, self._works[destination].ranks_R).counted(bytes_R),
            setup_s=self._sites.cluster.hardware.collective_launch_s,
            barrier=False,
            group_R=self._group_R,
        )

    def _template(self, source_R: Int32, destination_R: Int32) -> FlowTemplate:
        ends = int(source_R[0]), int(destination_R[0])
        if ends not in self._templates:
            self._templates[ends] = side_by_side(self._sites, source_R, destination_R)
        return self._templates[ends]


def side_by_side(sites: Sites, source_R: Int32, destination_R: Int32) -> FlowTemplate:
    """Flows from some ranks to as many others, in an exchange of both; counts are bytes of each."""
    first = np.arange(len(source_R))
    second = first + len(first)
    found = FlowTemplate.of(sites, Legs.direct(source_R, destination_R, first), 1.0)
    return replace(found, legs=Legs.direct(first, second, first))
