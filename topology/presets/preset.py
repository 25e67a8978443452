"""What a preset holds: a kind of domain, its hardware, and the fabric that several of it get by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moecast.topology.fabric import Fabric
from moecast.topology.hardware import Hardware
from moecast.topology.recipe import Domain, Recipe

# Two nodes a leaf make a cluster of four cross its spines, as larger ones do; a 64-port leaf would
# take five at 2:1. 32 nodes a pod: rail leaves of 64 ports, half of them downwards, as in NVIDIA's
# SuperPOD.
NODES_PER_LEAF = {"leaf-spine": 2, "rail": 32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A kind of node or domain that clusters are made of.

    Parameters
    ----------
    name, summary
        What users type, and one line about it.
    domain, hardware
        One of it.
    fabric
        What joins several of it where nothing else is asked; its routing and `nodes_per_leaf` also
        stand in where another fabric leaves them open.
    nodes_per_leaf
        By shape of fabric.
    nvlinks
        NVLinks of a GPU, which make up `Domain.nvlink_Bps`.
    """

    name: str
    summary: str
    domain: Domain
    hardware: Hardware
    fabric: Fabric
    nodes_per_leaf: Mapping[str, int] = field(default_factory=NODES_PER_LEAF.copy)
    nvlinks: int = 18

    def recipe(self, *, n_domains: int = 1, fabric: Fabric | None = None, name: str | None = None) -> Recipe:
        """Describe a cluster of `n_domains` of this preset.

        A single one has no fabric unless one is given.

        Raises
        ------
        ValueError
            A number out of its range.
        """
        if fabric is None and n_domains > 1:
            fabric = self.fabric
        if fabric is not None:
            fabric = replace(
                fabric,
                routing=fabric.routing or self.fabric.routing,
                nodes_per_leaf=None
                if fabric.shape == "single-switch"
                else fabric.nodes_per_leaf or self.nodes_per_leaf[fabric.shape],
            )
        shape = f" {fabric.shape}" if fabric else ""
        if fabric and fabric.shape != "single-switch":
            shape += f":{fabric.oversubscription:g}"
        return Recipe(
            name=name or (f"{n_domains} x {self.name}{shape}" if fabric else self.name),
            domain=self.domain,
            n_domains=n_domains,
            fabric=fabric,
            hardware=self.hardware,
            preset=self.name,
        )
