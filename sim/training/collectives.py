"""Exchanges of gradients and parameters: the collectives that NCCL would take for their sizes.

Axes: D group of ranks that hold the same parameters, M member of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.choice import Choice, candidates, pick
from moecast.sim.collectives.groups import numbers_of_groups
from moecast.sim.collectives.template import CountedFlows, FlowTemplate
from moecast.sim.layout import Layout
from moecast.sim.overlap import beside_compute
from moecast.sim.program import Exchange
from moecast.sim.sites import Sites
from moecast.sim.stage_tasks import OUTSIDE
from moecast.sim.training.gradients import Group, Operation, Reduction

Int32 = npt.NDArray[np.int32]


class Collectives:
    """Makes the exchanges of one pipeline rank's ranks; each kind is laid out once.

    Parameters
    ----------
    sites, layout
        Where the ranks stand, and who they are, counted from 0.
    """

    def __init__(self, sites: Sites, layout: Layout) -> None:
        self._sites, self._layout = sites, layout
        self._laid_out: dict[tuple[Group, Operation], list[Choice]] = {}
        self._slowed: dict[FlowTemplate, FlowTemplate] = {}
        self._plain: dict[FlowTemplate, FlowTemplate] = {}

    def alone(self, parts: Sequence[Reduction]) -> list[Exchange]:
        """Carry reductions beside nothing, those of one operation over one kind of group in one."""
        kinds = dict.fromkeys((part.group, part.operation) for part in parts)
        return [
            self._exchange(*kind, sum(part.bytes for part in parts if (part.group, part.operation) == kind))
            for kind in kinds
        ]

    def beside(self, group: Group, operation: Operation, size: float, *, stream: str) -> Exchange:
        """Carry so many bytes beside compute, on a stream of their own: slower (`moecast.sim.overlap`)."""
        return replace(self._exchange(group, operation, size, slowed=True), stream=stream)

    def reckoned_s(self, group: Group, operation: Operation, size: float) -> float:
        """Seconds of so many bytes beside compute, as NCCL's choice reckons them; a straight line of bytes."""
        groups_DM = groups_of(self._layout, group)
        choice = self._choice(group, operation, groups_DM, size)
        slower = replace(choice, template=self._slower(choice.template))
        return slower.estimate_s(self._sites, np.full(len(groups_DM), round(size)))

    def plain(self, exchange: Exchange) -> Exchange:
        """The same exchange beside nothing."""
        flows = exchange.flows
        if not isinstance(flows, CountedFlows):
            return exchange
        return replace(exchange, flows=self._plain.get(flows.template, flows.template).counted(flows.counts_C))

    def _exchange(self, group: Group, operation: Operation, size: float, *, slowed: bool = False) -> Exchange:
        groups_DM = groups_of(self._layout, group)
        sizes_D = np.full(len(groups_DM), round(size))
        choice = self._choice(group, operation, groups_DM, size)
        template = self._slower(choice.template) if slowed else choice.template
        return Exchange(
            kind="other",
            layer=OUTSIDE,
            flows=template.counted(sizes_D),
            setup_s=choice.setup_s(self._sites),
            barrier=False,
            group_R=numbers_of_groups(self._sites, groups_DM),
        )

    def _choice(self, group: Group, operation: Operation, groups_DM: Int32, size: float) -> Choice:
        kind = group, operation
        if kind not in self._laid_out:
            self._laid_out[kind] = candidates(self._sites, groups_DM, operation=operation)
        return pick(self._laid_out[kind], self._sites, np.full(len(groups_DM), round(size)))

    def _slower(self, template: FlowTemplate) -> FlowTemplate:
        if template not in self._slowed:
            self._slowed[template] = slower = beside_compute(template, self._sites)
            self._plain[slower] = template
        return self._slowed[template]


def groups_of(layout: Layout, group: Group) -> Int32:
    """The groups of a pipeline rank's layout over which gradients of a kind are reduced: ranks [D, M] from 0."""
    if group == "expert":
        return layout.peers("groups")
    if group == "tensor":
        return layout.peers("tp")
    return np.stack([np.flatnonzero(layout.tp_G == place) for place in range(layout.tp)]).astype(np.int32)
