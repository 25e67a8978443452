"""The operations on bytes of a group, the kinds of collectives that carry them, and what their bandwidth is called.

A size is what nccl-tests calls so: of an all-reduce the buffer of each rank; of a reduce-scatter
what each rank puts in, of an all-gather what each gets; of an all-to-all what each rank sends, its
own share included; of send-recv what each rank sends.

To add a kind: a file with a class that satisfies `Kind`, and an entry in the lists below.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.collectives.by_domain import ByDomain
from moecast.sim.collectives.direct import Direct, OneShot, PipelineSend, SendReceive, TwoShot
from moecast.sim.collectives.edges import Edges, template_of
from moecast.sim.collectives.groups import Group, groups_of
from moecast.sim.collectives.in_switch import InSwitch
from moecast.sim.collectives.protocols import PLAIN
from moecast.sim.collectives.protocols import Protocol as WireProtocol
from moecast.sim.collectives.ring import Ring
from moecast.sim.collectives.template import FlowTemplate
from moecast.sim.collectives.tree import Tree
from moecast.sim.sites import Sites

Operation = Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all", "send-recv"]
OPERATIONS: tuple[str, ...] = get_args(Operation)


class Kind(Protocol):
    """A way to carry an operation; its docstring has its closed form."""

    @property
    def name(self) -> str:
        """How options and outputs call it."""

    @property
    def operations(self) -> tuple[str, ...]:
        """What it can carry."""

    def supports(self, operation: str, group: Group) -> bool:
        """Say whether it carries the operation in this group."""

    def edges(self, operation: str, group: Group, protocol: WireProtocol) -> Edges:
        """Lay out what passes between the group's ranks."""


ALL_REDUCE: tuple[Kind, ...] = (Ring(), Tree(), InSwitch(), OneShot(), TwoShot(), ByDomain())
REDUCE_SCATTER: tuple[Kind, ...] = (Ring(), Direct(), InSwitch(), ByDomain())
ALL_GATHER: tuple[Kind, ...] = (Ring(), Direct(), InSwitch(), ByDomain())
ALL_TO_ALL: tuple[Kind, ...] = (Direct(),)
SEND_RECEIVE: tuple[Kind, ...] = (SendReceive(), PipelineSend())

KINDS: dict[str, tuple[Kind, ...]] = {
    "all-reduce": ALL_REDUCE,
    "reduce-scatter": REDUCE_SCATTER,
    "all-gather": ALL_GATHER,
    "all-to-all": ALL_TO_ALL,
    "send-recv": SEND_RECEIVE,
}


def find_kind(operation: str, name: str) -> Kind:
    """Find a kind of an operation by name.

    Raises
    ------
    MoecastError
        There is no such operation, or it has no such kind.
    """
    if operation not in KINDS:
        raise MoecastError(f"one of {', '.join(OPERATIONS)}", field="operation", value=operation)
    for kind in KINDS[operation]:
        if kind.name == name:
            return kind
    raise MoecastError(
        f"of {operation}, one of {', '.join(k.name for k in KINDS[operation])}", field="kind", value=name
    )


def bus_factor(operation: str, ranks: int) -> float:
    """Bus bandwidth over algorithm bandwidth: what must leave a rank without help of switches, by its size."""
    if operation == "send-recv":
        return 1.0
    return (2 if operation == "all-reduce" else 1) * (ranks - 1) / ranks


def collective_template(
    sites: Sites,
    groups_DM: npt.ArrayLike,
    *,
    operation: str,
    kind: str | Kind,
    protocol: WireProtocol = PLAIN,
    unit_bytes: float = 1.0,
) -> FlowTemplate:
    """Lay out a collective that all groups run at once.

    Counts are units of each group [D], each of `unit_bytes`.

    Parameters
    ----------
    groups_DM
        Ranks of each group, in its order.

    Raises
    ------
    MoecastError
        There is no such operation or kind, or the kind does not carry it in one of the groups.
    ValueError, TypeError
        Not ranks of the sites, fewer than two in a group, or one rank twice.
    """
    found = find_kind(operation, kind) if isinstance(kind, str) else kind
    groups = list(groups_of(sites, groups_DM))
    for group in groups:
        if not found.supports(operation, group):
            rule = (
                f"{found.name} does not carry {operation} over {group.n} ranks of {len(group.by_domain())} domains here"
            )
            raise MoecastError(rule, field="kind", value=found.name)
    return template_of(sites, [found.edges(operation, group, protocol) for group in groups], protocol, unit_bytes)


def all_reduce(sites: Sites, groups_DM: npt.ArrayLike, *, kind: str, unit_bytes: float = 1.0) -> FlowTemplate:
    """Every rank of a group gets the sum of the bytes of all (see `collective_template`)."""
    return collective_template(sites, groups_DM, operation="all-reduce", kind=kind, unit_bytes=unit_bytes)


def reduce_scatter(sites: Sites, groups_DM: npt.ArrayLike, *, kind: str, unit_bytes: float = 1.0) -> FlowTemplate:
    """Every rank of a group gets its share of the sum of the bytes of all (see `collective_template`)."""
    return collective_template(sites, groups_DM, operation="reduce-scatter", kind=kind, unit_bytes=unit_bytes)


def all_gather(sites: Sites, groups_DM: npt.ArrayLike, *, kind: str, unit_bytes: float = 1.0) -> FlowTemplate:
    """Every rank of a group gets the shares of all (see `collective_template`)."""
    return collective_template(sites, groups_DM, operation="all-gather", kind=kind, unit_bytes=unit_bytes)


def send_receive(
    sites: Sites, groups_DM: npt.ArrayLike, *, kind: str = "open", unit_bytes: float = 1.0
) -> FlowTemplate:
    """Every rank of a group sends bytes to the next (see `collective_template`)."""
    return collective_template(sites, groups_DM, operation="send-recv", kind=kind, unit_bytes=unit_bytes)
