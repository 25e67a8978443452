"""The numbers that simulate answers with.

Axes: W simulated step, L MoE layer, G rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PredictionValues:
    """The numbers of a `Prediction`, checked.

    Times are of the simulated steps; balance, fan-out, crossings, bytes and loads are of all steps
    of the workload.

    Parameters
    ----------
    cluster, model
        What they are called; a model whose routing and dimensions come from two models says so.
    network
        The rung that timed the steps: "bound", "fluid".
    phase
        "prefill" or "decode".
    plan, workload, trace
        What was asked: their own descriptions, as plain values.
    seed
        Of the hash that picks paths.
    routing_shape, model_shape
        L, E and K that were simulated, and those of the model whose widths they have. Where they
        differ nothing is said of a whole step of that model: the fields marked * are null, and
        times are those of a MoE layer.
    layer_time_s
        Mean time of a MoE layer at which choices are made: attention, router, dispatch, experts,
        combine and shared experts, waiting included.
    steps, steps_simulated
        Steps of the workload; the indices of those that the network rung timed.
    step_time_s, step_times_s
        * Mean, and each simulated step's own.
    breakdown_s
        Mean over steps and ranks of exposed time by part (`moecast.sim.breakdown`). Adds up to
        `step_time_s`, or, where that is null, to `layer_time_s`.
    overlapped_s
        Mean over steps and ranks of communication that ran under compute.
    held_up_s
        Of the parts of exchanges in `breakdown_s`, per step, what is waiting for a peer that an
        exchange holds up: waiting for the network. Waiting for a peer that computes is the part
        "idle".
    critical_path
        By part, the share of the timed steps that their critical paths go through; adds up to 1.
    tokens_per_s, tokens_per_s_per_gpu
        * Of the whole cluster; per rank of the plan. In decode accepted tokens, in mixed steps
          those of prompts, too.
    latency_s, latency_kind
        * Decode: inter-token latency. Prefill: time to first token of a prompt that one step holds
          whole, without
        queueing. Both are the mean step time, where drafts are verified over the tokens that a
        sequence then gets.
    memory_bytes, fits
        * Per GPU, by part, the fullest rank; whether the total is within what is usable of the
          capacity.
    balance, balance_p5
        Per step, layer and EP group mean / max over ranks of choices served: the mean, and the 5th
        percentile.
    overload
        The same turned over: max / mean, its mean over steps, layers and EP groups (Megatron's
        overload factor).
    balance_pooled
        The same with all steps taken as one, the mean over layers and EP groups.
    fan_out, remote_fan_out, fan_out_domains
        Distinct ranks, ranks other than its own, and domains that serve a token at a layer; mean
        over tokens and the layers at which any choice is made.
    crossings
        Over consecutive layers and all pairs of a token's choices, the part served on different
        ranks; 0 with one layer.
    dispatch_bytes
        Bytes leaving GPUs to dispatch, per step over all ranks and layers; a relayed copy leaves
        twice.
    bottleneck, gains
        The resource whose doubling saves most, and the part of the time that doubling each saves,
        alone, on the first timed step; below 0 where it takes longer. Those that may save 1 % (see
        `moecast.sim.gains`); empty where it was not asked for.
    traffic_SD
        Bytes that each source rank dispatches to each destination rank per step, over all layers,
        relays left out; by domain where there are more than 256 ranks.
    link_utilisation
        The busiest links of each kind: name, kind, bytes per step, and bytes / (capacity x step
        time).
    rank_load, rank_load_LG
        Choices served per step on each rank, over all layers; and by layer.
    interval_s
        * 80 % interval of the mean step time, low and high, from how far off forecasts of measured
          rows of this kind
        were (`moecast.sim.accuracy`); null where none was measured.
    rests_on
        The family of those errors (`errors`, empty where there is none: `why_not` says why), its
        rows, configurations, sources, median, p90 and bias; how many are of this engine and GPU;
        whose kernels, which version, which routing.
    labels
        What every output that shows these numbers must say with them.
    warnings
        What a reader should know before trusting them.

    Raises
    ------
    ValueError
        Tables whose sizes do not fit each other, or links without a name, kind and utilisation.
    """

    cluster: str
    model: str
    network: str
    phase: str
    plan: Mapping[str, Any]
    workload: Mapping[str, Any]
    trace: Mapping[str, Any]
    seed: int
    routing_shape: tuple[int, ...]
    model_shape: tuple[int, ...]
    steps: int
    steps_simulated: tuple[int, ...]
    layer_time_s: float
    step_time_s: float | None
    step_times_s: tuple[float, ...] | None
    breakdown_s: Mapping[str, float]
    overlapped_s: float
    held_up_s: float
    critical_path: Mapping[str, float]
    tokens_per_s: float | None
    tokens_per_s_per_gpu: float | None
    latency_s: float | None
    latency_kind: str
    memory_bytes: Mapping[str, int] | None
    fits: bool | None
    balance: float
    balance_p5: float
    overload: float
    balance_pooled: float
    fan_out: float
    remote_fan_out: float
    fan_out_domains: float
    crossings: float
    dispatch_bytes: float
    bottleneck: str
    gains: Mapping[str, float]
    traffic_SD: tuple[tuple[float, ...], ...]
    link_utilisation: tuple[Mapping[str, Any], ...]
    rank_load: tuple[float, ...]
    rank_load_LG: tuple[tuple[float, ...], ...]
    interval_s: tuple[float, ...] | None = None
    rests_on: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what tables and pictures rely on."""
        for name in ("routing_shape", "model_shape"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}: three numbers, L, E and K")
        if any(len(row) != len(self.traffic_SD) for row in self.traffic_SD):
            raise ValueError("traffic_SD: as many destinations as sources")
        if not self.rank_load_LG or any(len(row) != len(self.rank_load) or not row for row in self.rank_load_LG):
            raise ValueError(f"rank_load_LG: for each layer one number for each of the {len(self.rank_load)} ranks")
        if self.interval_s is not None and (len(self.interval_s) != 2 or self.interval_s[0] > self.interval_s[1]):
            raise ValueError("interval_s: two numbers, low and high")
        for link in self.link_utilisation:
            named = all(isinstance(link.get(name), str) for name in ("name", "kind"))
            if not named or not _is_number(link.get("utilisation")):
                raise ValueError("link_utilisation: each has a name, a kind and a utilisation, a finite number")

    @property
    def whole(self) -> bool:
        """Whether a whole step of the named model was simulated."""
        return self.routing_shape == self.model_shape

    @property
    def compared_s(self) -> float:
        """The time by which plans are compared: of a step, or of a MoE layer where no step was simulated."""
        return self.layer_time_s if self.step_time_s is None else self.step_time_s


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
