"""What running beside each other costs: compute has fewer SMs, and communication is slower.

Both are taken from DeepSeek-V3's training window (deepseek-ai/profile-data): 20 of 132 SMs are
given to communication, and dispatch and combine, which alone take 2.37 and 4.70 ms, take 3.4 to
4.35 and 6.18 ms under the compute of another microbatch. Low-latency kernels take no SMs: they only
wait for what arrives. Sums in the switch take few (`FUSED_SMS`), and nothing says that they are
slower beside compute.

Axes: J link, F flow.
"""

from __future__ import annotations

from dataclasses import replace

from moecast.sim.collectives.links import link_capacity, slowed_sends
from moecast.sim.collectives.template import FlowTemplate
from moecast.sim.network.links import paces
from moecast.sim.sites import Sites
from moecast.topology import Hardware

SLOWDOWN = (0.5 * (3.4 + 4.35) + 6.18) / (2.37 + 4.70)
"""Time of communication under compute by its time alone: 1.42, fitted on the window above."""


FUSED_SMS = 8
"""SMs of a kernel that adds sums up in the switch and normalises them: 2 to 8 (TokenWeave, arXiv 2505.11329)."""


def with_fewer_sms(hardware: Hardware, taken: int | None = None) -> Hardware:
    """GPUs that compute with the SMs that communication leaves; `taken` None: what normal kernels take."""
    left = hardware.sms - (hardware.communication_sms if taken is None else taken)
    peaks = {kind: peak * left / hardware.sms for kind, peak in hardware.peak_flop_per_s.items()}
    return replace(hardware, sms=left, peak_flop_per_s=peaks)


def beside_compute(template: FlowTemplate, sites: Sites) -> FlowTemplate:
    """The same flows where their senders compute: each sender's own links give 1 / `SLOWDOWN` of their rate."""
    offsets_F1, link_X, share_X = slowed_sends(sites, template.legs.source_F, template, SLOWDOWN)
    return replace(
        template,
        offsets_F1=offsets_F1,
        link_X=link_X,
        share_X=share_X,
        pace_F=paces(offsets_F1, link_X, share_X, link_capacity(sites)),
    )
