"""A pass of even work in round numbers, in place of a model's: what closed forms of schedules are about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from moecast.sim.collectives.legs import Leg
from moecast.sim.program import Compute, Exchange, Kind, StepProgram
from tests.sim.network_cases import switch_flows


@dataclass(frozen=True, kw_only=True)
class ToyPass:
    """Two ranks that each compute and send the same; every exchange alone takes the seconds that are given."""

    layers: int = 3
    attention_s: float = 0.0
    projections_s: float = 0.0
    router_s: float = 0.0
    shared_s: float = 0.0
    expert_s: float = 0.0
    dispatch_s: float = 0.0
    combine_s: float = 0.0
    spread_s: float = 0.0
    gather_s: float = 0.0
    sum_s: float = 0.0
    norm_s: float = 0.0
    phase: str = "prefill"
    ranks: int = 2

    @property
    def step(self) -> Any:
        return SimpleNamespace(phase=self.phase, kernels=self.phase, decodes_only=self.phase == "decode")

    @property
    def placed(self) -> Any:
        return SimpleNamespace(mode=SimpleNamespace(stay=False), experts_are_summed=True)

    @property
    def model(self) -> Any:
        return SimpleNamespace(
            is_whole=False,
            n_layers=self.layers,
            moe_layer_ids=tuple(range(self.layers)),
            shared_intermediate=int(self.shared_s > 0),
        )

    def split(self, parts: int, *, fused: bool = False) -> list[ToyPass]:  # noqa: ARG002  work costs the same
        seconds = {name: getattr(self, name) / parts for name in self.__dataclass_fields__ if name.endswith("_s")}
        return [replace(self, **seconds)] * parts

    def attention(self, layer: int, *, norms: bool = True) -> Iterator[Compute | Exchange]:
        yield self._compute("attention", layer, self.attention_s + (2 * self.norm_s if norms else 0.0))
        if self.sum_s:
            yield self._exchange("other", layer, self.sum_s)

    def norm(self, layer: int) -> Compute:
        return self._compute("attention", layer, self.norm_s)

    def attention_projections(self, layer: int) -> Iterator[Compute]:
        yield self._compute("attention", layer, self.projections_s)

    def attention_core(self, layer: int) -> Iterator[Compute]:
        yield self._compute("attention", layer, self.attention_s - self.projections_s)

    def router(self, moe: int) -> Compute:
        return self._compute("router", moe, self.router_s)

    def shared_experts(self, moe: int) -> Iterator[Compute]:
        if self.shared_s:
            yield self._compute("other", moe, self.shared_s)

    def dispatch(self, moe: int) -> Iterator[Exchange]:
        if self.dispatch_s or self.spread_s or self.gather_s:
            yield self._exchange("dispatch", moe, self.dispatch_s)

    def legs(self, exchange: Exchange) -> tuple[Leg, ...]:
        """`dispatch_s` between domains, then `spread_s` inside; on the way back `gather_s`, then `combine_s`."""
        between = Leg(exchange=exchange, between=True)
        inside_s = {"dispatch": self.spread_s, "combine": self.gather_s}.get(exchange.kind)
        if inside_s is None or not self.spread_s + self.gather_s:
            return (between,)
        inside = Leg(exchange=self._exchange(exchange.kind, exchange.layer, inside_s, inside=True), between=False)
        return (between, inside) if exchange.kind == "dispatch" else (inside, between)

    def experts(self, moe: int) -> Compute:
        return self._compute("expert", moe, self.expert_s)

    def combine(self, moe: int) -> Iterator[Exchange]:
        yield self._exchange("combine", moe, self.combine_s)

    def head(self) -> Iterator[Compute]:
        yield from ()

    def program(self, tasks: Any) -> StepProgram:
        links = 4 * self.ranks  # a port out and one in between domains, the same inside them
        names = tuple(f"link {j}" for j in range(links))
        return StepProgram(tasks=tuple(tasks), n_ranks=self.ranks, capacity_J=np.ones(links), link_names_J=names)

    def _compute(self, kind: Kind, layer: int, seconds: float) -> Compute:
        return Compute(kind=kind, layer=layer, seconds_R=np.full(self.ranks, seconds))

    def _exchange(self, kind: Kind, layer: int, seconds: float, *, inside: bool = False) -> Exchange:
        sends_SD = np.full((self.ranks, self.ranks), seconds / (self.ranks - 1))
        np.fill_diagonal(sends_SD, 0.0)
        flows = switch_flows(sends_SD, latency=0.0)
        if inside:
            flows = replace(flows, link_X=flows.link_X + 2 * self.ranks)
        return Exchange(
            kind=kind,
            layer=layer,
            flows=flows,
            setup_s=0.0,
            barrier=False,
            group_R=np.zeros(self.ranks, np.int32),
        )
