"""FSMoE: chunks of tokens that travel between domains and inside them at once, a stream for each network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from moecast.sim.forward import ForwardPass
from moecast.sim.program import Exchange, Task
from moecast.sim.schedules.chunked import InChunks
from moecast.sim.schedules.lay import Chain, TaskList
from moecast.sim.schedules.layers import layers_of

BETWEEN, INSIDE = "between domains", "inside domains"
"""The streams of the two networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FsMoe(InChunks):
    """The MoE layer in `degree` chunks.

    What a chunk sends between domains runs beside what another sends inside them.

    A chunk goes between domains to its relay (or, experts cut by width, to one of the ranks that
    hold its expert), is spread inside the domain, computed, gathered inside the domain, and goes
    home between domains. Between domains all chunks are dispatched before the first is combined;
    inside, a chunk is spread before the one before it is gathered.

    On even work, with a, g, e, s and c seconds of a chunk for dispatch, spread, experts, gather and
    combine and d >= 2 chunks, the layer takes at least (d - 1) max(a, g, e, s, c) + a + g + e + s +
    c, d (a + c) and a + d (g + s) + c. It takes the first, a + g + d e + s + c, where e >= g + s
    and e >= a, c; the second where a = c is the longest, g + s <= (d - 2) a and g + e + s <= (d -
    1) a; the third where a, e, c <= g, s. Each chunk pays the launches of four exchanges, and
    experts read their weights once a chunk.

    A relay passes a chunk on when it has all of it, where the one exchange of other schedules
    pipelines both legs.

    Source: FSMoE, arXiv 2501.10714 (co-scheduling of intra- and inter-node communication).
    """

    @property
    def name(self) -> str:
        """``fsmoe:`` and the degree."""
        return f"fsmoe:{self.degree}"

    @property
    def in_sequence(self) -> bool:
        """Two networks are two streams."""
        return False

    def supports(self, step: ForwardPass, /) -> str | None:
        """Copies come home, and go both between domains and inside them."""
        placed = step.placed
        if placed.mode.stay:
            return "tokens that stay with their experts have no chunks"
        if placed.experts_are_summed:
            return "nothing is dispatched where the sums of experts are all-reduced"
        if not placed.sites.crosses_domains:
            return "nothing goes between domains: each EP group stands in one"
        if not placed.mode.relayed and placed.plan.etp == 1:
            return "needs a leg inside domains: a dispatch mode with relays (per_domain), or experts cut by width (etp)"
        return None

    def tasks(self, step: ForwardPass) -> Iterator[Task]:
        """Lay a step's tasks."""
        tasks = TaskList()
        whole = Chain(tasks)
        parts = step.split(self.degree)
        if step.model.is_whole:
            whole.put(step.embedding())
        for layer, moe in layers_of(step):
            whole.put(step.attention(layer))
            if moe is None:
                whole.put(step.dense_layer(layer))
                continue
            routed = whole.put(step.router(moe))
            chunks = [_Chunk(part, moe, Chain(tasks, microbatch=n, last=routed)) for n, part in enumerate(parts)]
            for chunk in chunks:
                chunk.send()
            whole.beside(step.shared_experts(moe), after=routed)
            chunks[0].spread()
            for chunk, ahead in zip_longest(chunks, chunks[1:]):
                if ahead is not None:
                    ahead.spread()
                chunk.compute_and_return()
            whole.join(chunk.chain for chunk in chunks)
        whole.put(step.head())
        yield from tasks.tasks


class _Chunk:
    """One chunk's way through an MoE layer."""

    def __init__(self, part: ForwardPass, moe: int, chain: Chain) -> None:
        self.chain, self._part, self._moe = chain, part, moe
        legs = list(legs_of(part, part.dispatch(moe)))
        first = next((place for place, (_, stream) in enumerate(legs) if stream == INSIDE), len(legs))
        self._out, self._spread = legs[:first], legs[first:]

    def send(self) -> None:
        """Go to the domains of the experts."""
        for task, stream in self._out:
            self.chain.put(task, stream=stream)

    def spread(self) -> None:
        """Go to their ranks."""
        for task, stream in self._spread:
            self.chain.put(task, stream=stream)

    def compute_and_return(self) -> None:
        """Run the experts and go home."""
        self.chain.put(self._part.experts(self._moe))
        for task, stream in legs_of(self._part, self._part.combine(self._moe)):
            self.chain.put(task, stream=stream)


def legs_of(step: ForwardPass, exchanges: Iterable[Exchange]) -> Iterator[tuple[Exchange, str]]:
    """Give exchanges leg by leg, each with the stream of the network that it uses."""
    for exchange in exchanges:
        yield from ((leg.exchange, BETWEEN if leg.between else INSIDE) for leg in step.legs(exchange))
