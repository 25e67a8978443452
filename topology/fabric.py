"""The network between domains: which shape it has, how far it is oversubscribed, how it spreads flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from moecast.errors import MoecastError

Number = TypeVar("Number", int, float)
Shape = Literal["leaf-spine", "rail", "single-switch"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
FABRIC_RULE = (
    'give a fabric such as "leaf-spine:2", "rail:1", "single-switch" or "leaf-spine:2,routing=ecmp,nodes-per-leaf=4"'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """Leaves and spines between the NICs.

    Parameters
    ----------
    shape
        "leaf-spine": all NICs of a node go to one leaf, several nodes a leaf. "rail": NIC i of
        every node of a pod goes to leaf i of that pod (rail-optimised). "single-switch": every NIC
        on one switch that never blocks.
    oversubscription
        Capacity of a full leaf's downlinks over that of its uplinks, at least 1. A leaf has
        ceil(downlinks / this) cables upward, one to each spine, of equal capacity, so that the
        ratio is exact.
    nodes_per_leaf
        Nodes that share a leaf, or a pod of rail leaves; None leaves it to the preset.
    routing
        "ecmp" (hashed) or "spray" (adaptive); None leaves it to the preset.

    Raises
    ------
    ValueError
        A value out of its range.
    """

    shape: Shape
    oversubscription: float = 1.0
    nodes_per_leaf: int | None = None
    routing: Literal["ecmp", "spray"] | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape = {self.shape!r} is not one of {', '.join(SHAPES)}")
        if not 1 <= self.oversubscription <= 1000:
            raise ValueError(f"oversubscription = {self.oversubscription} must be between 1 and 1000")
        if self.nodes_per_leaf is not None and self.nodes_per_leaf < 1:
            raise ValueError(f"nodes_per_leaf = {self.nodes_per_leaf} must be at least 1")
        if self.routing not in ("ecmp", "spray", None):
            raise ValueError(f"routing = {self.routing!r} is not one of ecmp, spray")

    def __str__(self) -> str:
        """Write the fabric as `parse_fabric` reads it."""
        head = self.shape if self.shape == "single-switch" else f"{self.shape}:{self.oversubscription:g}"
        options = {"routing": self.routing, "nodes-per-leaf": self.nodes_per_leaf}
        return ",".join([head, *(f"{key}={value}" for key, value in options.items() if value is not None)])


def parse_fabric(text: str) -> Fabric:
    """Read a fabric such as "leaf-spine:2" or "rail:1,routing=ecmp".

    Raises
    ------
    MoecastError
        An unknown shape or option, or a value out of its range.
    """
    head, *options = (part.strip() for part in text.split(","))
    shape, colon, ratio = head.partition(":")
    given = dict(option.partition("=")[::2] for option in options)
    try:
        if set(given) - {"routing", "nodes-per-leaf"} or len(given) < len(options):
            raise ValueError(FABRIC_RULE)
        if shape == "single-switch" and colon:
            raise ValueError('"single-switch" takes no oversubscription')
        return Fabric(
            shape=shape,  # type: ignore[arg-type]  # checked by Fabric
            oversubscription=_number(float, ratio.removesuffix(":1")) if colon else 1.0,
            nodes_per_leaf=_number(int, given["nodes-per-leaf"]) if "nodes-per-leaf" in given else None,
            routing=given.get("routing"),  # type: ignore[arg-type]  # checked by Fabric
        )
    except ValueError as error:
        rule = str(error) if shape in SHAPES else FABRIC_RULE
        raise MoecastError(rule, field="fabric", value=text) from error


def _number(kind: type[Number], text: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(FABRIC_RULE) from None
