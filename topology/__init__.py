"""Clusters: GPUs, NICs, switches and the links between them, paths, presets, and the hardware table."""

from moecast.topology.cluster import Cluster
from moecast.topology.fabric import Fabric, parse_fabric
from moecast.topology.hardware import Hardware
from moecast.topology.load import load_cluster, write_cluster
from moecast.topology.nodes import Gpu, Link, Nic, Node, Switch
from moecast.topology.presets import Preset, find_preset, list_presets
from moecast.topology.recipe import Domain, Recipe
from moecast.topology.routes import Routes

__all__ = [
    "Cluster",
    "Domain",
    "Fabric",
    "Gpu",
    "Hardware",
    "Link",
    "Nic",
    "Node",
    "Preset",
    "Recipe",
    "Routes",
    "Switch",
    "find_preset",
    "list_presets",
    "load_cluster",
    "parse_fabric",
    "write_cluster",
]
