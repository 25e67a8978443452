"""The flows of one kind of exchange, laid out once per layout and filled with each layer's counts.

Which ranks may send to which, over which links, and who waits for what is the same at every layer;
only the number of copies differs. A template holds the first, `fill` adds the second.

Axes: F flow, X (flow, link) pair, R (flow, parent) pair, S source rank, D destination rank, N
domain, C count.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from moecast.arrays import numbers, whole_numbers
from moecast.sim.collectives.links import link_capacity, with_issue_links
from moecast.sim.collectives.template_loops import fill_flows, size_flows
from moecast.sim.network.links import Paths, kept_pairs, paces
from moecast.sim.program import Flows, Sizes
from moecast.sim.sites import Sites

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

PRESENCE = -1
"""The count of a flow of zero bytes inside one rank, which feeds others: they wait until that rank is there."""

CHUNK_COPIES = 32
"""Copies that a relay takes in before it passes them on: the chunk of DeepEP's normal kernels at 32 ranks."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Legs:
    """The possible flows of an exchange, before they have paths and sizes.

    Parameters
    ----------
    source_F, destination_F
        Ranks.
    waiter_F
        The rank that waits for the flow's end; -1: nobody but what it feeds.
    awaited_F
        Where in the counts the copies stand that the waiter waits for: without any it does not
        wait.
    count_F
        Where in the counts the flow's number of copies stands, or `PRESENCE`.
    child_R, parent_R
        Pairs of flows: the parent feeds the child.
    part_F
        Of each of its copies, what the flow carries (more than 1 where it passes the same bytes on
        again); None: all.
    n_counts
        How many counts there must be, at least.

    Raises
    ------
    ValueError, TypeError
        Arrays of different lengths, a count before the first, or a pair of a flow that is not
        there.
    """

    source_F: Int32
    destination_F: Int32
    waiter_F: Int32
    awaited_F: Int
    count_F: Int
    child_R: Int
    parent_R: Int
    part_F: Float | None = None
    n_counts: int = field(init=False)

    def __post_init__(self) -> None:
        n, most = len(self.source_F), np.iinfo(np.int32).max
        for name, least in (("source_F", 0), ("destination_F", 0), ("waiter_F", -1)):
            array = whole_numbers(name, getattr(self, name), least=least, most=most, shape=(n,), dtype=np.int32)
            object.__setattr__(self, name, array)
        for name, least in (("awaited_F", 0), ("count_F", PRESENCE)):
            array = whole_numbers(name, getattr(self, name), least=least, most=most, shape=(n,))
            object.__setattr__(self, name, array)
        child_R = whole_numbers("child_R", self.child_R, most=n - 1)
        object.__setattr__(self, "child_R", child_R)
        object.__setattr__(self, "parent_R", whole_numbers("parent_R", self.parent_R, most=n - 1, shape=child_R.shape))
        if self.part_F is not None:
            object.__setattr__(self, "part_F", numbers("part_F", self.part_F, shape=(n,)))
        highest = max(int(self.count_F.max(initial=-1)), int(self.awaited_F.max(initial=-1)))
        object.__setattr__(self, "n_counts", highest + 1)

    @classmethod
    def direct(cls, source_F: npt.ArrayLike, destination_F: npt.ArrayLike, count_F: npt.ArrayLike) -> Legs:
        """Flows that are fed by none and awaited by their destination."""
        none = np.empty(0, np.int64)
        destination = np.asarray(destination_F, np.int32)
        return cls(
            source_F=np.asarray(source_F, np.int32),
            destination_F=destination,
            waiter_F=destination,
            awaited_F=np.asarray(count_F, np.int64),
            count_F=np.asarray(count_F, np.int64),
            child_R=none,
            parent_R=none,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlowTemplate:
    """Flows with paths, waiting for counts.

    Parameters
    ----------
    legs
        Who sends to whom.
    copy_bytes
        Bytes of one copy.
    offsets_F1, link_X, share_X, latency_F
        The paths, issue links included (see `moecast.sim.program.Flows`).
    pace_F
        Seconds per byte of a flow that has its links to itself.
    parent_offsets_F1, parent_R
        The parents of each flow.
    """

    legs: Legs
    copy_bytes: float
    offsets_F1: Int
    link_X: Int32
    share_X: Float
    latency_F: Float
    pace_F: Float
    parent_offsets_F1: Int
    parent_R: Int
    _every: list[Flows] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of(
        cls,
        sites: Sites,
        legs: Legs,
        copy_bytes: float,
        *,
        messages: bool = False,
        wire_F: Float | None = None,
        latency_F: Float | None = None,
        links: tuple[Int, Int32, Float] | None = None,
    ) -> FlowTemplate:
        """Find the paths of the legs.

        Parameters
        ----------
        messages
            Each copy costs its sender `Hardware.message_s` on top of the time of its bytes
            (`with_issue_links`).
        wire_F
            Bytes that pass the links for each byte of data; None: one.
        latency_F
            Seconds from the last byte's departure to its arrival; None: the path's.
        links
            `offsets_F1`, `link_X` and `share_X` from whoever has laid more on them; None: the
            paths' own.
        """
        routes = sites.routes(legs.source_F, legs.destination_F)
        offsets_F1, link_X, share_X = links or (routes.offsets_F1, routes.link_X, routes.share_X)
        if messages and sites.cluster.hardware.message_s > 0:
            offsets_F1, link_X, share_X = with_issue_links(sites, legs.source_F, routes, copy_bytes)
        if wire_F is not None:
            share_X = share_X * np.repeat(wire_F, np.diff(offsets_F1))
        capacity_J = link_capacity(sites)
        order = np.argsort(legs.child_R, kind="stable")
        parents_F = np.bincount(legs.child_R, minlength=len(legs.source_F))
        return cls(
            legs=legs,
            copy_bytes=copy_bytes,
            offsets_F1=offsets_F1,
            link_X=link_X,
            share_X=share_X,
            latency_F=routes.latency_F if latency_F is None else latency_F,
            pace_F=paces(offsets_F1, link_X, share_X, capacity_J),
            parent_offsets_F1=np.concatenate([[0], np.cumsum(parents_F)]),
            parent_R=legs.parent_R[order],
        )

    @property
    def paths(self) -> Paths:
        """The links of each flow."""
        return self.offsets_F1, self.link_X, self.share_X

    def on_narrowest(self, narrowest_J: Int) -> FlowTemplate:
        """Leave out of the paths the links that are not the narrowest of their row."""
        offsets_F1, link_X, share_X = kept_pairs(self.paths, narrowest_J)
        return replace(self, offsets_F1=offsets_F1, link_X=link_X, share_X=share_X)

    def among(self, ranks_R: Int32) -> FlowTemplate:
        """Count the flows' ranks among those that take part in an exchange, by their place in `ranks_R`.

        Raises
        ------
        ValueError
            A flow starts, ends or is waited for at another rank.
        """
        most = max(int(getattr(self.legs, name).max(initial=-1)) for name in ("source_F", "destination_F", "waiter_F"))
        # the last for nobody, -1
        place_G = np.full(max(most, int(ranks_R.max(initial=-1))) + 2, -1, np.int32)
        place_G[ranks_R] = np.arange(len(ranks_R), dtype=np.int32)
        legs, names = self.legs, ("source_F", "destination_F", "waiter_F")
        places = {name: place_G[getattr(legs, name)] for name in names}
        if any(((places[name] < 0) & (getattr(legs, name) >= 0)).any() for name in names):
            raise ValueError("ranks_R: a flow is of another rank")
        return replace(self, legs=replace(legs, **places))

    def copies_F(self, counts_C: Int) -> Int:
        """Copies that each possible flow carries, `PRESENCE` flows zero."""
        return np.where(self.legs.count_F < 0, 0, counts_C[self.legs.count_F])

    def bytes_F(self, counts_C: Int) -> Float:
        """Bytes that each possible flow carries."""
        bytes_F: Float = (self.copies_F(counts_C) * self.copy_bytes).astype(np.float64)
        return bytes_F if self.legs.part_F is None else bytes_F * self.legs.part_F

    def bytes_leaving(self, counts_C: Int) -> float:
        """Bytes that leave GPUs."""
        away_F = self.legs.source_F != self.legs.destination_F
        return float(self.bytes_F(counts_C)[away_F].sum())

    def counted(self, counts_C: Int) -> CountedFlows:
        """Give the flows of one exchange, made only when it is run.

        Raises
        ------
        ValueError
            Fewer counts than the flows ask for.
        """
        return CountedFlows(template=self, counts_C=counts_C)

    def fill(self, counts_C: Int) -> Flows:
        """Give the flows of one exchange; those without copies are left out, `PRESENCE` flows stay.

        Raises
        ------
        ValueError
            Fewer counts than the flows ask for.
        """
        legs = self.legs
        self.check_counts(counts_C)
        bytes_F = self.bytes_F(counts_C)
        chosen, offsets_F1, link_X, share_X, parent_offsets_F1, parent_R, delay_F, tail_F = fill_flows(
            legs.count_F,
            counts_C,
            bytes_F,
            CHUNK_COPIES * self.copy_bytes,
            self.offsets_F1,
            self.link_X,
            self.share_X,
            self.latency_F,
            self.pace_F,
            self.parent_offsets_F1,
            self.parent_R,
        )
        return Flows(
            bytes_F=bytes_F[chosen],
            source_rank_F=legs.source_F[chosen],
            destination_rank_F=legs.destination_F[chosen],
            waiter_F=np.where(counts_C[legs.awaited_F[chosen]] > 0, legs.waiter_F[chosen], np.int32(-1)),
            offsets_F1=offsets_F1,
            link_X=link_X,
            share_X=share_X,
            latency_F=self.latency_F[chosen],
            parent_offsets_F1=parent_offsets_F1,
            parent_R=parent_R,
            feed_delay_F=delay_F,
            feed_tail_F=tail_F,
        )

    @property
    def every(self) -> Flows:
        """All possible flows, each of one copy; made once."""
        if not self._every:
            legs, n = self.legs, len(self.legs.count_F)
            flows = Flows(
                bytes_F=self.bytes_F(np.ones(legs.n_counts, np.int64)),
                source_rank_F=legs.source_F,
                destination_rank_F=legs.destination_F,
                waiter_F=legs.waiter_F,
                offsets_F1=self.offsets_F1,
                link_X=self.link_X,
                share_X=self.share_X,
                latency_F=self.latency_F,
                parent_offsets_F1=self.parent_offsets_F1,
                parent_R=self.parent_R.astype(np.int32),
                feed_delay_F=np.zeros(n),
                feed_tail_F=np.zeros(n),
            )
            self._every.append(flows)
        return self._every[0]

    def sized(self, counts_C: Int) -> tuple[Flows, Sizes]:
        """Give all possible flows, and what an exchange has of them.

        Its own flows alone where that does not say all: a relay gets nothing, or nobody waits for what was sent.

        Raises
        ------
        ValueError
            Fewer counts than the flows ask for.
        """
        self.check_counts(counts_C)
        legs = self.legs
        is_all, *sizes = size_flows(
            legs.count_F,
            legs.awaited_F,
            legs.waiter_F,
            counts_C,
            self.copy_bytes,
            np.zeros(0) if legs.part_F is None else legs.part_F,
            CHUNK_COPIES * self.copy_bytes,
            self.latency_F,
            self.pace_F,
            self.parent_offsets_F1,
            self.parent_R,
        )
        return (self.every, Sizes(*sizes)) if is_all else self.fill(counts_C).sized()

    def check_counts(self, counts_C: Int) -> None:
        """See that counts are as many as the flows ask for, before a loop indexes with them.

        Raises
        ------
        ValueError
            They are not.
        """
        if counts_C.ndim != 1 or counts_C.dtype.kind not in "iu" or len(counts_C) < self.legs.n_counts:
            found = f"{counts_C.dtype} {list(counts_C.shape)}"
            raise ValueError(f"counts_C: must be at least {self.legs.n_counts} whole numbers, not {found}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountedFlows:
    """A template with the counts of one exchange: what a program of many exchanges keeps instead of their flows.

    Raises
    ------
    ValueError
        Fewer counts than the flows ask for.
    """

    template: FlowTemplate
    counts_C: Int

    def __post_init__(self) -> None:
        self.template.check_counts(self.counts_C)

    @property
    def most(self) -> int:
        """How many flows there are at the most."""
        return len(self.template.legs.count_F)

    def fill(self) -> Flows:
        """Make the flows."""
        return self.template.fill(self.counts_C)

    def sized(self) -> tuple[Flows, Sizes]:
        """Give the template's flows, and what this exchange has of them."""
        return self.template.sized(self.counts_C)

    def with_counts_of(self, other: CountedFlows | None) -> CountedFlows:
        """The flows of this exchange and of another one by the same template, as if they were of one."""
        if other is None:
            return self
        n = self.template.legs.n_counts
        return self.template.counted(self.counts_C[:n].astype(np.int64) + other.counts_C[:n])


def no_flows() -> Flows:
    """Give an exchange in which nothing travels: ranks only wait for each other."""
    ints, int32s, floats = np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0)
    first = np.zeros(1, np.int64)
    return Flows(
        bytes_F=floats,
        source_rank_F=int32s,
        destination_rank_F=int32s,
        waiter_F=int32s,
        offsets_F1=first,
        link_X=int32s,
        share_X=floats,
        latency_F=floats,
        parent_offsets_F1=first,
        parent_R=ints.astype(np.int32),
        feed_delay_F=floats,
        feed_tail_F=floats,
    )
