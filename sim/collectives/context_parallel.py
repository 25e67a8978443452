"""The exchanges of context-parallel attention: a sequence cut over ranks, whose keys and values all ranks must see.

`ring_steps`: n - 1 times each rank passes the block of keys and values that it has on to the next, and attends to the
block that it got meanwhile (Ring Attention, arXiv 2310.01889). Links of rate r carry bytes / r + a hop a step; under
attention that takes longer a step, only the first block's wait is seen.

`gather_steps`: all keys and values are gathered at once, as Llama 3 was trained (arXiv 2407.21783, section 3.3.2).

`token_ring_steps`: queries travel and keys and values stay (TokenRing, arXiv 2412.20501). Queries go on to the next
rank; what a rank attended to for another's queries goes straight back to them, the other way round and at the same
time, so that both directions of the links between the ranks are used.

Counts are a rank's own units [D]: its keys and values, or (in `token_ring_steps`) its queries.

Axes: D group, M member.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from moecast.sim.collectives.direct import to_next
from moecast.sim.collectives.edges import Edges, joined, template_of
from moecast.sim.collectives.groups import groups_of
from moecast.sim.collectives.operations import collective_template
from moecast.sim.collectives.protocols import PLAIN
from moecast.sim.collectives.template import FlowTemplate
from moecast.sim.sites import Sites


def ring_steps(sites: Sites, groups_DM: npt.ArrayLike, *, unit_bytes: float = 1.0) -> list[FlowTemplate]:
    """Give the exchange under each of the n blocks of attention but the last; all are the same."""
    template = collective_template(sites, groups_DM, operation="send-recv", kind="cyclic", unit_bytes=unit_bytes)
    return [template] * (np.asarray(groups_DM).shape[1] - 1)


def gather_steps(sites: Sites, groups_DM: npt.ArrayLike, *, kind: str, unit_bytes: float = 1.0) -> list[FlowTemplate]:
    """Give the one exchange before all attention: a rank gets what n ranks have."""
    members = np.asarray(groups_DM).shape[1]
    return [collective_template(sites, groups_DM, operation="all-gather", kind=kind, unit_bytes=unit_bytes * members)]


def token_ring_steps(
    sites: Sites, groups_DM: npt.ArrayLike, *, output_part: float, unit_bytes: float = 1.0
) -> list[FlowTemplate | None]:
    """Give the exchange under each of the n blocks of attention, and the one after the last; None: nothing moves.

    Parameters
    ----------
    output_part
        Bytes of a query's output and its sum of exponents, by the bytes of the query.

    Raises
    ------
    ValueError
        `output_part` is not above 0.
    """
    if not 0 < output_part < float("inf"):
        raise ValueError(f"output_part = {output_part}: must be above 0")
    groups = list(groups_of(sites, groups_DM))
    n = groups[0].n

    def moves(step: int) -> Iterator[list[Edges]]:
        for group in groups:
            parts = [to_next(group, PLAIN, wraps=True)] if step < n - 1 else []
            if step > 1:  # what was attended to in the step before was of the queries of so many ranks back
                parts.append(_scaled(to_next(group, PLAIN, wraps=True, step=n - (step - 1)), output_part))
            yield parts

    steps: list[FlowTemplate | None] = []
    for step in range(n + 1):
        parts = list(moves(step))
        of_groups = [joined(of_group) for of_group in parts if of_group]
        steps.append(template_of(sites, of_groups, PLAIN, unit_bytes) if of_groups else None)
    return steps


def _scaled(edges: Edges, part: float) -> Edges:
    return Edges(
        source_E=edges.source_E,
        destination_E=edges.destination_E,
        part_E=edges.part_E * part,
        latency_E=edges.latency_E,
    )
