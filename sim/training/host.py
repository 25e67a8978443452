"""What a rank's host takes to launch an MoE layer beside its GPU, and what the rank waits for before it sends.

A training step is launched kernel by kernel. The host runs ahead of its GPU, so that a layer takes as long as its
launches or as its kernels, whichever is longer: launches are tasks on a stream of their own, and what a layer sends
stands behind them. What a rank waits for besides, such as proxies that pass on what leaves a node where the network has
no GPU's own sends, is added to what it sends.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWait:
    """Seconds in each direction of an MoE layer: forward, and backward.

    Parameters
    ----------
    launch_s
        What the host takes to launch it, beside whatever the GPU does.
    fixed_s
        What the rank waits for before it sends, whatever the layer; what runs beside the exchange hides it.
    byte_s
        The same, for each byte that a rank's tokens are, there and back, in copies of their choices.

    Raises
    ------
    ValueError
        A negative time, or none.
    """

    launch_s: float = 0.0
    fixed_s: float = 0.0
    byte_s: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(f"{field.name} = {getattr(self, field.name)}: must not be negative")

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(getattr(self, field.name) for field in fields(self))

    def wait_s(self, *, sent_bytes: float) -> float:
        """Of a rank that sends so many bytes, there and back."""
        return self.fixed_s + self.byte_s * sent_bytes


NO_WAIT = HostWait()
