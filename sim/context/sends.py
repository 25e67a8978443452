"""The exchanges of ranks that share sequences.

Axes: G rank, C share of the tokens, N place among the `cp` ranks, X group of ranks that share
sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.choice import Choice, pick
from moecast.sim.collectives.groups import numbers_of_groups
from moecast.sim.program import Exchange

if TYPE_CHECKING:
    from moecast.sim.placed_model import PlacedModel

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContextSends:
    """What is sent for one layer's attention.

    Parameters
    ----------
    placed
        The model under its plan.
    moe
        What the exchanges name as their layer.
    """

    placed: PlacedModel
    moe: int

    def gather(self, held_C: Float, unit_bytes: float) -> Exchange:
        """Bring what each share holds, in parts as large as the largest, to all of its group."""
        return self._collective(self.placed.gather_choices, held_C, unit_bytes)

    def scatter_sums(self, held_C: Float, unit_bytes: float) -> Exchange:
        """Add up what all of a group have for each share, at that share: gradients of what was gathered."""
        return self._collective(self.placed.scatter_choices, held_C, unit_bytes)

    def by_share(self, bytes_CN: Float) -> Exchange:
        """Send from each share to each place, on every rank of the share."""
        return self.by_rank(self.placed.plan.layout.by_share(bytes_CN))

    def by_rank(self, bytes_GN: npt.NDArray[np.generic]) -> Exchange:
        """Send from each rank to each place of those that share its sequences."""
        placed = self.placed
        assert placed.context_pairs is not None
        counts_C = np.ceil(np.asarray(bytes_GN, np.float64)).astype(np.int64).ravel()
        return Exchange(
            kind="other",
            layer=self.moe,
            flows=placed.context_pairs.counted(counts_C),
            setup_s=placed.sites.cluster.hardware.collective_launch_s,
            barrier=False,
            group_R=numbers_of_groups(placed.sites, placed.plan.layout.peers("cp")),
        )

    def _collective(self, choices: tuple[Choice, ...], held_C: Float, unit_bytes: float) -> Exchange:
        layout, sites = self.placed.plan.layout, self.placed.sites
        groups_XN = layout.peers("cp")
        most_X = layout.by_share(held_C)[groups_XN].max(axis=1)
        bytes_X = np.ceil(most_X * layout.cp * unit_bytes).astype(np.int64)
        choice = pick(list(choices), sites, bytes_X)
        return Exchange(
            kind="other",
            layer=self.moe,
            flows=choice.template.counted(bytes_X),
            setup_s=choice.setup_s(sites),
            barrier=True,
            group_R=numbers_of_groups(sites, groups_XN),
        )
