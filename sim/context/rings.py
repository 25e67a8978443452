"""Who passes what to whom among the ranks that share sequences.

Axes: G rank, C share of the tokens (one of `cp` ranks of a data-parallel rank), N place among the
`cp` ranks, R ring (0: of the ranks inside one domain, 1: of all that share sequences).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.context.keys import RINGS

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rings:
    """The rings of a layout's shares.

    Parameters
    ----------
    place_C
        Each share's place.
    next_RC
        The place that it passes to; in a ring of one its own.
    source_RSC
        Whose keys it has at each step S, by place: its own first, then those of the one before it;
        -1 when they have gone round.
    """

    place_C: Int
    next_RC: Int
    source_RSC: Int

    @classmethod
    def of(cls, domain_of: npt.NDArray[np.int32]) -> Rings:
        """Lay the rings; `domain_of` is the domain of each place [data-parallel ranks, cp]."""
        ranks, cp = domain_of.shape
        next_RC = np.empty((RINGS, ranks * cp), np.int64)
        source_RSC = np.full((RINGS, cp, ranks * cp), -1, np.int64)
        for rank in range(ranks):
            near = [np.flatnonzero(domain_of[rank] == domain) for domain in np.unique(domain_of[rank])]
            for ring, groups in enumerate((near, [np.arange(cp)])):
                for places in groups:
                    shares = rank * cp + places
                    next_RC[ring, shares] = np.roll(places, -1)
                    for step in range(len(places)):
                        source_RSC[ring, step, shares] = np.roll(places, step)
        return cls(place_C=np.tile(np.arange(cp), ranks), next_RC=next_RC, source_RSC=source_RSC)

    @property
    def cp(self) -> int:
        """Ranks that share a sequence."""
        return self.source_RSC.shape[1]

    def others(self, step: int) -> Int:
        """[C]: the place that stands so many before each share's own among all that share its sequences."""
        return np.asarray(self.source_RSC[-1, step], np.int64)

    def steps(self, held_RC: Float) -> int:
        """How many blocks there are at most, where shares bring so much into the rings."""
        used_R = held_RC.sum(axis=1) > 0
        in_turn_RS = (self.source_RSC >= 0).any(axis=2) & used_R[:, None]
        return max(int(in_turn_RS.any(axis=0).sum()), 1)

    def of_sources(self, values_RC: Float, step: int) -> Float:
        """[R, C]: what those whose keys each share has at a step have; 0 where it has none."""
        source_RC, shares = self.source_RSC[:, step], np.arange(len(self.place_C))
        found_RC = np.take_along_axis(values_RC, shares - self.place_C + np.maximum(source_RC, 0), axis=1)
        return np.where(source_RC >= 0, found_RC, 0.0)

    def read_at(self, values_RCN: Float, step: int, *, by: str = "keys") -> Float:
        """[R, C]: what each share has to do at a step, of values by (ring, share of the queries, place of the keys).

        `by`: `keys` where these travel; `queries` where queries do, in the same order.
        """
        source_RC, shares = self.source_RSC[:, step], np.arange(len(self.place_C))
        ring_R1 = np.arange(RINGS)[:, None]
        there_RC = np.maximum(source_RC, 0)
        if by == "keys":
            found_RC = values_RCN[ring_R1, shares, there_RC]
        else:
            found_RC = values_RCN[ring_R1, shares - self.place_C + there_RC, self.place_C]
        return np.asarray(np.where(source_RC >= 0, found_RC, 0.0), np.float64)

    def passed_on(self, held_RC: Float, step: int, *, back: bool = False) -> Float:
        """[C, N]: what each share sends to each place, of what it has at a step, so that the next has it one step on.

        `back`: to the one before it, which has it one step earlier; so gradients go round.
        """
        sent_CN, shares = np.zeros((len(self.place_C), self.cp)), np.arange(len(self.place_C))
        wanted = step if back else step + 1
        if self.cp == 1 or not 0 <= wanted < self.cp:
            return sent_CN
        sizes_RC = np.where(self.source_RSC[:, wanted] >= 0, self.of_sources(held_RC, step), 0.0)
        before_RC = np.where(self.source_RSC[:, 1] >= 0, self.source_RSC[:, 1], self.place_C)
        for to_C, sizes_C in zip(before_RC if back else self.next_RC, sizes_RC, strict=True):
            np.add.at(sent_CN, (shares, to_C), sizes_C)
        return sent_CN

    def given_back(self, sizes_RC: Float, step: int) -> Float:
        """[C, N]: what each share sends to those whose queries it had at a step, of these sizes by ring."""
        sent_CN, source_RC = np.zeros((len(self.place_C), self.cp)), self.source_RSC[:, step]
        for ring in range(RINGS):
            known = np.flatnonzero(source_RC[ring] >= 0)
            np.add.at(sent_CN, (known, source_RC[ring, known]), sizes_RC[ring, known])
        return sent_CN
