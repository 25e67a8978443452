"""Is the routing learned? Four statistics of a trace beside what shuffled routers give.

Each statistic is compared with draws of a router that has lost the one thing it measures: a uniform
router for load, experts drawn by the layer's load for co-activation, topics dealt anew over whole
sequences for topic dependence, and another token's choices for the step from layer to layer. Axes:
T token, L layer, E expert, K choice, C topic.

    python -m moecast.traces.capture.own.evidence TRACE
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.traces import NO_CHOICE, RoutingTrace, coactivation_LEE, load_LE, read_trace, transition_LEE

Floats = npt.NDArray[np.float64]
Draw = Callable[[RoutingTrace, np.random.Generator], RoutingTrace]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One statistic of a trace, and its mean and standard deviation over shuffled ones."""

    name: str
    observed: float
    shuffled: float
    deviation: float

    @property
    def z(self) -> float:
        """Distance from the shuffled mean in their standard deviations."""
        return (self.observed - self.shuffled) / self.deviation if self.deviation else float("inf")


def load_spread(trace: RoutingTrace) -> float:
    """Standard deviation of the experts' load over its mean, averaged over layers; 0 is perfectly even."""
    loads_LE = load_LE(trace)
    return float((loads_LE.std(axis=1) / loads_LE.mean(axis=1)).mean())


def coactivation_spread(trace: RoutingTrace) -> float:
    """Spread of how much more often two experts meet in a token than their loads make expect, averaged over layers."""
    spreads = []
    for met_EE, load_E in zip(coactivation_LEE(trace), load_LE(trace), strict=True):
        apart = ~np.eye(len(load_E), dtype=bool)
        expected_EE = np.outer(load_E, load_E).astype(float)
        seen = apart & (expected_EE > 0)
        expected = expected_EE[seen] / expected_EE[seen].sum() * met_EE[seen].sum()
        spreads.append(np.sqrt(np.average((met_EE[seen] / expected - 1) ** 2, weights=expected)))
    return float(np.mean(spreads))


def topic_information(trace: RoutingTrace) -> float:
    """Bits that a choice of expert tells about the token's topic, averaged over layers."""
    counts_CLE = np.stack([load_LE(trace.select(trace.topic_T == topic)) for topic in range(len(trace.topics))])
    return float(np.mean([_bits(counts_CLE[:, layer]) for layer in range(trace.meta.layers)]))


def layer_information(trace: RoutingTrace) -> float:
    """Bits that a choice tells about a choice at the next layer, averaged over pairs of layers."""
    return float(np.mean([_bits(counts_EE) for counts_EE in transition_LEE(trace)]))


def uniform(trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
    """Every token chooses evenly and at random."""
    return _drawn(trace, np.ones((trace.meta.layers, trace.meta.experts)), rng)


def by_load(trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
    """Every token chooses at random, experts weighted by their load."""
    return _drawn(trace, load_LE(trace).astype(float), rng)


def topics_dealt(trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
    """Whole sequences get the topic of another: tokens of a sequence are alike, so dealing tokens would flatter."""
    _, first_S, sequence_T = np.unique(trace.sequence_T, return_index=True, return_inverse=True)
    return dataclasses.replace(trace, topic_T=rng.permutation(trace.topic_T[first_S])[sequence_T])


def layers_apart(trace: RoutingTrace, rng: np.random.Generator) -> RoutingTrace:
    """Each layer's choices come from another token of the trace."""
    order_LT = np.stack([rng.permutation(trace.n_tokens) for _ in range(trace.meta.layers)])
    layers = [trace.experts_TLK[order_T, layer] for layer, order_T in enumerate(order_LT)]
    return dataclasses.replace(trace, experts_TLK=np.stack(layers, axis=1))


STATISTICS: tuple[tuple[str, Callable[[RoutingTrace], float], Draw], ...] = (
    ("load: spread over experts", load_spread, uniform),
    ("co-activation: spread of lift over pairs", coactivation_spread, by_load),
    ("topic: bits per choice", topic_information, topics_dealt),
    ("next layer: bits per pair of choices", layer_information, layers_apart),
)


def evidence(trace: RoutingTrace, *, draws: int = 20, most_tokens: int = 20_000, seed: int = 0) -> tuple[Evidence, ...]:
    """Compare a trace with shuffled ones, on whole sequences drawn at random up to about `most_tokens` tokens.

    Raises
    ------
    ValueError
        The trace has tokens without topic, or fewer than two layers.
    """
    if np.any(trace.topic_T < 0) or trace.meta.layers < 2:
        raise ValueError("trace: evidence needs every topic, and two layers")
    rng = np.random.default_rng(seed)
    sequences = rng.permutation(np.unique(trace.sequence_T))
    share = min(1.0, most_tokens / trace.n_tokens)
    part = trace.select(np.isin(trace.sequence_T, sequences[: max(2, round(share * len(sequences)))]))
    found = []
    for name, statistic, draw in STATISTICS:
        values = [statistic(draw(part, rng)) for _ in range(draws)]
        deviation = float(np.std(values, ddof=1))
        found.append(
            Evidence(name=name, observed=statistic(part), shuffled=float(np.mean(values)), deviation=deviation)
        )
    return tuple(found)


def table(found: tuple[Evidence, ...]) -> str:
    """A Markdown table."""
    rows = ["| statistic | trace | shuffled | z |", "|---|---|---|---|"]
    rows += [f"| {e.name} | {e.observed:.4f} | {e.shuffled:.4f} ± {e.deviation:.4f} | {e.z:,.0f} |" for e in found]
    return "\n".join(rows)


def _drawn(trace: RoutingTrace, weight_LE: Floats, rng: np.random.Generator) -> RoutingTrace:
    """As many different experts per token and layer, drawn in turn with these weights (the Gumbel top-K trick)."""
    with np.errstate(divide="ignore"):
        key_LE = np.log(weight_LE).astype(np.float32)
    layers = []
    for key_E in key_LE:
        waits_TE = rng.standard_exponential((trace.n_tokens, trace.meta.experts), dtype=np.float32)
        noise_TE = -np.log(np.maximum(waits_TE, np.finfo(np.float32).tiny))
        late_TE = -(key_E + noise_TE)
        best_TK = np.argpartition(late_TE, trace.meta.choices - 1, axis=1)[:, : trace.meta.choices]
        turn_TK = np.argsort(np.take_along_axis(late_TE, best_TK, axis=1), axis=1)
        layers.append(np.take_along_axis(best_TK, turn_TK, axis=1))
    drawn_TLK = np.stack(layers, axis=1).astype(np.uint16)
    return dataclasses.replace(trace, experts_TLK=np.where(trace.experts_TLK == NO_CHOICE, NO_CHOICE, drawn_TLK))


def _bits(counts: npt.NDArray[np.int64]) -> float:
    """Mutual information of a table of counts."""
    joint = counts / counts.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / apart[seen])).sum())


if __name__ == "__main__":
    for phase in ("prefill", "decode"):
        sys.stdout.write(f"{phase}\n{table(evidence(read_trace(sys.argv[1], phase=phase)))}\n")
