"""What a rank's host takes to launch an MoE layer beside its GPU, and what the rank waits for before it sends.

A training step is launched kernel by kernel. The host runs ahead of its GPU, so that a layer takes
as long as its launches or as its kernels, whichever is longer: launches are tasks on a stream of
their own, and what a layer sends stands behind them. A dispatch whose counts the host polls for
(DeepEP) holds the host up: nothing else is launched meanwhile, of another microbatch neither. What
a rank waits for besides is added to what it sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from moecast.sim.collectives.template import no_flows
from moecast.sim.forward import ForwardPass
from moecast.sim.program import HOST, Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWait:
    """Seconds in each direction of an MoE layer: forward, and backward.

    Parameters
    ----------
    launch_s
        What the host takes to launch it, beside whatever the GPU does.
    fixed_s
        What the rank waits for before it sends, whatever the layer; what runs beside the exchange
        hides it.
    byte_s
        The same, for each byte that a rank's tokens are, there and back, in copies of their
        choices.
    copy_s
        What its host polls for each copy of a rank's tokens that leaves its domain, one for each
        domain that a token goes to.

    Raises
    ------
    ValueError
        A negative time, or none.
    """

    launch_s: float = 0.0
    fixed_s: float = 0.0
    byte_s: float = 0.0
    copy_s: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(f"{field.name} = {getattr(self, field.name)}: must not be negative")

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(getattr(self, field.name) for field in fields(self))


NO_WAIT = HostWait()


def after_host(sent: Iterable[Exchange], host: HostWait, step: ForwardPass) -> Iterator[Exchange]:
    """Let what is sent first stand behind its launch, what its host polls for, and what is waited for, on no stream."""
    exchanges = list(sent)
    if exchanges and host:
        nothing = replace(exchanges[0], flows=no_flows(), barrier=False)
        if host.launch_s:
            yield replace(nothing, kind="other", setup_s=host.launch_s, stream=HOST, behind=())
        if polled_s := host.copy_s * _copies(step):
            yield replace(nothing, kind="other", setup_s=polled_s, stream=HOST)
        if wait_s := host.fixed_s + host.byte_s * _sent_bytes(step):
            yield replace(nothing, setup_s=wait_s, stream=None)
    yield from exchanges


def _sent_bytes(step: ForwardPass) -> float:
    """What a rank's tokens are there and back, in copies of their choices."""
    placed = step.placed
    choices = step.model.choices * float(np.mean(step.tokens_at(0)))
    return choices * (placed.dispatch_flows.copy_bytes + placed.combine_flows.copy_bytes)


def _copies(step: ForwardPass) -> float:
    """Copies of a rank's tokens that leave its domain, where all domains get as many."""
    copies_LSA = step.traffic.domain_copies_LSA
    return float(copies_LSA.mean()) * (copies_LSA.shape[-1] - 1)
