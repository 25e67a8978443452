"""One engine iteration as a step of the simulator: its program, timed by a network rung.

Axes: T token, G DP rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.forward import ForwardPass
from moecast.sim.parts import Part
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Exchange
from moecast.sim.schedules import program_of
from moecast.sim.serving.batchers import Scheduled
from moecast.sim.serving.cost.token_rows import TokenRows
from moecast.sim.step import Step

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.network import Rung
    from moecast.sim.plan import Plan
    from moecast.topology import Cluster
    from moecast.traces import RoutingTrace

Int = npt.NDArray[np.int64]

HOST_BPS = 50e9
"""PCIe 5.0 x16 as copies reach it, where a cluster names no such link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive tokens of one request on one rank.

    Parameters
    ----------
    rank
        The DP rank.
    request, topic
        Whose, and what about: which rows of the trace stand for its tokens.
    first, tokens
        The place of the first one in the request, and how many.
    decodes, wanted
        Whether it is a decode token, and whether the last one's logits are wanted.
    """

    rank: int
    request: int
    first: int
    tokens: int
    topic: int = -1
    decodes: bool = False
    wanted: bool = True

    @property
    def part(self) -> Part:
        """The part of the step that its tokens are of."""
        return Part.DECODE if self.decodes else Part.PREFILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds of an iteration, and of those in which the rank with the most waits for exchanges."""

    seconds: float
    network_s: float


class EngineStep:
    """Times iterations of a model under a plan.

    Parameters
    ----------
    plans
        By part, `prefill` and `decode`: what the plan is while there is a prompt in the iteration,
        or none. They differ in how tokens are moved alone.
    """

    def __init__(
        self, cluster: Cluster, model: ModelShape, plans: dict[str, Plan], trace: RoutingTrace, rung: Rung, *, seed: int
    ) -> None:
        self._cluster, self._model, self._plans = cluster, model, plans
        self._trace, self._rung, self._seed = trace, rung, seed
        self._rows = TokenRows(trace, seed=seed)
        self._placed: dict[str, PlacedModel] = {}

    @property
    def ranks(self) -> int:
        """G."""
        return self._plans["decode"].dp

    @property
    def host_Bps(self) -> float:
        """Bytes per second between a GPU and its host: of its PCIe link, where the cluster says one."""
        cluster = self._cluster
        pairs = zip(cluster.capacity_J.tolist(), cluster.link_kind_J, strict=True)
        return min((rate for rate, kind in pairs if kind == "pcie"), default=HOST_BPS)

    def placed(self, part: str) -> PlacedModel:
        """The model under the plan with the kernels of a part."""
        if part not in self._placed:
            self._placed[part] = PlacedModel.of(
                self._cluster, self._model, self._plans[part], phase=part, seed=self._seed
            )
        return self._placed[part]

    def time(self, step: Step) -> Timed:
        """Time a step."""
        program = program_of(ForwardPass.of(self.placed(step.kernels), self._trace, step))
        times = self._rung.run(program)
        pairs = zip(program.tasks, times.enter_S, times.leave_S, strict=True)
        exchanges = [leave - enter for task, enter, leave in pairs if isinstance(task, Exchange)]
        network_s = float(np.mean(np.sum(exchanges, axis=0))) if exchanges else 0.0
        return Timed(seconds=times.step_time_s, network_s=network_s)

    def step(self, pieces: Sequence[Piece]) -> Step:
        """Lay requests' tokens out as a step: by rank, on each the decode tokens last."""
        ordered = sorted(pieces, key=lambda piece: (piece.rank, piece.decodes))
        counts = np.array([piece.tokens for piece in ordered])
        rows = [self._rows.of(one.part, one.request, one.topic, one.first, one.tokens) for one in ordered]
        ends_T = np.zeros(int(counts.sum()), bool)
        last = np.cumsum(counts) - 1
        ends_T[last] = True
        wanted_T = ends_T.copy()
        wanted_T[last] = [piece.wanted for piece in ordered]
        decode_T = np.repeat([piece.decodes for piece in ordered], counts)
        firsts = np.repeat([piece.first for piece in ordered], counts)
        place_T = np.arange(len(firsts)) - np.repeat(last - counts + 1, counts)
        return Step.of_tokens(
            token_T=np.concatenate(rows),
            source_T=np.repeat([piece.rank for piece in ordered], counts).astype(np.int32),
            context_T=firsts + place_T + 1,
            decode_T=decode_T,
            wanted_T=wanted_T,
            end_T=ends_T,
        )


def pieces_of(scheduled_G: Sequence[Scheduled], topic_Q: Int) -> list[Piece]:
    """What ranks were scheduled, request by request; tokens that are computed for nobody stand for one of them."""
    pieces = []
    for rank, scheduled in enumerate(scheduled_G):
        decodes = scheduled.decodes.tolist()
        rows = zip(
            scheduled.request.tolist(),
            scheduled.tokens.tolist(),
            scheduled.context.tolist(),
            decodes,
            scheduled.samples.tolist(),
            strict=True,
        )
        for request, tokens, context, decoding, samples in rows:
            pieces.append(
                Piece(
                    rank=rank,
                    request=request,
                    topic=int(topic_Q[request]),
                    first=context,
                    tokens=tokens,
                    decodes=decoding,
                    wanted=samples,
                )
            )
        for number in range(scheduled.wasted):
            context = scheduled.wasted_context // scheduled.wasted
            pieces.append(Piece(rank=rank, request=number, first=context, tokens=1, decodes=True))
    return pieces
