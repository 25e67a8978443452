"""Lower bounds on what the passes of one layer take the mean rank of a pipeline stage, for any placement of experts.

Every rank does a cell's tasks one after another. It leaves a computation no sooner than it entered it and the
computation's time; and an exchange no sooner than it entered it and the exchange's setup. So the *mean* over a stage's
ranks of when they leave a cell is at least the mean of when they enter it and the mean of all this. What a module
computes is a function of a rank's tokens that never falls, and each rank has at least its share of them rounded down.
Experts' time is at least a convex function of the rows that a rank serves, and of the experts of it that are hit; the
mean over ranks of a convex function is at least its value at the mean of rows and hits, which no placement changes:
all choices of the stage's tokens over its ranks (Jensen).

Ranks that cut a layer by heads gather and scatter hidden vectors, each sending the same to each other one. For such an
exchange the mean says more. Rank s leaves no sooner than any r that sends to it began and r's bytes alone on the
fastest way into s; and of what begins at different times and crosses one port with w seconds of work, the last is there
no sooner than the mean of the beginnings and w / 2 (for every q, what begins after the q-th part of it begins no sooner
than its quantile, and then takes (1 - q) w: the mean over q of both). As each sends to and hears from equally many, the
mean of beginnings is that of entries. What copies of tokens take to travel to experts is left out, as it is the
placement's.

Axes: H hidden layer, L MoE layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.placement.layouts.training.expert_floor import expert_floor
from moecast.placement.layouts.training.fitting import kinds_of_layers
from moecast.placement.layouts.training.ports import Ports
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.collectives import mode_of
from moecast.sim.cost import roofline
from moecast.sim.schedules.pipeline.sends import HIDDEN_BYTES
from moecast.sim.training import RECOMPUTES, modules
from moecast.sim.training.passes import Passes, nothing

if TYPE_CHECKING:
    from moecast.placement.layouts.training.layout import TrainingLayout
    from moecast.placement.layouts.training.question import TrainingQuestion
    from moecast.sim.attention_shape import Mixer

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerSeconds:
    """Seconds of a microbatch's passes, by layer: lower bounds here, or times of a rung (`layer_times`).

    Parameters
    ----------
    computed_3H, chained_3H
        Forward, input gradients, weight gradients: what a rank computes; all that follows one upon the other.
    computed_3E, chained_3E
        The same of the embedding and of the LM head.
    travels_2H
        Of dispatch and combine, forward and on the way back, where these run beside other work; 0 in a bound.
    """

    computed_3H: Float
    chained_3H: Float
    computed_3E: Float
    chained_3E: Float
    travels_2H: Float


class LayerFloors:
    """Lower bounds for the layouts of one question, each cut of a layer priced once."""

    def __init__(self, question: TrainingQuestion) -> None:
        self.question = question
        self._choices_L = question.choices_L()
        self._kind_H = kinds_of_layers(question.model)
        self._known: dict[tuple[object, ...], LayerSeconds] = {}
        self.ports = Ports.of(question.cluster)

    def of(self, layout: TrainingLayout) -> LayerSeconds:
        """Those of a layout's layers."""
        cut = layout.tp, layout.cp, layout.ep, layout.etp
        key = (*cut, layout.microbatch, layout.recompute, layout.dispatch)
        if key not in self._known:
            self._known[key] = self._layers(layout)
        return self._known[key]

    def _layers(self, layout: TrainingLayout) -> LayerSeconds:
        model, floors = self.question.model, _OfLayout(self, layout)
        known: dict[tuple[object, ...], tuple[list[float], list[float]]] = {}
        computed_H3, chained_H3 = [], []
        for layer in range(model.n_layers):
            moe = model.moe_layer_ids.index(layer) if layer in model.moe_layer_ids else None
            choices = None if moe is None else int(self._choices_L[moe])
            key = (self._kind_H[layer], choices)
            if key not in known:
                known[key] = floors.layer(layer, choices)
            computed_H3.append(known[key][0])
            chained_H3.append(known[key][1])
        first, last = floors.embedding(), floors.head()
        return LayerSeconds(
            computed_3H=np.array(computed_H3).T,
            chained_3H=np.array(chained_H3).T,
            computed_3E=np.array([first[0], last[0]]).T,
            chained_3E=np.array([first[1], last[1]]).T,
            travels_2H=np.zeros((2, model.n_layers)),
        )


class _OfLayout:
    """One cut of a layer."""

    def __init__(self, floors: LayerFloors, layout: TrainingLayout) -> None:
        question = floors.question
        self.question, self.layout, self.model = question, layout, question.model
        self.hardware, self.precision = question.cluster.hardware, question.recipe.precision
        self.recompute = RECOMPUTES[layout.recompute]
        sequence = question.recipe.sequence
        self.shared, self.attended = layout.microbatch * sequence, layout.attended_tokens(sequence)
        self.own = layout.own_tokens(sequence)
        self.launch_s = self.hardware.collective_launch_s
        sent_s = self.own * HIDDEN_BYTES * self.model.hidden / floors.ports.both_Bps
        peers = layout.tp - 1
        self.around_s = 2 * (self.launch_s + sent_s * max(1.0, peers / 2)) if peers else 0.0

    def layer(self, layer: int, choices: int | None) -> tuple[list[float], list[float]]:
        """Computed and chained seconds of the three passes of one layer; `choices` None: no MoE layer."""
        mixer = self.model.mixer_of(layer)
        parts = [] if mixer is None else [self._norms(), self._mixer(layer, mixer)]
        around_s = 0.0 if mixer is None else self.around_s
        sends = [0.0, 0.0]
        if choices is not None:
            parts += [self._router(), self._shared(), self._experts(choices)]
            sends = self._exchanges()
        elif layer not in self.model.no_mlp_layers:
            parts.append(self._dense())
            around_s += self.around_s
        total = sum(parts[1:], parts[0]) if parts else nothing(0.0)
        forward, inputs, weights = (float(getattr(total, name)) for name in ("forward_G", "input_G", "weight_G"))
        forth, back = around_s + sends[0], around_s + sends[1]
        inputs += self._again(layer, mixer)
        if self.recompute.full:
            inputs, back = inputs + forward, back + forth
        return [forward, inputs, weights], [forward + forth, inputs + back, weights]

    def embedding(self) -> tuple[list[float], list[float]]:
        """The embedding's; its gradient stands with those of weights."""
        passes = modules.embedding_passes(self.model, self.hardware, self.own, precision=self.precision)
        return _three(passes), _three(passes)

    def head(self) -> tuple[list[float], list[float]]:
        """The LM head's and loss's."""
        computed = _three(modules.head_passes(self.model, self.hardware, self.attended, tp=self.layout.tp))
        around_s = self.around_s / 2
        return computed, [computed[0] + around_s, computed[1] + around_s, computed[2]]

    def _norms(self) -> Passes:
        return modules.norm_passes(self.model, self.hardware, self.own)

    def _router(self) -> Passes:
        return modules.router_passes(self.model, self.hardware, self.own, precision=self.precision)

    def _shared(self) -> Passes:
        return modules.shared_expert_passes(self.model, self.hardware, self.own, precision=self.precision)

    def _dense(self) -> Passes:
        return modules.dense_layer_passes(
            self.model, self.hardware, self.attended, precision=self.precision, tp=self.layout.tp
        )

    def _experts(self, choices: int) -> Passes:
        """Experts at the mean of rows: of a stage's tokens over its EP members; and of experts that are hit."""
        layout = self.layout
        rows = self.shared * choices * layout.etp / (layout.tp * layout.cp)
        return expert_floor(
            self.model, self.hardware, rows, min(choices, rows) / layout.ep, precision=self.precision, etp=layout.etp
        )

    def _mixer(self, layer: int, mixer: Mixer) -> Passes:
        """Attention; of ranks that share sequences the products, and the arithmetic of the core on the way back."""
        layout, model, hardware = self.layout, self.model, self.hardware
        if not isinstance(mixer, AttentionShape):
            return modules.linear_passes(
                model, hardware, self.attended, shape=mixer, precision=self.precision, tp=layout.tp
            )
        read, every = (self._keys(mixer.reads_of(layer)), self._keys(((None, 1),)))
        if layout.cp == 1:
            return modules.attention_passes(
                model,
                hardware,
                np.float64(self.attended),
                np.float64(read),
                scored_G=np.float64(every),
                mixer=mixer,
                precision=self.precision,
                tp=layout.tp,
            )
        products = modules.projection_passes(
            model, hardware, self.attended, shape=mixer, precision=self.precision, tp=layout.tp
        )
        heads = -(-mixer.heads // layout.tp)
        pair_flop = 2.0 * heads * np.array([mixer.head_dim + mixer.value_dim, 3 * mixer.head_dim + 2 * mixer.value_dim])
        # No kernel of a core does better than the peak; those of gradients reach what the roofline says.
        rates = hardware.peak_flop_per_s["bf16"], roofline.flop_rate(hardware, "bf16", "attention")
        core_2 = read / layout.cp * pair_flop / rates
        return products + Passes(forward_G=core_2[0], input_G=core_2[1], weight_G=np.zeros(()))

    def _keys(self, reads: tuple[tuple[int | None, int], ...]) -> float:
        """Keys that a data-parallel rank's tokens read: each those before it in its sequence, and itself."""
        place_T = np.arange(1, self.question.recipe.sequence + 1)
        every = sum(float(np.minimum(place_T, most or place_T).sum() // 1) / share for most, share in reads)
        return self.layout.microbatch * every

    def _again(self, layer: int, mixer: Mixer | None) -> float:
        """What of attention and a dense layer runs forward again where parts of a layer do; of others nothing."""
        again_s = 0.0
        if self.recompute.runs_again("core_attn") and isinstance(mixer, AttentionShape) and self.layout.cp == 1:
            keys = np.float64(self._keys(mixer.reads_of(layer)))
            core = modules.core_passes(
                self.model, self.hardware, np.float64(self.attended), keys, shape=mixer, tp=self.layout.tp
            )
            again_s += float(core.forward_G)
        dense = layer not in self.model.moe_layer_ids and layer not in self.model.no_mlp_layers
        if self.recompute.runs_again("mlp_act") and dense and self.model.dense_intermediate:
            width = -(-self.model.dense_intermediate // self.layout.tp)
            again_s += float(modules.activation_passes(self.model, self.hardware, self.attended, width=width).forward_G)
        return again_s

    def _exchanges(self) -> list[float]:
        """Setups of dispatch and combine, forward and on the way back, and the waits for hosts before them."""
        layout, hardware = self.layout, self.hardware
        parts = 2 * self.launch_s if layout.etp > 1 else 0.0
        if layout.ep == 1:
            return [parts, parts]
        mode = mode_of(layout.dispatch, "prefill")
        barriers = 2 * hardware.barrier_s if mode.barrier else 0.0
        each = parts + barriers + 2 * self.launch_s + self.question.recipe.host.fixed_s
        return [each + (hardware.count_exchange_s if mode.counts_first else 0.0), each]


def _three(passes: Passes) -> list[float]:
    return [float(passes.forward_G), float(passes.input_G), float(passes.weight_G)]
