"""What a cluster is made of: GPUs, NICs and switches as nodes, and directed links between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Tier = Literal["nvswitch", "leaf", "spine", "core"]

# The kind of a link follows from what it joins; a pair that is not here cannot be linked.
LINK_KINDS: dict[tuple[str, str], str] = {
    ("gpu", "nvswitch"): "nvlink-out",
    ("nvswitch", "gpu"): "nvlink-in",
    ("gpu", "gpu"): "nvlink-direct",
    ("gpu", "nic"): "pcie-out",
    ("nic", "gpu"): "pcie-in",
    ("nic", "leaf"): "nic-out",
    ("leaf", "nic"): "nic-in",
    ("nic", "nic"): "nic-direct",
    ("leaf", "spine"): "leaf-up",
    ("spine", "leaf"): "leaf-down",
    ("leaf", "leaf"): "leaf-direct",
    ("spine", "core"): "spine-up",
    ("core", "spine"): "spine-down",
}

NVLINK_KINDS = frozenset({"nvlink-out", "nvlink-in", "nvlink-direct"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU: `id` is its index in the cluster, `index` its place in its NVLink domain, `node` its host."""

    name: str
    id: int
    node: int
    domain: int
    index: int

    @property
    def kind(self) -> str:
        """What this node is, as `LINK_KINDS` calls it."""
        return "gpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Nic:
    """A network card of the host `node`."""

    name: str
    node: int

    @property
    def kind(self) -> str:
        """What this node is, as `LINK_KINDS` calls it."""
        return "nic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """A switch that never blocks inside: an NVSwitch (all of a domain's taken as one), a leaf, a spine or a core."""

    name: str
    tier: Tier

    @property
    def kind(self) -> str:
        """What this node is, as `LINK_KINDS` calls it."""
        return self.tier


Node: TypeAlias = Gpu | Nic | Switch


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One direction of a cable, with its usable bytes per second and the time its first byte takes.

    A full-duplex cable is two links. Names are those of the nodes at its ends.
    """

    source: str
    destination: str
    kind: str
    capacity_Bps: float
    latency_s: float

    def __post_init__(self) -> None:
        if not 0 < self.capacity_Bps < float("inf"):
            raise ValueError(f"link {self.name}: capacity_Bps must be positive and finite, got {self.capacity_Bps}")
        if not 0 <= self.latency_s < float("inf"):
            raise ValueError(f"link {self.name}: latency_s must not be negative, got {self.latency_s}")

    @property
    def name(self) -> str:
        """How outputs name the link: "leaf0->spine3"."""
        return f"{self.source}->{self.destination}"

    @classmethod
    def between(cls, source: Node, destination: Node, capacity_Bps: float, latency_s: float) -> Link:
        """Link two nodes in one direction; the kind follows from what they are.

        Raises
        ------
        ValueError
            Nodes of these kinds cannot be linked, or a value is out of range.
        """
        kind = link_kind(source, destination)
        return cls(
            source=source.name, destination=destination.name, kind=kind, capacity_Bps=capacity_Bps, latency_s=latency_s
        )


def link_kind(source: Node, destination: Node) -> str:
    """Say what a link between two nodes is called.

    Raises
    ------
    ValueError
        Nodes of these kinds cannot be linked.
    """
    try:
        return LINK_KINDS[source.kind, destination.kind]
    except KeyError:
        raise ValueError(
            f"link {source.name}->{destination.name}: a {source.kind} cannot be linked to a {destination.kind}"
        ) from None
