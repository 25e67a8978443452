"""One forward pass, stage by stage: what schedules put in order.

What all steps of a workload share is a `PlacedModel`; a `ForwardPass` is one step of it.

Axes: T token, L MoE layer, G rank, P slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moecast.sim import compute
from moecast.sim.collectives.legs import Leg
from moecast.sim.collectives.template import no_flows
from moecast.sim.context.rules import check_step
from moecast.sim.context.shared import SharedContext, shared_context
from moecast.sim.engines import find_engine
from moecast.sim.forward_attention import AttentionStage
from moecast.sim.model import ModelShape
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, Exchange, StepProgram, Task
from moecast.sim.shared_tokens import SharedTokens
from moecast.sim.stage_tasks import OUTSIDE, compute_of, token_exchange
from moecast.sim.step import Step
from moecast.sim.step_tokens import StepTokens
from moecast.sim.traffic import StepTraffic, count_checked_traffic
from moecast.topology import Hardware
from moecast.traces import RoutingTrace

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


def _seen_G(placed: PlacedModel, traffic: StepTraffic) -> Int | None:
    """Choices that each rank's experts are shown, where those are more than they serve.

    With nothing dispatched a rank shows its kernels all tokens that it shares; after an all-gather
    all of its group.
    """
    layout, choices = placed.plan.layout, placed.plan.choices
    if placed.experts_are_summed:
        return layout.by_share(layout.sum_by_share(traffic.tokens_LG[:1].sum(axis=0, dtype=np.int64))) * choices
    if placed.mode.gathers and placed.plan.ep > 1:
        tokens_G, group_G = traffic.tokens_LG[0].astype(np.int64), placed.sites.group_G
        return np.bincount(group_G, tokens_G).astype(np.int64)[group_G] * choices
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForwardPass:
    """The stages of one step; each method gives the part of the pass it is named after.

    Layers are hidden layers for `attention` and `dense_layer`, and MoE layers (0 … L - 1) for the
    rest.
    """

    placed: PlacedModel
    trace: RoutingTrace = field(repr=False)
    step: Step
    home_T: Int32
    traffic: StepTraffic
    expert_seconds_LG: Float
    shared: SharedContext | None = field(default=None, repr=False)
    tokens: StepTokens = field(init=False, repr=False)
    shared_tokens: SharedTokens = field(init=False, repr=False)
    attention_stage: AttentionStage = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """What is where, and what is made of it."""
        tokens = StepTokens(placed=self.placed, step=self.step, starts_T=self.home_T, traffic=self.traffic)
        shared = SharedTokens(tokens=tokens)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "shared_tokens", shared)
        stage = AttentionStage(tokens=tokens, shared=shared, sequences=self.shared)
        object.__setattr__(self, "attention_stage", stage)

    @classmethod
    def of(cls, placed: PlacedModel, trace: RoutingTrace, step: Step) -> ForwardPass:
        """Count a step's traffic under this plan.

        Raises
        ------
        ValueError
            L, E or K of the trace and the plan differ, or the step names tokens that the trace does
            not have, or ranks that the plan does not.
        """
        if trace.meta.shape_LEK != (placed.plan.layers, placed.plan.experts, placed.plan.choices):
            sizes = (placed.plan.layers, placed.plan.experts, placed.plan.choices)
            raise ValueError(f"trace: has L, E, K = {trace.meta.shape_LEK}, the plan {sizes}")
        step.check_within(tokens=trace.n_tokens, ranks=placed.plan.dp)
        check_step(placed.plan, step.phase)
        shared = shared_context(placed.plan, step, placed.sites.domain_G)
        home_T = placed.plan.layout.homes_T(step.source_T) if shared is None else shared.home_T
        traffic = count_checked_traffic(
            placed.plan,
            placed.sites,
            trace.experts_TLK,
            step.token_T,
            home_T,
            stay=placed.mode.stay,
            table=placed.table,
        )
        expert_LG = compute.expert_seconds(
            placed.model,
            placed.sites.cluster.hardware,
            traffic.load_LGP,
            phase=placed.phase,
            etp=placed.plan.etp,
            seen_G=_seen_G(placed, traffic),
        )
        return cls(
            placed=placed,
            trace=trace,
            step=step,
            home_T=home_T,
            traffic=traffic,
            expert_seconds_LG=expert_LG,
            shared=shared,
        )

    @property
    def model(self) -> ModelShape:
        """The model's shape."""
        return self.placed.model

    def split(self, parts: int, *, fused: bool = False) -> list[ForwardPass]:
        """Cut it into passes over part of each rank's tokens, that run beside each other's communication.

        `fused`: beside sums that a kernel on few SMs normalises, too.
        """
        placed = self.placed.beside_sums() if fused else self.placed.beside_compute()
        return [ForwardPass.of(placed, self.trace, step) for step in self.step.split(parts)]

    def legs(self, exchange: Exchange) -> tuple[Leg, ...]:
        """Cut one of its exchanges into what goes between domains and what inside them."""
        return self.placed.legs.of(exchange)

    def embedding(self) -> Compute:
        """Look the tokens up."""
        return compute_of(
            "other", OUTSIDE, compute.embedding_seconds(self.model, self._hardware, self.tokens.kept_G(0))
        )

    def attention(self, layer: int, *, norms: bool = True) -> Iterator[Task]:
        """Attend, with the layer's two norms; the ranks that share tokens gather them first and add sums up after."""
        yield from self.attention_stage.tasks(layer, first=True, rest=True, norms=norms)

    def norm(self, layer: int) -> Compute:
        """One of the layer's two norms, over each rank's part of the tokens."""
        tokens_G = self.tokens.tokens_G(self.tokens.moe_layers_before(layer))
        if self.model.mixer_of(layer) is None:
            tokens_G = np.zeros_like(tokens_G)
        seconds_G = compute.norm_seconds(self.model, self._hardware, tokens_G) / 2
        return compute_of("attention", self.tokens.moe_index(layer), seconds_G)

    def attention_projections(self, layer: int) -> Iterator[Task]:
        """The part of attention before its core: into queries, keys and values; of linear attention nothing."""
        yield from self.attention_stage.tasks(layer, first=True, rest=False)

    def attention_core(self, layer: int) -> Iterator[Task]:
        """The rest of attention: its core, the projection back, and the norms."""
        yield from self.attention_stage.tasks(layer, first=False, rest=True)

    def dense_layer(self, layer: int) -> Iterator[Task]:
        """Run the MLP of a layer that is not MoE, where it has one; the ranks that share tokens split its width."""
        if layer in self.model.no_mlp_layers:
            return
        tokens_G, tp = self.tokens.attended_G(self.tokens.moe_layers_before(layer)), self.placed.plan.tp
        kept = self.model.mixer_of(layer) is not None or not self.tokens.after_experts(layer)
        yield from self.shared_tokens.gather(OUTSIDE, self.tokens.tokens_G(0), kept=kept)
        yield compute_of("other", OUTSIDE, compute.dense_layer_seconds(self.model, self._hardware, tokens_G, tp=tp))
        yield from self.shared_tokens.scatter(OUTSIDE)

    def router(self, moe: int) -> Compute:
        """Score the experts and choose."""
        return compute_of("router", moe, compute.router_seconds(self.model, self._hardware, self.tokens.kept_G(moe)))

    def shared_experts(self, moe: int) -> Iterator[Compute]:
        """Run the shared experts, where the model has some, over each rank's own tokens.

        Where the sums of experts are all-reduced, these are in them: cut by width, over all tokens.
        """
        if not self.model.shared_intermediate:
            return
        summed = self.placed.experts_are_summed
        tokens_G, tp = (self.tokens.attended_G(moe), self.placed.plan.tp) if summed else (self.tokens.tokens_G(moe), 1)
        yield compute_of("other", moe, compute.shared_expert_seconds(self.model, self._hardware, tokens_G, tp=tp))

    def dispatch(self, moe: int) -> Iterator[Exchange]:
        """Send copies to the experts.

        Normal kernels and NCCL exchange counts before. Nothing with one rank.

        Ranks that share experts by width send each other what came to them: all of them need all of
        it.
        """
        if self.placed.experts_are_summed:
            return
        if self.placed.plan.ep > 1:
            yield from self._dispatched(moe)
        if (flows := self.placed.spread_flows) is not None:
            yield self.shared_tokens.shared_rows(
                "dispatch", moe, flows, "etp", self.tokens.received_G(moe), from_all=False
            )

    def _dispatched(self, moe: int) -> Iterator[Exchange]:
        if self.placed.mode.counts_first:
            yield Exchange(
                kind="dispatch",
                layer=moe,
                flows=no_flows(),
                setup_s=self._hardware.count_exchange_s,
                barrier=True,
                group_R=self.placed.sites.group_G,
            )
        counts = self.placed.mode.dispatch_counts(self.traffic.layer(moe))
        yield token_exchange(self.placed, "dispatch", moe, counts, self.tokens.tokens_G(moe))

    def experts(self, moe: int) -> Compute:
        """Run the routed experts that each rank holds over the choices they serve."""
        return compute_of("expert", moe, self.expert_seconds_LG[moe])

    def combine(self, moe: int) -> Iterator[Exchange]:
        """Send the results to the tokens' homes, in mode ``stay`` to their next ones. Nothing with one rank.

        Ranks that share experts by width send each other their part of the sums first.
        """
        if self.placed.experts_are_summed:
            yield self.shared_tokens.sum_exchange("combine", moe)
            return
        if (flows := self.placed.gather_flows) is not None:
            yield self.shared_tokens.shared_rows(
                "combine", moe, flows, "etp", self.tokens.received_G(moe), from_all=True
            )
        if self.placed.plan.ep > 1:
            counts = self.placed.mode.combine_counts(self.traffic.layer(moe))
            yield token_exchange(self.placed, "combine", moe, counts, self.tokens.tokens_G(moe))

    def head(self) -> Iterator[Task]:
        """Run the LM head for the tokens whose logits are wanted.

        The ranks that share tokens split the vocabulary.

        None where MoE layers are asked for and no whole step: it would be a larger part of them
        than of the model. In mode ``stay``, decode shares its new context.
        """
        if self.model.is_whole:
            yield from self.logits()
        if self.placed.mode.stay and self.step.decodes_only:
            shared = [
                self.tokens.tokens_G(row)
                for row in map(self.tokens.moe_layers_before, range(self.model.n_layers))
                if row
            ]
            if shared:
                yield self.shared_tokens.share_context(np.sum(shared, axis=0), OUTSIDE)

    def logits(self) -> Iterator[Task]:
        """Run the LM head for the tokens whose logits are wanted; then what the engine's host adds to every step."""
        ranks, plan = self.placed.sites.n_ranks, self.placed.plan
        last = slice(None) if self.step.last_T is None else self.step.last_T
        tokens_G = np.bincount(self.tokens.home_T(self.traffic.layers)[last], minlength=ranks)
        yield from self.shared_tokens.gather(OUTSIDE, tokens_G, kept=not self.tokens.after_experts(self.model.n_layers))
        shared_G = plan.layout.by_share(plan.layout.sum_by_share(tokens_G))
        seconds_G = compute.head_seconds(self.model, self._hardware, shared_G, tp=plan.tp)
        yield compute_of("other", OUTSIDE, seconds_G + find_engine(self._hardware.engine).step_s)

    def tokens_at(self, layer: int) -> Int:
        """Tokens at home on each rank [G] before a hidden layer."""
        return self.tokens.tokens_G(self.tokens.moe_layers_before(layer))

    def attended_at(self, layer: int) -> Int:
        """Tokens that each rank [G] attends for at a hidden layer: those of all ranks that share tokens with it."""
        return self.tokens.attended_G(self.tokens.moe_layers_before(layer))

    def keys_at(self, layer: int) -> tuple[Float, Float]:
        """Keys that each rank's tokens read at a hidden layer, and those that an indexer scores for them [G]."""
        return self.tokens.keys_at(layer)

    def gather(self, layer: int) -> Iterator[Exchange]:
        """Bring the tokens of a hidden layer to the ranks that share them, where they are not there yet."""
        yield from self.shared_tokens.gather(
            self.tokens.moe_index(layer), self.tokens.tokens_G(0), kept=not self.tokens.after_experts(layer)
        )

    def scatter(self, layer: int) -> Iterator[Exchange]:
        """Add up the partial sums of a hidden layer, where they are wanted; nothing without tensor parallelism."""
        yield from self.shared_tokens.scatter(self.tokens.moe_index(layer))

    def dispatch_bytes(self) -> float:
        """Bytes that leave GPUs to dispatch, over all layers; a relayed copy leaves twice."""
        template, mode = self.placed.dispatch_flows, self.placed.mode
        if self.placed.experts_are_summed:
            return 0.0
        layers = range(self.traffic.layers)
        sent = sum(template.bytes_leaving(mode.dispatch_counts(self.traffic.layer(layer))) for layer in layers)
        if self.placed.spread_flows is None:
            return sent
        received = sum(int(self.tokens.received_G(layer).sum()) for layer in layers)
        return sent + received * (self.placed.plan.etp - 1) * self.placed.spread_flows.copy_bytes

    def program(self, tasks: Iterable[Task]) -> StepProgram:
        """Make a program of tasks, on the links of the plan's layout."""
        return StepProgram(
            tasks=tuple(tasks),
            n_ranks=self.placed.sites.n_ranks,
            capacity_J=self.placed.capacity_J,
            narrowest_J=self.placed.narrowest_J,
            link_names_J=self.placed.link_names_J,
        )

    @property
    def _hardware(self) -> Hardware:
        return self.placed.sites.cluster.hardware
