"""Direct collectives: every rank sends to every other at once, as kernels over NVLink do for few bytes.

Closed forms, n ranks, even links of rate r and hops of h seconds: reduce-scatter, all-gather and
all-to-all (n - 1) / n · bytes / r + h; one-shot all-reduce (n - 1) · bytes / r + h; two-shot
all-reduce, a reduce-scatter and an all-gather, 2 (n - 1) / n · bytes / r + 2 h; each to its next
bytes / r + h.

Axes: E edge, M member.
"""

from __future__ import annotations

import numpy as np

from moecast.sim.collectives.edges import Edges
from moecast.sim.collectives.groups import Group
from moecast.sim.collectives.protocols import Protocol


class Direct:
    """Each rank sends each other its share of the bytes."""

    name = "direct"
    operations = ("reduce-scatter", "all-gather", "all-to-all")

    def supports(self, operation: str, group: Group) -> bool:  # noqa: ARG002
        """Take its operations in any group."""
        return operation in self.operations

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:  # noqa: ARG002
        """Lay out an edge for each pair of ranks."""
        return between_all(group, part=1 / group.n, rounds=1, protocol=protocol)


class OneShot:
    """All-reduce: each rank sends all its bytes to every other, which adds up what it gets."""

    name = "one-shot"
    operations = ("all-reduce",)

    def supports(self, operation: str, group: Group) -> bool:
        """Take groups inside one domain, as the kernels do."""
        return operation in self.operations and group.in_one_domain

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:  # noqa: ARG002
        """Lay out an edge for each pair of ranks."""
        return between_all(group, part=1.0, rounds=1, protocol=protocol)


class TwoShot:
    """All-reduce: each rank adds up its share of everybody's bytes, then sends the sums to every other."""

    name = "two-shot"
    operations = ("all-reduce",)

    def supports(self, operation: str, group: Group) -> bool:
        """Take groups inside one domain, as the kernels do."""
        return operation in self.operations and group.in_one_domain

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:  # noqa: ARG002
        """Lay out an edge for each pair of ranks, for both rounds: they use the same links one after the other."""
        return between_all(group, part=2 / group.n, rounds=2, protocol=protocol)


class SendReceive:
    """Each rank sends its bytes to the next of its group, the last to the first: what sendrecv_perf measures."""

    name = "cyclic"
    operations = ("send-recv",)

    def supports(self, operation: str, group: Group) -> bool:  # noqa: ARG002
        """Take any group."""
        return operation in self.operations

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:  # noqa: ARG002
        """Lay out an edge for each rank."""
        return to_next(group, protocol, wraps=True)


class PipelineSend:
    """Each rank sends its bytes to the next of its group, the last to nobody: activations between pipeline stages."""

    name = "open"
    operations = ("send-recv",)

    def supports(self, operation: str, group: Group) -> bool:  # noqa: ARG002
        """Take any group."""
        return operation in self.operations

    def edges(self, operation: str, group: Group, protocol: Protocol) -> Edges:  # noqa: ARG002
        """Lay out an edge for each rank but the last."""
        return to_next(group, protocol, wraps=False)


def between_all(group: Group, *, part: float, rounds: int, protocol: Protocol) -> Edges:
    """Edges between all pairs of ranks, with `part` of the bytes each."""
    source, destination = np.nonzero(~np.eye(group.n, dtype=bool))
    source_E, destination_E = group.ranks_M[source], group.ranks_M[destination]
    return Edges(
        source_E=source_E,
        destination_E=destination_E,
        part_E=np.full(len(source), part),
        latency_E=rounds * group.hops_E(protocol, source_E, destination_E),
    )


def to_next(group: Group, protocol: Protocol, *, wraps: bool, step: int = 1) -> Edges:
    """Edges from each rank to the one `step` further on, with all the bytes."""
    kept = group.n if wraps else group.n - step
    source_E, destination_E = group.ranks_M[:kept], np.roll(group.ranks_M, -step)[:kept]
    return Edges(
        source_E=source_E,
        destination_E=destination_E,
        part_E=np.ones(kept),
        latency_E=group.hops_E(protocol, source_E, destination_E),
    )
