"""What a cluster is built from: the domain that is repeated, how often, and the fabric between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moecast.topology.fabric import Fabric
from moecast.topology.hardware import Hardware

# Trace columns and plans number ranks with 16 bits; a larger number of GPUs is a slip of the
# keyboard.
MAX_GPUS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One NVLink domain: its hosts, GPUs and NICs, and the rate and latency of each kind of link.

    Rates are usable bytes per second of one GPU or NIC in one direction; both directions have them
    at once.

    Parameters
    ----------
    hosts, gpus_per_host, nics_per_host
        With fewer NICs than GPUs, neighbouring GPUs share one: GPU i of a host uses NIC i * nics //
        gpus.
    nic_of_gpu
        The NIC that each GPU of a host uses, where it is another.
    direct_nvlink
        GPUs are cabled to each other, each pair with an equal part of `nvlink_Bps`, and not to
        NVSwitches.
    nvlink_Bps, nvlink_latency_s
        Between a GPU and the domain's NVSwitches; the latency is that of each of the two links.
    pcie_Bps, pcie_latency_s
        Between a GPU and its NIC.
    nic_Bps, nic_latency_s
        Between a NIC and its leaf.
    switch_latency_s
        Of each link between leaf and spine, passing the switch included.
    sources
        Where each of the numbers above comes from, by field.

    Raises
    ------
    ValueError
        A number out of its range.
    """

    hosts: int = 1
    gpus_per_host: int
    nics_per_host: int
    nvlink_Bps: float
    nvlink_latency_s: float
    pcie_Bps: float
    pcie_latency_s: float
    nic_Bps: float
    nic_latency_s: float
    switch_latency_s: float
    nic_of_gpu: tuple[int, ...] | None = None
    direct_nvlink: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("hosts", "gpus_per_host", "nics_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.nics_per_host > self.gpus_per_host:
            raise ValueError(
                f"nics_per_host = {self.nics_per_host} is more than gpus_per_host = {self.gpus_per_host}; "
                "take the NICs of one GPU as one of their summed rate"
            )
        if self.nic_of_gpu is not None and (
            len(self.nic_of_gpu) != self.gpus_per_host or set(self.nic_of_gpu) != set(range(self.nics_per_host))
        ):
            rule = f"one of 0 to {self.nics_per_host - 1} for each of the {self.gpus_per_host} GPUs, each used"
            raise ValueError(f"nic_of_gpu = {self.nic_of_gpu}: {rule}")
        if self.direct_nvlink and self.hosts > 1:
            raise ValueError(f"direct_nvlink = True does not go with hosts = {self.hosts}: it is inside one host")
        for name in ("nvlink_Bps", "pcie_Bps", "nic_Bps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        for name in ("nvlink_latency_s", "pcie_latency_s", "nic_latency_s", "switch_latency_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")

    @property
    def n_gpus(self) -> int:
        """GPUs of the domain."""
        return self.hosts * self.gpus_per_host

    def nic_of(self, gpu: int) -> int:
        """The NIC of a host's GPU."""
        return self.nic_of_gpu[gpu] if self.nic_of_gpu else gpu * self.nics_per_host // self.gpus_per_host


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A cluster in a few words: `n_domains` of `domain` joined by `fabric`.

    Parameters
    ----------
    name
        Of the cluster.
    domain
        What is repeated.
    n_domains
        How often.
    fabric
        Between the NICs; None for a single domain whose NICs go nowhere.
    hardware
        The hardware table of its GPUs.
    preset
        The preset it comes from, where it does.
    notes
        What a reader should know of where it comes from.

    Raises
    ------
    ValueError
        Several domains without a fabric, or too many GPUs.
    """

    name: str
    domain: Domain
    n_domains: int
    fabric: Fabric | None
    hardware: Hardware
    preset: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.n_domains < 1:
            raise ValueError(f"nodes = {self.n_domains} must be at least 1")
        if self.n_domains > 1 and self.fabric is None:
            raise ValueError(f"{self.n_domains} domains need a fabric between them")
        if self.n_domains * self.domain.n_gpus > MAX_GPUS:
            raise ValueError(f"{self.n_domains * self.domain.n_gpus} GPUs are more than the {MAX_GPUS} that are built")
