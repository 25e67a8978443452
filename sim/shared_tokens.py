"""Exchanges among ranks that share tokens: hidden vectors before a layer that all of them compute, sums after it.

Axes: G rank, D group of ranks that share tokens, M its members, P peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives import FlowTemplate
from moecast.sim.collectives.choice import Choice, pick
from moecast.sim.collectives.groups import numbers_of_groups
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Exchange, Kind
from moecast.sim.stage_tasks import exchange_of
from moecast.sim.step_tokens import StepTokens

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedTokens:
    """What the ranks of a step that share its tokens send each other."""

    tokens: StepTokens
    _sum: list[Choice] = field(default_factory=list, repr=False)

    @property
    def placed(self) -> PlacedModel:
        """The model as the plan lays it out."""
        return self.tokens.placed

    def gather(self, moe: int, tokens_G: Int, *, kept: bool) -> Iterator[Exchange]:
        """Bring the hidden vectors of each rank's tokens to those that share them.

        Nothing without `tp`.

        Nor where those kept them (`kept`), as they do without sequence parallelism after all but
        experts.
        """
        if self.placed.hidden_flows is not None and not (kept and self.placed.sum_choices):
            yield self._hidden_exchange(moe, tokens_G, from_all=False)

    def scatter(self, moe: int) -> Iterator[Exchange]:
        """Add up partial sums, each token's at its home, or without sequence parallelism at all that share it."""
        if self.placed.sum_choices:
            yield self.sum_exchange("other", moe)
        elif self.placed.hidden_flows is not None:
            yield self._hidden_exchange(moe, self.tokens.tokens_G(0), from_all=True)

    def sum_exchange(self, kind: Kind, moe: int) -> Exchange:
        """All-reduce the hidden vectors of all tokens of each group of ranks that share them."""
        placed = self.placed
        peers_DM, sites = placed.plan.layout.peers("tp"), placed.sites
        rows_D = self.tokens.tokens_G(0)[peers_DM].sum(axis=1)
        if not self._sum:
            choices = placed.sum_choices
            self._sum.append(pick(list(choices), sites, rows_D * choices[0].template.copy_bytes))
        [choice] = self._sum
        return Exchange(
            kind=kind,
            layer=moe,
            flows=choice.template.counted(rows_D),
            setup_s=choice.setup_s(sites),
            barrier=True,
            group_R=numbers_of_groups(sites, peers_DM),
        )

    def _hidden_exchange(self, moe: int, tokens_G: Int, *, from_all: bool) -> Exchange:
        """Send each rank's tokens to all that share them, or (`from_all`) to it what those have of them."""
        assert self.placed.hidden_flows is not None
        return self.shared_rows("other", moe, self.placed.hidden_flows, "tp", tokens_G, from_all=from_all)

    def shared_rows(
        self, kind: Kind, moe: int, template: FlowTemplate, axis: str, rows_G: Int, *, from_all: bool
    ) -> Exchange:
        """Send each rank's rows to all that share them along an axis, or (`from_all`) to it what those have of them."""
        peers_GP = self.placed.plan.layout.peers_of_ranks(axis)
        counts_GP = rows_G[peers_GP] if from_all else np.broadcast_to(rows_G[:, None], peers_GP.shape)
        return exchange_of(self.placed, kind, moe, template.counted(counts_GP.ravel()))

    def share_context(self, tokens_G: Int, moe: int) -> Exchange:
        """Bring the keys and values of each rank's tokens to every rank of its EP group (ExFlow's all-gather)."""
        template, layout = self.placed.context_flows, self.placed.sites
        assert template is not None
        counts = np.concatenate([tokens_G.repeat(layout.n_members), tokens_G.repeat(layout.n_places)])
        return exchange_of(self.placed, "other", moe, template.counted(counts))
