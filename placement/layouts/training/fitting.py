"""Which training layouts fit into the memory of a GPU, and by how much the others do not.

Bytes are those of `moecast.sim.training.training_memory`, an even share of the experts' rows. Stages of the same
layers hold the same, so each is counted once for all layouts that share it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from moecast.placement.layouts.fitted import Fitting, Overfull
from moecast.placement.layouts.training.layout import TrainingLayout
from moecast.placement.layouts.training.orders import chunks_of, in_flight
from moecast.placement.layouts.training.space import dealt
from moecast.sim.attention_shape import AttentionShape
from moecast.sim.training import RECOMPUTES, Shard
from moecast.sim.training.context import travelling_bytes
from moecast.sim.training.memory import Passing, held_bytes, passing_bytes

if TYPE_CHECKING:
    from moecast.placement.layouts.training.question import TrainingQuestion
    from moecast.sim.model import ModelShape

Stage = tuple[tuple[int, ...], bool, bool]
"""Hidden layers that stand for those of a stage; whether it has the embedding, and the LM head."""

EXCHANGE = "ring"
"""How ranks that share sequences exchange keys in the plans of layouts: as a `Plan` has it."""


def fitting(layouts: Sequence[TrainingLayout], missing_bytes: Iterable[int]) -> Fitting[TrainingLayout]:
    """Keep the layouts whose step fits; `missing_bytes`: what the fullest GPU of each has too little."""
    fits, nearest = [], dict[int, Overfull[TrainingLayout]]()
    for layout, missing in zip(layouts, missing_bytes, strict=True):
        if missing <= 0:
            fits.append(layout)
        elif layout.pp not in nearest or missing < nearest[layout.pp].missing_bytes:
            nearest[layout.pp] = Overfull(layout=layout, missing_bytes=missing)
    fitted = {layout.pp for layout in fits}
    return Fitting(
        layouts=tuple(fits),
        overfull=len(layouts) - len(fits),
        nearest={pp: nearest[pp] for pp in sorted(nearest) if pp not in fitted},
    )


class TrainingMemory:
    """Bytes of the layouts of one question, each kind of stage counted once."""

    def __init__(self, question: TrainingQuestion) -> None:
        self.question = question
        self._kind_H = kinds_of_layers(question.model)
        self._of_kind: dict[object, list[int]] = defaultdict(list)
        for layer, kind in enumerate(self._kind_H):
            self._of_kind[kind].append(layer)
        self._stages: dict[tuple[object, ...], tuple[Stage, ...]] = {}
        self._held: dict[tuple[object, ...], dict[str, int]] = {}
        self._passing: dict[tuple[object, ...], Passing] = {}

    def total(self, layout: TrainingLayout) -> int:
        """Bytes of the fullest rank."""
        return max(sum(part.values()) for part in self.of_ranks(layout))

    def fullest(self, layout: TrainingLayout) -> dict[str, int]:
        """Bytes by part on the fullest rank."""
        return max(self.of_ranks(layout), key=lambda part: sum(part.values()))

    def of_ranks(self, layout: TrainingLayout) -> list[dict[str, int]]:
        """Bytes by part on each pipeline rank; chunks of one rank add up."""
        chunks, stages = chunks_of(layout.schedule, layout.pp, layout.virtual), self.stages_of(layout)
        flying = in_flight(layout.schedule, layout.pipeline(self.question.recipe.batch))
        found: list[dict[str, int]] = [{} for _ in range(chunks.n_ranks)]
        count = [chunks.rank_C.count(rank) for rank in range(chunks.n_ranks)]
        for stage, rank in zip(chunks.stage_C, chunks.rank_C, strict=True):
            held = self.held(layout, stages[stage])
            passing = self.passing(layout, stages[stage]).by_part(flying[rank] / count[rank])
            for name, size in (*held.items(), *passing.items()):
                found[rank][name] = found[rank].get(name, 0) + size
        return found

    def stages_of(self, layout: TrainingLayout) -> tuple[Stage, ...]:
        """The virtual stages of a layout, in order."""
        key = (layout.cut, layout.pp * layout.virtual)
        if key not in self._stages:
            stages = layout.pp * layout.virtual
            cut = layout.cut or dealt(self.question.model.n_layers, stages)
            self._stages[key] = tuple(
                (self._likes(h for h, there in enumerate(cut) if there == stage), stage == 0, stage == stages - 1)
                for stage in range(stages)
            )
        return self._stages[key]

    def _likes(self, layers: Iterable[int]) -> tuple[int, ...]:
        """The model's first layers of the same kinds, as many of each: what stands for a stage."""
        wanted = Counter(self._kind_H[h] for h in layers)
        return tuple(sorted(h for kind, count in wanted.items() for h in self._of_kind[kind][:count]))

    def alone(self, layer: int) -> Stage:
        """One layer as a stage, without embedding and LM head."""
        return self._likes((layer,)), False, False

    def held(self, layout: TrainingLayout, stage: Stage) -> dict[str, int]:
        """Parameters, gradients and optimizer of a stage."""
        key = (stage, layout.tp, layout.ep, layout.etp, layout.dp * layout.cp, layout.groups, layout.zero)
        if key not in self._held:
            recipe = self.question.recipe
            self._held[key] = held_bytes(
                self.shard(layout, stage), recipe.precision, optimizer=recipe.optimizer, zero=layout.zero
            )
        return self._held[key]

    def passing(self, layout: TrainingLayout, stage: Stage) -> Passing:
        """Activations and buffers of a microbatch in a stage."""
        key = (stage, layout.tp, layout.cp, layout.etp, layout.microbatch, layout.recompute, layout.pp > 1)
        if key not in self._passing:
            recipe = layout.recipe(self.question.recipe)
            sent = travelling_bytes(
                self.question.model, recipe.tokens_of_microbatch, tp=layout.tp, cp=layout.cp, exchange=EXCHANGE
            )
            self._passing[key] = passing_bytes(
                self.shard(layout, stage),
                recipe.precision,
                tokens=-(-recipe.tokens_of_microbatch // layout.cp),
                sequence=recipe.sequence,
                recompute=RECOMPUTES[layout.recompute],
                pipeline=layout.pp > 1,
                travelling_bytes=sent,
            )
        return self._passing[key]

    def shard(self, layout: TrainingLayout, stage: Stage) -> Shard:
        """What each rank of a stage holds."""
        layer_ids, first, last = stage
        return Shard(
            model=self.question.model,
            layer_ids=layer_ids,
            first=first,
            last=last,
            tp=layout.tp,
            ep=layout.ep,
            etp=layout.etp,
            dense_ranks=layout.dp * layout.cp,
            expert_ranks=layout.groups,
        )


def kinds_of_layers(model: ModelShape) -> list[object]:
    """What tells hidden layers apart that cost and hold the same: [H]."""
    moe, bare = set(model.moe_layer_ids), set(model.no_mlp_layers)
    mixers = [model.mixer_of(layer) for layer in range(model.n_layers)]
    reads = [mixer.reads_of(h) if isinstance(mixer, AttentionShape) else () for h, mixer in enumerate(mixers)]
    return [(h in moe, h in bare, mixers[h], reads[h]) for h in range(model.n_layers)]
