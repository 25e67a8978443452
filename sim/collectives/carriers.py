"""What kernels add to the links that carry a dispatch or a combine, by fitted costs.

Inside a domain: seconds before the first byte, bytes on NVLink for a byte of data, and what each
copy costs the SMs that send it. Low-latency kernels need that on top of the time of a copy's bytes;
normal kernels beside it, whichever is longer. Between domains starts are later, and low-latency
copies cost their sender something, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.sim.collectives.fitted import gathered_wire, is_fitted, nccl_of, wire_of
from moecast.sim.collectives.links import with_senders_links
from moecast.sim.collectives.template import FlowTemplate, Legs
from moecast.sim.collectives.template_loops import on_wire
from moecast.sim.cost.dispatch import (
    SEVERAL_HOSTS,
    SOFT,
    NormalParameters,
    distinct_ranks,
    find_parameters,
    sm_seconds_of_copy,
    working_sms,
)
from moecast.sim.cost.formulas import soft_maximum
from moecast.sim.cost.gpus import gpu_key
from moecast.sim.cost.nvlink import NOMINAL_Bps
from moecast.sim.engines import find_engine

if TYPE_CHECKING:
    from moecast.sim.collectives.modes import Mode
    from moecast.sim.sites import Sites
    from moecast.topology import Hardware

PHASES = ("dispatch", "combine")


def has_carriers(hardware: Hardware) -> bool:
    """Whether fitted costs say what kernels add; else links alone."""
    return is_fitted(hardware) and find_engine(hardware.engine).measured_moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """How kernels carry copies.

    Parameters
    ----------
    latency_s, far_latency_s
        From a last byte's departure to its arrival, where that is more than its path's, inside a
        domain and between domains; starts are in it.
    wire
        Bytes on NVLink for each byte of data.
    copy_s, far_copy_s
        Of its sender, for each copy that stays in the domain, and for each that leaves it.
    added
        Whether `copy_s` comes on top of the time of a copy's bytes; `far_copy_s` does.

    Raises
    ------
    ValueError
        A time below nothing, or less on the wire than there is data.
    """

    latency_s: float
    wire: float
    copy_s: float
    added: bool
    far_latency_s: float = 0.0
    far_copy_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latency_s", "copy_s", "far_latency_s", "far_copy_s"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 to 1 second")
        if not 1 <= self.wire < float("inf"):
            raise ValueError(f"wire = {self.wire}: must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What an EP group's ranks send each other, and by whose kernels.

    Parameters
    ----------
    hardware, mode
        Whose kernels, with all SMs of the GPU and those that communication has of them.
    ranks, near_ranks
        Of the group, and the most of them that stand in one domain.
    choices, experts
        Of a token, and of the model.
    """

    hardware: Hardware
    mode: Mode
    ranks: int
    near_ranks: int
    choices: int
    experts: int

    def carriers(self, copy_bytes: tuple[float, float]) -> tuple[Carrier | None, Carrier | None]:
        """Give those of the dispatch and the combine; None where links alone are asked for, or nothing to carry."""
        there, back = (self._carrier(phase, size) for phase, size in zip(PHASES, copy_bytes, strict=True))
        return there, back

    def _carrier(self, phase: str, size: float) -> Carrier | None:
        if not has_carriers(self.hardware) or self.ranks < 2:
            return None
        if self.mode.messages:
            return self._low_latency(phase)
        if self.mode.gathers and self._domains == 1:
            return Carrier(latency_s=0.0, wire=gathered_wire(self.hardware, self.ranks), copy_s=0.0, added=False)
        if self.mode.barrier:
            return self._nccl()
        if (self.hardware.engine, self.mode.name) == ("trtllm", "per_rank") and self._domains == 1:
            return self._symmetric(phase, size)
        return self._normal(phase, size)

    @property
    def _domains(self) -> float:
        return self.ranks / self.near_ranks

    def _fitted(self, library: str, phase: str) -> Any:
        return find_parameters(gpu_key(self.hardware), library, phase).parameters

    def _low_latency(self, phase: str) -> Carrier:
        near, far = self._fitted("deepep-ll", phase), self._fitted("deepep-ll-far", phase)
        launch_s = self.hardware.collective_launch_s
        of_token_s = near.token_s / working_sms(self.experts, self.hardware.sms)
        return Carrier(
            latency_s=max(0.0, near.start_s + self.experts * near.expert_s - launch_s),
            wire=wire_of(self.hardware, 1 / near.part),
            copy_s=self.hardware.copy_cost * float(of_token_s) / (self.choices * (self.ranks - 1) / self.ranks),
            added=True,
            far_latency_s=max(0.0, far.start_s - launch_s),
            far_copy_s=self.hardware.copy_cost * far.copy_s,
        )

    def _normal(self, phase: str, size: float) -> Carrier:
        near, before_s = self._fitted("deepep-normal", phase), self.hardware.collective_launch_s
        if phase == "dispatch" and self.mode.counts_first:
            before_s += self.hardware.count_exchange_s
        copy_s, soft = self._copy_seconds(near, phase, size)
        latency_s = max(0.0, near.start_s + size * near.wide_s - before_s)
        far = self._fitted("deepep-normal-far", phase)
        return Carrier(
            latency_s=latency_s,
            wire=wire_of(self.hardware, soft / near.part),
            copy_s=copy_s,
            added=False,
            far_latency_s=max(0.0, far.start_s + self._domains * far.host_s - before_s - latency_s),
        )

    def _symmetric(self, phase: str, size: float) -> Carrier:
        """TensorRT-LLM's two-sided kernels over NVLink; what prepares them is the exchange of counts."""
        p, n = self._fitted("nvlink-two-sided", phase), self.ranks
        own = n / (n - 1)
        part = p.far_part if n > SEVERAL_HOSTS else p.near_part
        each_s = self.hardware.copy_cost * own * p.token_s / float(distinct_ranks(n, self.choices))
        soft = self._soft(each_s, size, part / own)
        return Carrier(
            latency_s=max(0.0, p.start_s + n * p.rank_s - self.hardware.collective_launch_s),
            wire=wire_of(self.hardware, soft * own / part),
            copy_s=soft * each_s,
            added=False,
        )

    def _soft(self, each_s: float, size: float, part: float) -> float:
        """How much longer than the longer of SMs and links the fit is: it has a soft maximum, the network none."""
        sent_s = size / (part * NOMINAL_Bps[gpu_key(self.hardware)])
        return float(soft_maximum(np.array(each_s), np.array(sent_s), SOFT)) / max(each_s, sent_s)

    def _copy_seconds(self, near: NormalParameters, phase: str, size: float) -> tuple[float, float]:
        """What a copy costs all SMs that carry copies, and how much a soft maximum adds to that and to the links."""
        if self.near_ranks < 2:
            return 0.0, 1.0
        here = self.choices / self._domains
        each_s = float(sm_seconds_of_copy(near, choices=here, ranks=self.near_ranks, copy_bytes=size))
        each_s *= self._fitted("deepep-normal-far", phase).relay if self._domains > 1 else 1.0
        each_s *= self.hardware.copy_cost / self.hardware.communication_sms
        soft = self._soft(each_s, size, near.part)
        return soft * each_s, soft

    def _nccl(self) -> Carrier:
        p = nccl_of(self.hardware)
        before_s = self.hardware.collective_launch_s + self.hardware.barrier_s
        own = (self.ranks - 1 + p.pairs_own) / (self.ranks - 1)
        return Carrier(
            latency_s=max(0.0, p.pairs_start_s - before_s),
            wire=wire_of(self.hardware, own / p.pairs_part),
            copy_s=0.0,
            added=False,
        )


def lay_out(
    sites: Sites, legs: Legs, copy_bytes: float, carrier: Carrier | None, *, messages: bool = False
) -> FlowTemplate:
    """Find the paths of legs and lay on them what kernels need.

    `messages`: without a carrier, each copy costs its sender what the hardware table says.
    """
    if carrier is None:
        return FlowTemplate.of(sites, legs, copy_bytes, messages=messages)
    routes = sites.routes(legs.source_F, legs.destination_F)
    near_F = sites.domain_G[legs.source_F] == sites.domain_G[legs.destination_F]
    beside = carrier.copy_s > 0 and not carrier.added
    offsets_F1, link_X, share_X = with_senders_links(
        sites,
        legs.source_F,
        routes,
        per_byte_s=np.where(near_F, carrier.copy_s, carrier.far_copy_s) / copy_bytes,
        slowdown=np.where(near_F, 0.0 if beside else carrier.wire, 1.0),
    )
    wire_F, n_links = np.where(near_F, carrier.wire, 1.0), len(sites.cluster.links)
    return FlowTemplate.of(
        sites,
        legs,
        copy_bytes,
        links=(offsets_F1, link_X, on_wire(offsets_F1, link_X, share_X, wire_F, n_links)),
        latency_F=np.maximum(routes.latency_F, np.where(near_F, carrier.latency_s, carrier.far_latency_s)),
    )
