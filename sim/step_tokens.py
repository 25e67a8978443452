"""Which tokens of a step are where, and what they read: counted from its trace and its plan.

Layers are hidden layers; a row is how many MoE layers are behind. Axes: T token, L MoE layer, G
rank, C share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim.attention_shape import AttentionShape
from moecast.sim.model import ModelShape
from moecast.sim.placed_model import PlacedModel
from moecast.sim.stage_tasks import OUTSIDE
from moecast.sim.step import Step
from moecast.sim.traffic import StepTraffic

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTokens:
    """The tokens of one step under a plan."""

    placed: PlacedModel
    step: Step
    starts_T: Int32
    """Where each token is at home before the first layer."""
    traffic: StepTraffic
    _keys: dict[tuple[int, int | None, str], Int] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> ModelShape:
        """The model's shape."""
        return self.placed.model

    def moe_layers_before(self, layer: int) -> int:
        """How many MoE layers are before a hidden layer."""
        return int(np.searchsorted(self.model.moe_layer_ids, layer))

    def moe_index(self, layer: int) -> int:
        """The number of a hidden layer among the MoE layers; `OUTSIDE` where it is none."""
        index = self.moe_layers_before(layer)
        return index if layer in self.model.moe_layer_ids else OUTSIDE

    def after_experts(self, layer: int) -> bool:
        """Whether a hidden layer's input comes from experts, each token's at its home only."""
        return layer - 1 in self.model.moe_layer_ids and not self.placed.experts_are_summed

    def home_T(self, row: int) -> Int32:
        """Where each token is at home after `row` MoE layers."""
        return self.starts_T if self.traffic.home_LT is None else self.traffic.home_LT[row]

    def tokens_G(self, row: int) -> Int:
        """Tokens at home on each rank after `row` MoE layers."""
        if row < self.traffic.layers:
            return np.asarray(self.traffic.tokens_LG[row], np.int64)
        return np.bincount(self.home_T(row), minlength=self.placed.sites.n_ranks).astype(np.int64)

    def attended_G(self, row: int, of_T: Bool | None = None) -> Int:
        """Tokens that each rank attends for, of one part of the step where asked: all that its `tp` peers share."""
        layout = self.placed.plan.layout
        if of_T is not None:
            tokens_C = np.bincount(self._share_T(row)[of_T], minlength=layout.shares).astype(np.int64)
            return layout.by_share(tokens_C)
        return self.tokens_G(row) if layout.tp == 1 else layout.by_share(layout.sum_by_share(self.tokens_G(0)))

    def kept_G(self, row: int) -> Int:
        """Tokens whose hidden vectors each rank keeps: with sequence parallelism, its own only."""
        return self.attended_G(row) if self.placed.sum_choices else self.tokens_G(row)

    def received_G(self, moe: int) -> Int:
        """Copies that each rank has of the tokens whose choices it serves, its own tokens' included."""
        per_choice, traffic, sites = self.placed.mode.per_choice, self.traffic, self.placed.sites
        copies_SM = (traffic.choices_LSM if per_choice else traffic.copies_LSM)[moe]
        return np.bincount(sites.peer_SM.ravel(), copies_SM.ravel(), sites.n_ranks).astype(np.int64)

    def _share_T(self, row: int) -> Int32:
        """Which share of the tokens each is of, those of a share being attended for by the same ranks."""
        layout = self.placed.plan.layout
        return self.home_T(row) if layout.tp == 1 else layout.share_G[self.starts_T]

    def keys_G(self, row: int, window: int | None, part: str = "", of_T: Bool | None = None) -> Int:
        """Keys attended to on each rank, by one part of the step where asked; kept, since most layers ask the same."""
        if self.traffic.home_LT is None:
            row = 0
        key = (row, window, "" if of_T is None else part)
        if key not in self._keys:
            layout = self.placed.plan.layout
            chosen = slice(None) if of_T is None else of_T
            context_T = self.step.context_T[chosen]
            keys_T = context_T if window is None else np.minimum(context_T, window)
            keys_C = np.bincount(self._share_T(row)[chosen], keys_T, layout.shares).astype(np.int64)
            self._keys[key] = layout.by_share(keys_C)
        return self._keys[key]

    def keys_at(self, layer: int) -> tuple[Float, Float]:
        """Keys that each rank's tokens read at a hidden layer, and those that an indexer scores for them [G]."""
        row, mixer = self.moe_layers_before(layer), self.model.mixer_of(layer)
        every_G = np.asarray(self.keys_G(row, None), np.float64)
        if not isinstance(mixer, AttentionShape):
            return every_G, every_G
        parts = [self.keys_G(row, most) / share for most, share in mixer.reads_of(layer)]
        return np.asarray(np.sum(parts, axis=0), np.float64), every_G
