"""The dispatch modes: how many copies travel, and what kernels carry them.

Sources: DeepEP (deepseek-ai/DeepEP) for the normal and the low-latency kernels; NCCL's all-to-all;
ExFlow (arXiv 2401.08383) for tokens that stay where their experts are; vLLM's
`allgather_reducescatter` backend, which is also what TensorRT-LLM and SGLang do for attention by DP
where no all-to-all kernel is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.sim.plan import DispatchMode
from moecast.sim.traffic import LayerTraffic

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One dispatch mode. NCCL's all-to-all is the uneven one: it moves what there is and pads nothing.

    Parameters
    ----------
    name
        As in the plan.
    per_choice
        A copy per choice; otherwise one per distinct rank (and, relayed, per distinct domain).
    relayed
        Copies for another domain go once to a relay there, which passes them on.
    counts_first
        The ranks of a group exchange counts before the dispatch, and wait for each other in that.
    barrier
        Nothing moves before every rank of the group is there, and nobody leaves before all has
        moved.
    messages
        Low-latency kernels: every copy is a message of its own, which costs its sender time.
    stay
        Tokens move on to the rank of their first choice instead of returning home.
    gathers
        Every token goes to every rank of the group, and every rank's sums for it come back: an
        all-gather and a reduce-scatter.
    """

    name: DispatchMode
    per_choice: bool = False
    relayed: bool = False
    counts_first: bool = True
    barrier: bool = False
    messages: bool = False
    stay: bool = False
    gathers: bool = False

    def dispatch_counts(self, traffic: LayerTraffic) -> Int:
        """Copies by (source, member of its group), then for relayed modes by (source, domain of its group)."""
        if self.gathers:
            return _to_all(traffic)
        if self.per_choice:
            return traffic.choices_SM.ravel()
        return np.concatenate([traffic.copies_SM.ravel(), traffic.domain_copies_SA.ravel()])

    def combine_counts(self, traffic: LayerTraffic) -> Int:
        """Count results the same way, by (where they go, where they come from): reduced in each rank, then domain."""
        if self.gathers:
            return _to_all(traffic)
        if self.per_choice:
            return traffic.choices_SM.ravel()
        return np.concatenate([traffic.return_copies_SM.ravel(), traffic.return_domain_copies_SA.ravel()])


def _to_all(traffic: LayerTraffic) -> Int:
    """One copy of each token to every member and every domain."""
    tokens_S = traffic.tokens_G[:, None]
    shapes = (traffic.copies_SM.shape, traffic.domain_copies_SA.shape)
    return np.concatenate([np.broadcast_to(tokens_S, shape).ravel() for shape in shapes])


MODES: tuple[Mode, ...] = (
    Mode(name="per_choice", per_choice=True, counts_first=False, messages=True),
    Mode(name="per_rank"),
    Mode(name="per_domain", relayed=True),
    Mode(name="nccl", per_choice=True, barrier=True),
    Mode(name="stay", relayed=True, stay=True),
    Mode(name="all_gather", relayed=True, counts_first=False, barrier=True, gathers=True),
)

DEFAULT_MODE = {"prefill": "per_domain", "decode": "per_choice"}


def mode_of(name: str | None, phase: str) -> Mode:
    """Find a mode by name; None: what engines use in this phase.

    Raises
    ------
    ValueError
        There is no such mode or phase.
    """
    if phase not in DEFAULT_MODE:
        raise ValueError(f"phase = {phase!r}: one of {', '.join(DEFAULT_MODE)}")
    wanted = DEFAULT_MODE[phase] if name is None else name
    for mode in MODES:
        if mode.name == wanted:
            return mode
    raise ValueError(f"dispatch = {wanted!r}: one of {', '.join(mode.name for mode in MODES)}")
