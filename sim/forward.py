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
from moecast.sim.attention_shape import AttentionShape, Mixer
from moecast.sim.collectives import FlowTemplate
from moecast.sim.collectives.choice import Choice, pick
from moecast.sim.collectives.groups import numbers_of_groups
from moecast.sim.collectives.legs import Leg
from moecast.sim.collectives.template import no_flows
from moecast.sim.context.attention import ContextAttention, around_core
from moecast.sim.context.rules import check_step
from moecast.sim.context.shared import SharedContext
from moecast.sim.engines import find_engine
from moecast.sim.model import ModelShape
from moecast.sim.placed_model import PlacedModel
from moecast.sim.program import Compute, Exchange, FlowSource, Kind, StepProgram, Task
from moecast.sim.step import Step
from moecast.sim.traffic import StepTraffic, count_checked_traffic
from moecast.topology import Hardware
from moecast.traces import RoutingTrace

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

OUTSIDE = -1
"""The layer of stages outside the MoE layers."""


def _seen_G(placed: PlacedModel, traffic: StepTraffic) -> Int | None:
    """Choices that each rank's experts are shown, where those are more than they serve.

    With nothing dispatched a rank shows its kernels all tokens that it shares; after an all-gather all of its group.
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

    Layers are hidden layers for `attention` and `dense_layer`, and MoE layers (0 … L - 1) for the rest.
    """

    placed: PlacedModel
    trace: RoutingTrace = field(repr=False)
    step: Step
    home_T: Int32
    traffic: StepTraffic
    expert_seconds_LG: Float
    shared: SharedContext | None = field(default=None, repr=False)
    _keys: dict[tuple[int, int | None, str], Int] = field(default_factory=dict, repr=False)
    _sum: list[Choice] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, placed: PlacedModel, trace: RoutingTrace, step: Step) -> ForwardPass:
        """Count a step's traffic under this plan.

        Raises
        ------
        ValueError
            L, E or K of the trace and the plan differ, or the step names tokens that the trace does not have, or ranks
            that the plan does not.
        """
        if trace.meta.shape_LEK != (placed.plan.layers, placed.plan.experts, placed.plan.choices):
            sizes = (placed.plan.layers, placed.plan.experts, placed.plan.choices)
            raise ValueError(f"trace: has L, E, K = {trace.meta.shape_LEK}, the plan {sizes}")
        step.check_within(tokens=trace.n_tokens, ranks=placed.plan.dp)
        check_step(placed.plan, step.phase)
        shared = None
        if placed.plan.cp > 1 and step.kernels == "prefill":
            shared = SharedContext.of(placed.plan, step, placed.sites.domain_G)
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
            placed.model, placed.sites.cluster.hardware, traffic.load_LGP, phase=placed.phase, etp=placed.plan.etp,
            seen_G=_seen_G(placed, traffic),
        )  # fmt: skip
        return cls(
            placed=placed, trace=trace, step=step, home_T=home_T, traffic=traffic, expert_seconds_LG=expert_LG,
            shared=shared,
        )  # fmt: skip

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
        return self._compute("other", OUTSIDE, compute.embedding_seconds(self.model, self._hardware, self._kept_G(0)))

    def attention(self, layer: int, *, norms: bool = True) -> Iterator[Task]:
        """Attend, with the layer's two norms; the ranks that share tokens gather them first and add sums up after."""
        yield from self._attend(layer, first=True, rest=True, norms=norms)

    def norm(self, layer: int) -> Compute:
        """One of the layer's two norms, over each rank's part of the tokens."""
        tokens_G = self._tokens_G(self._moe_layers_before(layer))
        if self.model.mixer_of(layer) is None:
            tokens_G = np.zeros_like(tokens_G)
        seconds_G = compute.norm_seconds(self.model, self._hardware, tokens_G) / 2
        return self._compute("attention", self._moe_index(layer), seconds_G)

    def attention_projections(self, layer: int) -> Iterator[Task]:
        """The part of attention before its core: into queries, keys and values; of linear attention nothing."""
        yield from self._attend(layer, first=True, rest=False)

    def attention_core(self, layer: int) -> Iterator[Task]:
        """The rest of attention: its core, the projection back, and the norms."""
        yield from self._attend(layer, first=False, rest=True)

    def _attend(self, layer: int, *, first: bool, rest: bool, norms: bool = True) -> Iterator[Task]:
        row, moe = self._moe_layers_before(layer), self._moe_index(layer)
        mixer = self.model.mixer_of(layer)
        if first and self.placed.mode.stay and row and self.step.kernels == "prefill":
            yield self._share_context(self._tokens_G(row), moe)
        if mixer is None:  # the layer is an MLP or experts only
            return
        if self.placed.plan.cp > 1 and isinstance(mixer, AttentionShape):
            yield from self._attend_shared(layer, mixer, first=first, rest=rest, norms=norms)
            return
        into_G = np.zeros(self.placed.sites.n_ranks)
        if isinstance(mixer, AttentionShape) and not (first and rest):
            into_G = compute.into_seconds(
                self.model,
                self._hardware,
                self._attended_G(row),
                shape=mixer,
                tp=self.placed.plan.tp,
                phase=self.step.kernels,
            )
        if first:
            yield from self._gather(moe, self._tokens_G(0), kept=not self._after_experts(layer))
        if first and not rest:
            yield self._compute("attention", moe, into_G)
        if rest:
            seconds_G = self._attention_seconds(layer, row, mixer) - into_G
            if norms:
                seconds_G = seconds_G + compute.norm_seconds(self.model, self._hardware, self._kept_G(row))
            yield self._compute("attention", moe, seconds_G)
            yield from self._scatter(moe)

    def _attend_shared(
        self, layer: int, mixer: AttentionShape, *, first: bool, rest: bool, norms: bool
    ) -> Iterator[Task]:
        """Attend where ranks share sequences: projections, the core with what is sent for it, and the rest."""
        moe, tokens_G = self._moe_index(layer), self.attended_at(layer)
        into_G, behind_G = around_core(self.placed, mixer, tokens_G)
        if first:
            yield from self.gather(layer)
            yield self._compute("attention", moe, into_G)
        if rest:
            keys_G, scored_G = self.keys_at(layer)
            yield from ContextAttention(
                placed=self.placed, step=self.step, shared=self.shared, shape=mixer, reads=mixer.reads_of(layer),
                moe=moe, tokens_G=tokens_G, keys_G=keys_G, scored_G=scored_G,
            ).tasks()  # fmt: skip
            if norms:
                kept_G = self._kept_G(self._moe_layers_before(layer))
                behind_G = behind_G + compute.norm_seconds(self.model, self._hardware, kept_G)
            yield self._compute("attention", moe, behind_G)
            yield from self.scatter(layer)

    def _attention_seconds(self, layer: int, row: int, mixer: Mixer) -> Float:
        """Seconds of attention on each rank.

        The parts of a step attend each by itself; their tokens go through the projections together.
        """
        parts = [self._part_seconds(layer, row, mixer, phase, of_T) for phase, of_T in self.step.parts]
        if len(parts) == 1 or not isinstance(mixer, AttentionShape):
            return np.asarray(np.sum(parts, axis=0), np.float64)
        model, hardware, tp = self.model, self._hardware, self.placed.plan.tp
        apart_G = [
            compute.projection_seconds(model, hardware, self._attended_G(row, of_T), shape=mixer, tp=tp, phase=phase)
            for phase, of_T in self.step.parts
        ]
        together_G = compute.projection_seconds(
            model, hardware, self._attended_G(row), shape=mixer, tp=tp, phase=self.step.kernels
        )
        return np.asarray(np.sum(parts, axis=0) - np.sum(apart_G, axis=0) + together_G, np.float64)

    def _part_seconds(self, layer: int, row: int, mixer: Mixer, phase: str, of_T: Bool | None) -> Float:
        """Seconds of attention of one part of the step."""
        reads = mixer.reads_of(layer) if isinstance(mixer, AttentionShape) else ((None, 1),)
        return compute.attention_seconds(
            self.model,
            self._hardware,
            phase=phase,
            tokens_G=self._attended_G(row, of_T),
            context_sum_G=self._keys_G(row, None, phase, of_T),
            window_sum_G=None
            if reads == ((None, 1),)
            else sum(self._keys_G(row, most, phase, of_T) / share for most, share in reads),
            mixer=mixer,
            tp=self.placed.plan.tp,
            queries=self.step.queries if phase == "decode" else 1.0,
        )

    def dense_layer(self, layer: int) -> Iterator[Task]:
        """Run the MLP of a layer that is not MoE, where it has one; the ranks that share tokens split its width."""
        if layer in self.model.no_mlp_layers:
            return
        tokens_G, tp = self._attended_G(self._moe_layers_before(layer)), self.placed.plan.tp
        kept = self.model.mixer_of(layer) is not None or not self._after_experts(layer)
        yield from self._gather(OUTSIDE, self._tokens_G(0), kept=kept)
        yield self._compute("other", OUTSIDE, compute.dense_layer_seconds(self.model, self._hardware, tokens_G, tp=tp))
        yield from self._scatter(OUTSIDE)

    def router(self, moe: int) -> Compute:
        """Score the experts and choose."""
        return self._compute("router", moe, compute.router_seconds(self.model, self._hardware, self._kept_G(moe)))

    def shared_experts(self, moe: int) -> Iterator[Compute]:
        """Run the shared experts, where the model has some, over each rank's own tokens.

        Where the sums of experts are all-reduced, these are in them: cut by width, over all tokens.
        """
        if not self.model.shared_intermediate:
            return
        summed = self.placed.experts_are_summed
        tokens_G, tp = (self._attended_G(moe), self.placed.plan.tp) if summed else (self._tokens_G(moe), 1)
        yield self._compute("other", moe, compute.shared_expert_seconds(self.model, self._hardware, tokens_G, tp=tp))

    def dispatch(self, moe: int) -> Iterator[Exchange]:
        """Send copies to the experts; normal kernels and NCCL exchange counts before. Nothing with one rank.

        Ranks that share experts by width send each other what came to them: all of them need all of it.
        """
        if self.placed.experts_are_summed:
            return
        if self.placed.plan.ep > 1:
            yield from self._dispatched(moe)
        if (flows := self.placed.spread_flows) is not None:
            yield self._shared_rows("dispatch", moe, flows, "etp", self._received_G(moe), from_all=False)

    def _dispatched(self, moe: int) -> Iterator[Exchange]:
        if self.placed.mode.counts_first:
            yield Exchange(
                kind="dispatch", layer=moe, flows=no_flows(), setup_s=self._hardware.count_exchange_s, barrier=True,
                group_R=self.placed.sites.group_G,
            )  # fmt: skip
        counts = self.placed.mode.dispatch_counts(self.traffic.layer(moe))
        yield self._exchange("dispatch", moe, self.placed.dispatch_flows.counted(counts), self.placed.mode.barrier)

    def experts(self, moe: int) -> Compute:
        """Run the routed experts that each rank holds over the choices they serve."""
        return self._compute("expert", moe, self.expert_seconds_LG[moe])

    def combine(self, moe: int) -> Iterator[Exchange]:
        """Send the results to the tokens' homes, in mode ``stay`` to their next ones. Nothing with one rank.

        Ranks that share experts by width send each other their part of the sums first.
        """
        if self.placed.experts_are_summed:
            yield self._sum_exchange("combine", moe)
            return
        if (flows := self.placed.gather_flows) is not None:
            yield self._shared_rows("combine", moe, flows, "etp", self._received_G(moe), from_all=True)
        if self.placed.plan.ep > 1:
            counts = self.placed.mode.combine_counts(self.traffic.layer(moe))
            yield self._exchange("combine", moe, self.placed.combine_flows.counted(counts), self.placed.mode.barrier)

    def head(self) -> Iterator[Task]:
        """Run the LM head for the tokens whose logits are wanted; the ranks that share tokens split the vocabulary.

        None where MoE layers are asked for and no whole step: it would be a larger part of them than of the model.
        In mode ``stay``, decode shares its new context.
        """
        if self.model.is_whole:
            yield from self.logits()
        if self.placed.mode.stay and self.step.kernels == "decode":
            shared = [self._tokens_G(row) for row in map(self._moe_layers_before, range(self.model.n_layers)) if row]
            if shared:
                yield self._share_context(np.sum(shared, axis=0), OUTSIDE)

    def logits(self) -> Iterator[Task]:
        """Run the LM head for the tokens whose logits are wanted; then what the engine's host adds to every step."""
        ranks, plan = self.placed.sites.n_ranks, self.placed.plan
        last = slice(None) if self.step.last_T is None else self.step.last_T
        tokens_G = np.bincount(self._home_T(self.traffic.layers)[last], minlength=ranks)
        yield from self._gather(OUTSIDE, tokens_G, kept=not self._after_experts(self.model.n_layers))
        shared_G = plan.layout.by_share(plan.layout.sum_by_share(tokens_G))
        seconds_G = compute.head_seconds(self.model, self._hardware, shared_G, tp=plan.tp)
        yield self._compute("other", OUTSIDE, seconds_G + find_engine(self._hardware.engine).step_s)

    def tokens_at(self, layer: int) -> Int:
        """Tokens at home on each rank [G] before a hidden layer."""
        return self._tokens_G(self._moe_layers_before(layer))

    def attended_at(self, layer: int) -> Int:
        """Tokens that each rank [G] attends for at a hidden layer: those of all ranks that share tokens with it."""
        return self._attended_G(self._moe_layers_before(layer))

    def keys_at(self, layer: int) -> tuple[Float, Float]:
        """Keys that each rank's tokens read at a hidden layer, and those that an indexer scores for them [G]."""
        row, mixer = self._moe_layers_before(layer), self.model.mixer_of(layer)
        every_G = np.asarray(self._keys_G(row, None), np.float64)
        if not isinstance(mixer, AttentionShape):
            return every_G, every_G
        parts = [self._keys_G(row, most) / share for most, share in mixer.reads_of(layer)]
        return np.asarray(np.sum(parts, axis=0), np.float64), every_G

    def gather(self, layer: int) -> Iterator[Exchange]:
        """Bring the tokens of a hidden layer to the ranks that share them, where they are not there yet."""
        yield from self._gather(self._moe_index(layer), self._tokens_G(0), kept=not self._after_experts(layer))

    def scatter(self, layer: int) -> Iterator[Exchange]:
        """Add up the partial sums of a hidden layer, where they are wanted; nothing without tensor parallelism."""
        yield from self._scatter(self._moe_index(layer))

    def dispatch_bytes(self) -> float:
        """Bytes that leave GPUs to dispatch, over all layers; a relayed copy leaves twice."""
        template, mode = self.placed.dispatch_flows, self.placed.mode
        if self.placed.experts_are_summed:
            return 0.0
        layers = range(self.traffic.layers)
        sent = sum(template.bytes_leaving(mode.dispatch_counts(self.traffic.layer(layer))) for layer in layers)
        if self.placed.spread_flows is None:
            return sent
        received = sum(int(self._received_G(layer).sum()) for layer in layers)
        return sent + received * (self.placed.plan.etp - 1) * self.placed.spread_flows.copy_bytes

    def _received_G(self, moe: int) -> Int:
        """Copies that each rank has of the tokens whose choices it serves, its own tokens' included."""
        per_choice, traffic, sites = self.placed.mode.per_choice, self.traffic, self.placed.sites
        copies_SM = (traffic.choices_LSM if per_choice else traffic.copies_LSM)[moe]
        return np.bincount(sites.peer_SM.ravel(), copies_SM.ravel(), sites.n_ranks).astype(np.int64)

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

    def _compute(self, kind: Kind, layer: int, seconds_G: Float) -> Compute:
        return Compute(kind=kind, layer=layer, seconds_R=np.ascontiguousarray(seconds_G, np.float64))

    def _exchange(self, kind: Kind, layer: int, flows: FlowSource, barrier: bool = False) -> Exchange:
        setup_s = self._hardware.collective_launch_s + (self._nccl_start_s if barrier else 0.0)
        return Exchange(
            kind=kind, layer=layer, flows=flows, setup_s=setup_s, barrier=barrier, group_R=self.placed.sites.group_G
        )

    @property
    def _nccl_start_s(self) -> float:
        """A barrier, and what NCCL's proxies add where an EP group is larger than a domain."""
        far_s = self._hardware.network_launch_s if self.placed.sites.groups_leave_domains else 0.0
        return self._hardware.barrier_s + far_s

    def _moe_layers_before(self, layer: int) -> int:
        return int(np.searchsorted(self.model.moe_layer_ids, layer))

    def _moe_index(self, layer: int) -> int:
        index = self._moe_layers_before(layer)
        return index if layer in self.model.moe_layer_ids else OUTSIDE

    def _home_T(self, row: int) -> Int32:
        """Where each token is at home after `row` MoE layers."""
        return self.home_T if self.traffic.home_LT is None else self.traffic.home_LT[row]

    def _tokens_G(self, row: int) -> Int:
        """Tokens at home on each rank after `row` MoE layers."""
        if row < self.traffic.layers:
            return np.asarray(self.traffic.tokens_LG[row], np.int64)
        return np.bincount(self._home_T(row), minlength=self.placed.sites.n_ranks).astype(np.int64)

    def _attended_G(self, row: int, of_T: Bool | None = None) -> Int:
        """Tokens that each rank attends for, of one part of the step where asked: all that its `tp` peers share."""
        layout = self.placed.plan.layout
        if of_T is not None:
            tokens_C = np.bincount(self._share_T(row)[of_T], minlength=layout.shares).astype(np.int64)
            return layout.by_share(tokens_C)
        return self._tokens_G(row) if layout.tp == 1 else layout.by_share(layout.sum_by_share(self._tokens_G(0)))

    def _share_T(self, row: int) -> Int32:
        """Which share of the tokens each is of, those of a share being attended for by the same ranks."""
        layout = self.placed.plan.layout
        return self._home_T(row) if layout.tp == 1 else layout.share_G[self.home_T]

    def _keys_G(self, row: int, window: int | None, part: str = "", of_T: Bool | None = None) -> Int:
        """Keys attended to on each rank, by one part of the step where asked; kept, since most layers ask the same."""
        if self.traffic.home_LT is None:
            row = 0
        key = (row, window, "" if of_T is None else part)
        if key not in self._keys:
            layout = self.placed.plan.layout
            chosen = slice(None) if of_T is None else of_T
            context_T = self.step.context_T[chosen]
            keys_T = context_T if window is None else np.minimum(context_T, window)
            keys_C = np.bincount(self._share_T(row)[chosen], keys_T, layout.shares).astype(np.int64)
            self._keys[key] = layout.by_share(keys_C)
        return self._keys[key]

    def _after_experts(self, layer: int) -> bool:
        """Whether a hidden layer's input comes from experts, each token's at its home only."""
        return layer - 1 in self.model.moe_layer_ids and not self.placed.experts_are_summed

    def _kept_G(self, row: int) -> Int:
        """Tokens whose hidden vectors each rank keeps: with sequence parallelism, its own only."""
        return self._attended_G(row) if self.placed.sum_choices else self._tokens_G(row)

    def _gather(self, moe: int, tokens_G: Int, *, kept: bool) -> Iterator[Exchange]:
        """Bring the hidden vectors of each rank's tokens to those that share them; nothing without `tp`.

        Nor where those kept them (`kept`), as they do without sequence parallelism after all but experts.
        """
        if self.placed.hidden_flows is not None and not (kept and self.placed.sum_choices):
            yield self._hidden_exchange(moe, tokens_G, from_all=False)

    def _scatter(self, moe: int) -> Iterator[Exchange]:
        """Add up partial sums, each token's at its home, or without sequence parallelism at all that share it."""
        if self.placed.sum_choices:
            yield self._sum_exchange("other", moe)
        elif self.placed.hidden_flows is not None:
            yield self._hidden_exchange(moe, self._tokens_G(0), from_all=True)

    def _sum_exchange(self, kind: Kind, moe: int) -> Exchange:
        """All-reduce the hidden vectors of all tokens of each group of ranks that share them."""
        placed = self.placed
        peers_DM, sites = placed.plan.layout.peers("tp"), placed.sites
        rows_D = self._tokens_G(0)[peers_DM].sum(axis=1)
        if not self._sum:
            choices = placed.sum_choices
            self._sum.append(pick(list(choices), sites, rows_D * choices[0].template.copy_bytes))
        [choice] = self._sum
        return Exchange(
            kind=kind, layer=moe, flows=choice.template.counted(rows_D), setup_s=choice.setup_s(sites), barrier=True,
            group_R=numbers_of_groups(sites, peers_DM),
        )  # fmt: skip

    def _hidden_exchange(self, moe: int, tokens_G: Int, *, from_all: bool) -> Exchange:
        """Send each rank's tokens to all that share them, or (`from_all`) to it what those have of them."""
        assert self.placed.hidden_flows is not None
        return self._shared_rows("other", moe, self.placed.hidden_flows, "tp", tokens_G, from_all=from_all)

    def _shared_rows(
        self, kind: Kind, moe: int, template: FlowTemplate, axis: str, rows_G: Int, *, from_all: bool
    ) -> Exchange:
        """Send each rank's rows to all that share them along an axis, or (`from_all`) to it what those have of them."""
        peers_GP = self.placed.plan.layout.peers_of_ranks(axis)
        counts_GP = rows_G[peers_GP] if from_all else np.broadcast_to(rows_G[:, None], peers_GP.shape)
        return self._exchange(kind, moe, template.counted(counts_GP.ravel()))

    def _share_context(self, tokens_G: Int, moe: int) -> Exchange:
        """Bring the keys and values of each rank's tokens to every rank of its EP group (ExFlow's all-gather)."""
        template, layout = self.placed.context_flows, self.placed.sites
        assert template is not None
        counts = np.concatenate([tokens_G.repeat(layout.n_members), tokens_G.repeat(layout.n_places)])
        return self._exchange("other", moe, template.counted(counts))
