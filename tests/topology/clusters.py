"""Clusters that the topology tests draw, and the numbers they are built from."""

from dataclasses import replace

from hypothesis import strategies as st

from moecast.topology import Cluster, Domain, Fabric, Recipe, find_preset
from moecast.topology.builders import build_cluster

HARDWARE = replace(find_preset("dgx-h200").hardware, kernels="roofline")  # bytes on links are then bytes of data
DOMAIN = Domain(
    gpus_per_host=8,
    nics_per_host=8,
    nvlink_Bps=400e9,
    nvlink_latency_s=1e-6,
    pcie_Bps=60e9,
    pcie_latency_s=0.5e-6,
    nic_Bps=50e9,
    nic_latency_s=0.75e-6,
    switch_latency_s=0.25e-6,
)


def build(shape: str, n_domains: int, *, name: str = "test", domain: Domain = DOMAIN, **fabric: object) -> Cluster:
    fabric = {"routing": "spray", **fabric}
    recipe = Recipe(
        name=name, domain=domain, n_domains=n_domains, fabric=Fabric(shape=shape, **fabric), hardware=HARDWARE
    )
    return build_cluster(recipe)


@st.composite
def clusters(draw: st.DrawFn, *, routing: str | None = None, max_domains: int = 5) -> Cluster:
    """A small cluster of any shape, ratio and number of NICs."""
    gpus = draw(st.integers(1, 6))
    domain = replace(
        DOMAIN, hosts=draw(st.integers(1, 2)), gpus_per_host=gpus, nics_per_host=draw(st.integers(1, gpus))
    )
    return build(
        draw(st.sampled_from(["leaf-spine", "rail", "single-switch"])),
        draw(st.integers(1, max_domains)),
        domain=domain,
        oversubscription=draw(st.sampled_from([1.0, 1.5, 2.0, 3.0, 7.0])),
        nodes_per_leaf=draw(st.integers(1, 4)),
        routing=routing or draw(st.sampled_from(["ecmp", "spray"])),
    )
