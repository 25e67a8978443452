"""One microbatch's work in one pipeline stage, as tasks: forward, input gradients and weight gradients of each layer.

A layer's backward pass goes through its modules the other way round. The gradient of a combine
sends each token's output gradient to its experts, as dispatch sent the token; the gradient of a
dispatch brings input gradients home, as combine brought results. Counts are known by then. In an
FP8 recipe the one travels in FP8 and the other in bf16, as forward (DeepSeek-V3, arXiv 2412.19437,
3.3.2). Gathering and scattering around attention are each other's gradients.

Axes: G rank of the stage, L MoE layer, P slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.context.rules import check_context
from moecast.sim.forward import ForwardPass
from moecast.sim.overlap import with_fewer_sms
from moecast.sim.program import Compute, Exchange, Kind, Task
from moecast.sim.schedules.fsmoe_training import Chunk, co_scheduled, legs_on_streams
from moecast.sim.stage_tasks import OUTSIDE
from moecast.sim.training.host import NO_WAIT, HostWait, after_host
from moecast.sim.training.layer_passes import LayerPasses
from moecast.sim.training.passes import Passes
from moecast.sim.training.precision import BF16, Precision
from moecast.sim.training.recompute import NONE, Recompute

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingPass:
    """A microbatch in a pipeline stage; layers are the stage's hidden layers, counted from 0.

    Parameters
    ----------
    step
        The microbatch's forward pass under the stage's plan: its traffic, and what travels.
    chunks
        The same work over parts of each rank's tokens, which go through the experts of MoE layers
        as FSMoE's chunks do (`moecast.sim.schedules.fsmoe_training`); none: all tokens at once.
    precision, recompute
        Of the recipe.
    host
        What its ranks' hosts take to launch a direction of an MoE layer, and what is waited for
        before it sends (`moecast.sim.training.host`). None with one rank in an EP group.
    slower
        Times that its kernels take of what they are priced at.

    Raises
    ------
    MoecastError
        Tokens that stay with their experts: nobody trains so.
    """

    step: ForwardPass
    precision: Precision = BF16
    recompute: Recompute = NONE
    host: HostWait = NO_WAIT
    slower: float = 1.0
    chunks: tuple[TrainingPass, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is not trained."""
        if self.step.placed.mode.stay:
            rule = "cannot be trained: tokens must return home"
            raise MoecastError(rule, field="dispatch", value="stay")
        check_context(self.step.placed.plan, self.model, "train")

    def beside(self) -> TrainingPass:
        """The same work beside the communication of another microbatch, with fewer SMs and slower links."""
        return replace(self, step=replace(self.step, placed=self.step.placed.beside_compute()))

    def with_fewer_sms(self) -> TrainingPass:
        """The same work beside collectives of gradients or parameters: fewer SMs, and its own links as fast."""
        placed = self.step.placed
        sites = placed.sites.on(with_fewer_sms(self._hardware))
        return replace(self, step=replace(self.step, placed=replace(placed, sites=sites)))

    @property
    def model(self) -> ModelShape:
        """The stage's part of the model."""
        return self.step.model

    def embedding(self) -> Iterator[Compute]:
        """Look the tokens up: forward."""
        yield self._compute("other", OUTSIDE, self._passes.embedding().forward_G)

    def embedding_gradient(self) -> Iterator[Compute]:
        """Add the gradients of the rows that were looked up."""
        yield self._compute("other", OUTSIDE, self._passes.embedding().weight_G)

    def head(self) -> Iterator[Task]:
        """LM head and loss over all tokens: forward."""
        yield from self.step.gather(self._last)
        yield self._compute("other", OUTSIDE, self._passes.head().forward_G)

    def head_gradient(self, *, weights: bool) -> Iterator[Task]:
        """Input gradient of LM head and loss, with that of its weights in one where they are not split."""
        passes = self._passes.head()
        yield self._compute("other", OUTSIDE, passes.backward_G if weights else passes.input_G)
        yield from self.step.scatter(self._last)

    def head_weights(self) -> Iterator[Compute]:
        """Weight gradient of the LM head."""
        yield self._compute("other", OUTSIDE, self._passes.head().weight_G)

    def forward(self, layer: int) -> Iterator[Task]:
        """One layer's forward pass."""
        yield from self._mix(layer, "forward")
        yield from self._mlp_or_experts(layer)

    def backward(self, layer: int, *, weights: bool) -> Iterator[Task]:
        """One layer's input gradients, what is computed again before them, and with `weights` its weight gradients."""
        if self.recompute.full:
            yield from self.forward(layer)
        elif self.recompute.repeats_exchange:
            yield from self._mlp_or_experts(layer)
        which = "backward" if weights else "input"
        moe = self._moe(layer)
        if moe is None:
            yield from self._dense(layer, which)
        else:
            yield from self._through_experts(layer, which)
            yield from self._beside_experts(layer, moe, which)
        yield from self._mix(layer, which)

    def weights(self, layer: int) -> Iterator[Compute]:
        """One layer's weight gradients, which no other layer waits for."""
        moe = self._moe(layer)
        if moe is None:
            yield from (task for task in self._dense(layer, "weight") if isinstance(task, Compute))
        else:
            yield self._compute("expert", moe, self._passes.experts(moe).weight_G)
            yield from self._beside_experts(layer, moe, "weight")
        yield from (task for task in self._mix(layer, "weight") if isinstance(task, Compute))

    def _mlp_or_experts(self, layer: int) -> Iterator[Task]:
        moe = self._moe(layer)
        if moe is None:
            yield from self._dense(layer, "forward")
            return
        router, *shared = self._beside_experts(layer, moe, "forward")
        yield router
        yield from self._through_experts(layer, "forward", shared)

    def _through_experts(self, layer: int, which: str, shared: Iterable[Compute] = ()) -> Iterator[Task]:
        """Go to the experts and back, or the gradients do; `shared`: what is computed beside or before."""
        if self.chunks:
            yield from co_scheduled([part.chunk(layer, which) for part in self.chunks], shared)
            return
        yield from shared
        yield from self._to_experts(layer, which)
        yield self._at_experts(layer, which)
        yield from self._from_experts(layer, which)

    def chunk(self, layer: int, which: str) -> Chunk:
        """Its way through the experts as one of several chunks', leg by leg."""
        there, back = list(self._to_experts(layer, which)), list(self._from_experts(layer, which))
        of_there, of_back = ((self.step.legs(task) for task in tasks) for tasks in (there, back))
        return Chunk(
            there=tuple(legs_on_streams(there, of_there)),
            experts=self._at_experts(layer, which),
            back=tuple(legs_on_streams(back, of_back)),
        )

    def _to_experts(self, layer: int, which: str) -> Iterator[Exchange]:
        moe = self.model.moe_layer_ids.index(layer)
        sent = self.step.dispatch(moe) if which == "forward" else self._travel("combine", moe)
        yield from after_host(sent, self.host, self.step)

    def _at_experts(self, layer: int, which: str) -> Compute:
        moe = self.model.moe_layer_ids.index(layer)
        return self._compute(
            "expert", moe, self._of(which, self._passes.experts(moe)) + self._again(layer, "moe_act", which)
        )

    def _from_experts(self, layer: int, which: str) -> Iterator[Exchange]:
        moe = self.model.moe_layer_ids.index(layer)
        yield from self.step.combine(moe) if which == "forward" else self._travel("dispatch", moe)

    def _travel(self, gradient_of: Kind, moe: int) -> Iterator[Exchange]:
        """The gradient of a combine travels as a dispatch does, that of a dispatch as a combine; counts are known."""
        if gradient_of == "combine":
            counted = self.step.placed.mode.counts_first and self.step.placed.plan.ep > 1
            sent = list(self.step.dispatch(moe))[int(counted) :]
        else:
            sent = list(self.step.combine(moe))
        yield from (replace(exchange, kind=gradient_of) for exchange in sent)

    def _beside_experts(self, layer: int, moe: int, which: str) -> Iterator[Compute]:
        yield self._compute("router", moe, self._of(which, self._passes.router(layer)))
        if self.model.shared_intermediate:
            shared = self._passes.shared_experts(layer)
            yield self._compute("other", moe, self._of(which, shared) + self._again(layer, "shared_experts", which))

    def _mix(self, layer: int, which: str) -> Iterator[Task]:
        """Attention with the layer's norms, between the exchanges of the ranks that share tokens."""
        if self.model.mixer_of(layer) is None:
            return
        moe = self._moe(layer)
        seconds_G = self._of(which, self._passes.attention(layer))
        for module in ("core_attn", "layernorm", "mla_up_proj"):
            seconds_G = seconds_G + self._again(layer, module, which)
        yield from self.step.gather(layer)
        around = self._compute("attention", OUTSIDE if moe is None else moe, seconds_G)
        yield from self._with_shared(layer, around, which)
        yield from self.step.scatter(layer)

    def _with_shared(self, layer: int, around: Compute, which: str) -> Iterator[Task]:
        """What a layer's attention computes on each rank, with what ranks that share sequences send for it.

        `around`: all of it but the core where that goes round a ring.
        """
        core = self._passes.shared_core(layer)
        if core is None or which == "weight":
            yield around
        elif core.gathers:
            yield core.gather()
            yield around
            if which != "forward":
                yield core.scatter_sums()
        else:
            yield around
            if which == "forward" or self.recompute.runs_again("core_attn"):
                yield from core.forward()
            if which != "forward":
                yield from core.backward()

    def _dense(self, layer: int, which: str) -> Iterator[Task]:
        if layer in self.model.no_mlp_layers:
            return
        again_G = self._again(layer, "mlp", which) + self._again(layer, "mlp_act", which)
        yield from self.step.gather(layer)
        yield self._compute("other", OUTSIDE, self._of(which, self._passes.dense(layer)) + again_G)
        yield from self.step.scatter(layer)

    def _again(self, layer: int, module: str, which: str = "input") -> Float:
        """Forward seconds of a module that runs again before its gradients, unless it does within another."""
        if which in ("forward", "weight") or not self.recompute.runs_again(module):
            return np.zeros(self.step.placed.sites.n_ranks)
        return self._passes.forward_s(layer, module)

    @property
    def _last(self) -> int:
        return self.model.n_layers - 1

    @property
    def _passes(self) -> LayerPasses:
        return LayerPasses(step=self.step, precision=self.precision)

    @property
    def _hardware(self) -> Hardware:
        return self.step.placed.sites.cluster.hardware

    def _moe(self, layer: int) -> int | None:
        """The layer's place among the stage's MoE layers; None where it is none."""
        ids = self.model.moe_layer_ids
        return ids.index(layer) if layer in ids else None

    @staticmethod
    def _of(which: str, passes: Passes) -> Float:
        seconds_G: Float = getattr(passes, f"{which}_G")
        return seconds_G

    def _compute(self, kind: Kind, moe: int, seconds_G: Float) -> Compute:
        seconds_R = np.ascontiguousarray(self.slower * seconds_G, np.float64)
        return Compute(kind=kind, layer=moe, seconds_R=seconds_R)
