"""The sequences of a step over the ranks that share them, and where its tokens are at home.

Axes: T token, G rank, C share of the tokens, N place among the `cp` ranks of a data-parallel rank,
R ring.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.context.keys import RINGS, BlockKeys, block_keys
from moecast.sim.context.rings import Rings
from moecast.sim.context.rules import cuts_prompts
from moecast.sim.context.split import ALL, NEAR, ContextSplit, split_sequences
from moecast.sim.layout import Layout

if TYPE_CHECKING:
    from moecast.sim.plan import Plan
    from moecast.sim.step import Step

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedContext:
    """A prefill step's sequences, cut over ranks."""

    layout: Layout
    step: Step
    split: ContextSplit
    domain_DN: Int32
    rings: Rings
    _keys: dict[int | None, BlockKeys] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, plan: Plan, step: Step, domain_G: Int32 | None = None) -> SharedContext:
        """Cut a step's sequences as a plan says; `domain_G` None: all ranks of one domain."""
        layout = plan.layout
        first_DN = layout.first_DN
        domain_DN = np.zeros_like(first_DN) if domain_G is None else np.asarray(domain_G, np.int32)[first_DN]
        begins_T = np.concatenate([[True], step.ends_T()[:-1]]) if step.n_tokens else np.zeros(0, bool)
        first_S1 = np.append(np.flatnonzero(begins_T), step.n_tokens)
        owner_S = step.source_T[first_S1[:-1]]
        split = split_sequences(plan.context_split, first_S1, owner_S, cp=plan.cp, domain_of=domain_DN)
        return cls(layout=layout, step=step, split=split, domain_DN=domain_DN, rings=Rings.of(domain_DN))

    @property
    def share_T(self) -> Int:
        """The share that each token is of."""
        return self.step.source_T * np.int64(self.layout.cp) + self.split.place_T

    @property
    def home_T(self) -> Int32:
        """The rank that each token is at home on."""
        return self.layout.homes_T(self.step.source_T, self.split.place_T)

    @property
    def new_RC(self) -> Float:
        """Tokens of this step whose keys each share brings into each ring."""
        new_RC = np.zeros((RINGS, self.layout.shares))
        for ring, level in enumerate((NEAR, ALL)):
            new_RC[ring] = np.bincount(self.share_T[self.split.level_T == level], minlength=self.layout.shares)
        return new_RC

    def keys(self, reads: tuple[tuple[int | None, int], ...] = ((None, 1),)) -> BlockKeys:
        """Which keys are read where, of tokens that read as `AttentionShape.reads_of` says."""
        found = [self._window(most) if share == 1 else self._window(most).over(share) for most, share in reads]
        total = found[0]
        for more in found[1:]:
            total = total + more
        return total

    def _window(self, most: int | None) -> BlockKeys:
        if most not in self._keys:
            self._keys[most] = block_keys(
                self.split, self.step.source_T, self.step.context_T, domain_of=self.domain_DN, window=most
            )
        return self._keys[most]


def shared_context(plan: Plan, step: Step, domain_G: Int32 | None = None) -> SharedContext | None:
    """How a step's sequences are cut over ranks; None where none are."""
    return SharedContext.of(plan, step, domain_G) if cuts_prompts(plan, step.kernels) else None


def home_ranks(plan: Plan, step: Step, domain_G: Int32 | None = None) -> Int32:
    """The rank that each token of a step is at home on, which attends for it and dispatches it.

    Ranks that share tokens take equal runs of them; those that share sequences take what
    `context_split` says of a prefill step, and of a decode step equal runs.
    """
    shared = shared_context(plan, step, domain_G)
    return plan.layout.homes_T(step.source_T) if shared is None else shared.home_T
