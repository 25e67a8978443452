"""The questions that published rows ask: one exchange of tokens, one even all-to-all, one whole step.

Axes: T token, G rank, F flow, S source rank, D destination rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moecast.sim import Exchange, ModelShape, Plan, Step, kernels_on, load_model, step_program
from moecast.sim.collectives import CollectiveTime, bus_factor, time_collective
from moecast.sim.collectives import even_all_to_all as _all_to_all
from moecast.sim.network import Rung, usual_rung
from moecast.topology import Cluster, find_preset, load_cluster
from moecast.topology.builders import build_cluster
from moecast.traces import RoutingTrace
from moecast.validate.published.routing import even_trace, skewed_trace, uniform_trace

ExchangeName = Literal["dispatch", "combine"]

DEEPEP_NODES_PER_TOKEN = 4
"""`num_topk_groups` of DeepEP's test_internode.py: the most nodes that a token of its normal kernels' tests visits."""

MOST_ROWS = 18_432
"""Different tokens that a whole step draws, all of a decode step's; a multiple of the 64 that even routing deals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenExchange:
    """A dispatch or a combine at DeepSeek-V3's widths, without an exchange of counts, routed as DeepEP's tests do.

    Those of the low-latency kernels draw all experts alike; those of the normal ones first choose
    the 4 best nodes of each token (all, where there are no more), by the best expert in each.

    Parameters
    ----------
    cluster, nodes
        A preset and how many of it; its first `ranks` GPUs take part.
    ranks, tokens
        The EP group, and the tokens of each rank.
    mode, exchange
        Dispatch mode; "dispatch" (FP8) or "combine" (bf16).
    dispatch_type
        Element type of the dispatched vectors; combine is always bf16.
    only_nics
        Whether copies for a GPU of the same node also go over NICs: the cluster is then made of
        one-GPU nodes.
    unit
        "us", or "GB/s" of the bytes that DeepEP's own tests count, without metadata, a rank's own
        included. Normal kernels: distinct (token, node) pairs or, on one node, (token, rank) pairs;
        low-latency ones: every choice.
    """

    cluster: str
    nodes: int = 1
    ranks: int
    tokens: int
    mode: str
    exchange: ExchangeName
    dispatch_type: Literal["fp8", "bf16"] = "fp8"
    only_nics: bool = False
    unit: Literal["us", "GB/s"] = "us"

    @property
    def rung(self) -> str:
        """The rung that answers it."""
        return usual_rung(self.ranks).name

    def predict(self, rung: Rung) -> float:
        """Answer, in `unit`."""
        model, trace = self._model(), self._routing()
        plan = _contiguous(model, self.ranks).with_(dispatch=self.mode, dispatch_type=self.dispatch_type)
        step = Step(
            token_T=np.arange(self.ranks * self.tokens),
            source_T=np.repeat(np.arange(self.ranks, dtype=np.int32), self.tokens),
            context_T=np.ones(self.ranks * self.tokens, np.int64),
            phase="decode",
        )
        program = step_program(self._cluster(), model, plan, trace, step)
        stages = [s for s in program.tasks if isinstance(s, Exchange) and s.kind == self.exchange and s.fill().n]
        taken_s = rung.run(replace(program, tasks=tuple(stages))).step_time_s
        return 1e6 * taken_s if self.unit == "us" else 1e-9 * self._counted_bytes(trace) / taken_s

    def seconds_of(self, value: float) -> float:
        """Turn "us" or "GB/s" into seconds."""
        return value / 1e6 if self.unit == "us" else self._counted_bytes(self._routing()) / (1e9 * value)

    def _routing(self) -> RoutingTrace:
        grouped = self.mode == "per_domain" and self.nodes > 1
        return uniform_trace(
            tokens=self.ranks * self.tokens,
            experts=256,
            choices=8,
            groups=self.nodes if grouped else 1,
            groups_per_token=min(self.nodes, DEEPEP_NODES_PER_TOKEN) if grouped else 1,
        )

    def _model(self) -> ModelShape:
        return load_model("deepseek-v3").with_routing("uniform", layers=1, experts=256, choices=8)

    def _cluster(self) -> Cluster:
        if not self.only_nics:
            return load_cluster(self.cluster, nodes=self.nodes)
        preset = find_preset(self.cluster)
        lone = replace(preset, domain=replace(preset.domain, gpus_per_host=1, nics_per_host=1))
        return build_cluster(lone.recipe(n_domains=self.ranks))

    def _counted_bytes(self, trace: RoutingTrace) -> float:
        parts = 256 if self.mode == "per_choice" else self.nodes if self.nodes > 1 else self.ranks
        place_TK = np.sort(trace.experts_TLK[:, 0].astype(np.int64) * parts // 256, axis=1)
        pairs = len(place_TK) + int((np.diff(place_TK, axis=1) > 0).sum())
        fp8 = self.exchange == "dispatch" and self.dispatch_type == "fp8"
        return pairs / self.ranks * self._model().hidden * (1 + 4 / 128 if fp8 else 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll:
    """An even all-to-all over GPUs of one preset, ranks meeting first: `bytes_per_rank` in all, own share included.

    Parameters
    ----------
    cluster, nodes
        A preset and how many of it; its first `ranks` GPUs take part.
    unit
        "us", or "GB/s" of bus bandwidth: bytes · (n-1) / n over time.
    """

    cluster: str
    ranks: int
    bytes_per_rank: float
    nodes: int | None = None
    unit: Literal["us", "GB/s"] = "us"
    rung: str = "fluid"

    def predict(self, rung: Rung) -> float:
        """Answer, in `unit`."""
        cluster = load_cluster(self.cluster, nodes=self.nodes)
        taken_s = rung.run(_all_to_all(cluster, self.ranks, self.bytes_per_rank / self.ranks)).step_time_s
        return 1e6 * taken_s if self.unit == "us" else 1e-9 * self._moved_bytes() / taken_s

    def seconds_of(self, value: float) -> float:
        """Turn "us" or "GB/s" into seconds."""
        return value / 1e6 if self.unit == "us" else self._moved_bytes() / (1e9 * value)

    def _moved_bytes(self) -> float:
        return self.bytes_per_rank * (self.ranks - 1) / self.ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCollective:
    """A collective over GPUs of one preset, ranks meeting first.

    Parameters
    ----------
    operation, kind
        As of `moecast.sim.time_collective`.
    size_bytes
        As nccl-tests count it.
    unit
        "us", or "GB/s" of bus bandwidth.
    """

    cluster: str
    operation: str
    kind: str = "nccl"
    ranks: int
    size_bytes: int
    unit: Literal["us", "GB/s"] = "us"
    rung: str = "fluid"

    def predict(self, rung: Rung) -> float:
        """Answer, in `unit`."""
        taken = self.timed(rung)
        return 1e6 * taken.time_s if self.unit == "us" else 1e-9 * taken.bus_Bps

    def timed(self, rung: Rung) -> CollectiveTime:
        """Give all that is predicted."""
        cluster = load_cluster(self.cluster)
        size = [self.size_bytes]
        return time_collective(cluster, self.operation, size, kind=self.kind, ranks=self.ranks, rung=rung)[0]

    def seconds_of(self, value: float) -> float:
        """Turn "us" or "GB/s" into seconds."""
        moved = self.size_bytes * bus_factor(self.operation, self.ranks)
        return value / 1e6 if self.unit == "us" else moved / (1e9 * value)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeStep:
    """A step of DeepSeek-V3 with DP attention, in tokens/s per node of eight GPUs.

    Parameters
    ----------
    routing
        "uniform": all experts alike, in the 4 of 8 groups that the model's router allows a token;
        "even": dealt so that every expert of a layer serves the same number of tokens; "skewed": as
        unlike as the shipped trace's.
    engine, schedule
        Whose kernels run, and how the tasks of a step are laid.
    tokens
        Prefill: tokens of each rank. Decode: sequences of each rank.
    prompt, context
        Prefill: length of each prompt. Decode: keys that every token attends to.
    slots_per_rank
        None: as few as hold all experts.
    """

    cluster: str
    nodes: int
    phase: Literal["prefill", "decode"]
    tokens: int
    prompt: int = 0
    context: int = 0
    slots_per_rank: int | None = None
    routing: Literal["uniform", "even", "skewed"] = "uniform"
    engine: str = "neutral"
    schedule: str = "sequential"
    rung: str = "bound"

    def predict(self, rung: Rung) -> float:
        """Answer, in tokens/s per node."""
        cluster = kernels_on(load_cluster(self.cluster, nodes=self.nodes), engine=self.engine)
        model, ranks = load_model("deepseek-v3"), cluster.n_gpus
        tokens = ranks * self.tokens
        trace = self._routing(min(tokens, MOST_ROWS), model)
        in_prompt_T = np.arange(tokens) % self.prompt + 1 if self.prompt else np.full(tokens, self.context)
        step = Step(
            token_T=np.arange(tokens) % trace.n_tokens,
            source_T=np.repeat(np.arange(ranks, dtype=np.int32), self.tokens),
            context_T=in_prompt_T.astype(np.int64),
            phase=self.phase,
            last_T=in_prompt_T == self.prompt if self.prompt else None,
        )
        plan = _contiguous(model, ranks, self.slots_per_rank).with_(schedule=self.schedule)
        taken_s = rung.run(step_program(cluster, model, plan, trace, step)).step_time_s
        return tokens / taken_s / self.nodes

    def _routing(self, rows: int, model: ModelShape) -> RoutingTrace:
        sizes = {"experts": model.experts, "choices": model.choices, "layers": model.layers}
        if self.routing == "even":
            return even_trace(tokens=rows, groups=8, groups_per_token=4, **sizes)
        if self.routing == "skewed":
            return skewed_trace(**sizes)
        return uniform_trace(tokens=rows, groups=8, groups_per_token=4, best=2, **sizes)

    def seconds_of(self, value: float) -> float:
        """Turn tokens/s per node into seconds of a step."""
        return load_cluster(self.cluster, nodes=self.nodes).n_gpus * self.tokens / (value * self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTokensStep:
    """A prefill of one prompt of Mixtral-8x22B, attention and experts cut by width over the same eight ranks, in ms.

    Parameters
    ----------
    sums
        Whether partial sums are all-reduced: without them a step is as fast as if nothing had to be
        sent.
    """

    cluster: str
    tokens: int
    schedule: str
    sums: bool = True
    rung: str = "bound"

    def predict(self, rung: Rung) -> float:
        """Answer, in ms."""
        cluster, model, ranks = load_cluster(self.cluster), load_model("mixtral-8x22b"), 8
        trace = uniform_trace(
            tokens=self.tokens,
            experts=model.experts,
            choices=model.choices,
            layers=model.layers,
            groups=1,
            groups_per_token=1,
        )
        position_T = np.arange(self.tokens, dtype=np.int64) + 1
        step = Step(
            token_T=position_T - 1,
            source_T=np.zeros(self.tokens, np.int32),
            context_T=position_T,
            phase="prefill",
            last_T=position_T == self.tokens,
        )
        plan = _contiguous(model, 1).with_(
            tp=ranks, etp=ranks, sequence_parallel=False, schedule=self.schedule, gpu_of_rank=tuple(range(ranks))
        )
        program = step_program(cluster, model, plan, trace, step)
        if not self.sums:
            program = replace(program, tasks=tuple(task for task in program.tasks if not isinstance(task, Exchange)))
        return 1e3 * rung.run(program).step_time_s

    def seconds_of(self, value: float) -> float:
        """Turn ms into seconds."""
        return value / 1e3


def _contiguous(model: ModelShape, ranks: int, slots_per_rank: int | None = None) -> Plan:
    return Plan.contiguous(
        layers=model.layers,
        experts=model.experts,
        choices=model.choices,
        ep=ranks,
        slots_per_rank=slots_per_rank,
        layer_ids=model.moe_layer_ids,
    )
