"""What ranks wait for their hosts in each direction of an MoE layer, before they send.

A training step is launched kernel by kernel, and the host waits for counts of tokens that come back from the device: it
does not run ahead through an MoE layer. What it takes hangs on how many kernels it launches, of which each expert that
a rank holds has its own (grouped products that a library multiplies one by one: 2 forward, 4 backward), and on how its
proxies pass on what leaves a node, where the network has no GPU's own sends.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWait:
    """Seconds in each direction of an MoE layer; what runs beside hides them.

    Parameters
    ----------
    fixed_s
        Whatever the layer.
    expert_s
        For each expert that a rank holds.
    byte_s
        For each byte that a rank's tokens are, there and back, in copies of their choices.

    Raises
    ------
    ValueError
        A negative time, or none.
    """

    fixed_s: float = 0.0
    expert_s: float = 0.0
    byte_s: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(f"{field.name} = {getattr(self, field.name)}: must not be negative")

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.fixed_s or self.expert_s or self.byte_s)

    def __add__(self, other: HostWait) -> HostWait:
        """One after the other."""
        return HostWait(
            fixed_s=self.fixed_s + other.fixed_s,
            expert_s=self.expert_s + other.expert_s,
            byte_s=self.byte_s + other.byte_s,
        )

    def seconds(self, *, experts: int, sent_bytes: float) -> float:
        """Of a rank that holds so many experts and sends so many bytes, there and back."""
        return self.fixed_s + self.expert_s * experts + self.byte_s * sent_bytes


NO_WAIT = HostWait()
