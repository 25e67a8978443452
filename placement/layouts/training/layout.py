"""One layout of a training job: who shares what, how the pipeline runs, and what is kept of activations and weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm
from typing import TYPE_CHECKING

from moecast.placement.layouts.degrees import AttentionDegrees
from moecast.sim.degrees import Degrees
from moecast.sim.schedules.pipeline import Pipeline, find_pipeline_schedule
from moecast.sim.training import RECOMPUTES, Recipe
from moecast.sim.whole import whole

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.plan import DispatchMode, Plan
    from moecast.sim.schedules.pipeline import Chunks

DEGREES = ("tp", "cp", "dp", "pp", "virtual", "ep", "etp")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class TrainingLayout(AttentionDegrees):
    """A layout of all GPUs of a job.

    Parameters
    ----------
    tp, cp, dp, pp, mapping
        As of `AttentionDegrees`.
    virtual
        Chunks of layers of each pipeline stage.
    ep, etp
        Ranks of an EP group, and ranks that share each of its members' experts by width.
    schedule
        Of the pipeline (`moecast.sim.schedules.pipeline`).
    microbatch
        Sequences of a microbatch on a data-parallel rank.
    recompute, zero
        A name of `RECOMPUTES`; a level of ZeRO.
    dispatch
        As in a `Plan`; None with one rank in an EP group.
    cut
        The virtual stage of each hidden layer; empty: as many to each.

    Raises
    ------
    ValueError
        A degree that is no whole number of at least 1, or EP and ETP that do not divide the ranks of a stage.
    """

    virtual: int = 1
    ep: int = 1
    etp: int = 1
    schedule: str = "1f1b"
    microbatch: int = 1
    recompute: str = "none"
    zero: int = 1
    dispatch: DispatchMode | None = None
    cut: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (*DEGREES, "microbatch"):
            whole(name, getattr(self, name))
        if self.ranks_of_stage % (self.ep * self.etp):
            raise ValueError(
                f"ep = {self.ep}, etp = {self.etp}: do not divide the {self.ranks_of_stage} ranks of a pipeline stage"
            )

    @property
    def groups(self) -> int:
        """EP groups of a pipeline stage."""
        return self.ranks_of_stage // (self.ep * self.etp)

    def attended_tokens(self, sequence: int) -> int:
        """Tokens of a microbatch that each rank attends for, at the least; those of its tensor parallel group."""
        return self.microbatch * sequence // self.cp

    def own_tokens(self, sequence: int) -> int:
        """Tokens of a microbatch at home on each rank, at the least."""
        return self.attended_tokens(sequence) // self.tp

    def group_of(self, group: str) -> tuple[int, int]:
        """How many ranks reduce gradients together, and how far apart they are numbered.

        `group` as of `moecast.sim.training.gradients.Reduction`.
        """
        if group == "tensor":
            return self.tp, 1
        return (self.groups, self.ep * self.etp) if group == "expert" else (self.dp * self.cp, self.tp)

    def ranks_in_domain(self, group: str, domain_gpus: int) -> int:
        """Ranks of such a group in each domain of so many GPUs, where all have as many; 0 where they may differ."""
        ranks, stride = self.group_of(group)
        if domain_gpus == 0 or (ranks * stride > domain_gpus and self.ranks_of_stage % domain_gpus):
            return 0
        if ranks * stride <= domain_gpus:
            return ranks if domain_gpus % (ranks * stride) == 0 else 0
        if stride % domain_gpus == 0:
            return 1
        return domain_gpus // stride if domain_gpus % stride == 0 else 0

    def one_group(self) -> TrainingLayout:
        """As few ranks as share tokens or experts, without a pipeline: what a layer takes on them it takes on all."""
        ranks = lcm(self.tp * self.cp, self.ep * self.etp)
        return replace(
            self,
            dp=ranks // (self.tp * self.cp),
            pp=1,
            virtual=1,
            schedule="1f1b",
            zero=1,
            cut=(),
            mapping=self.mapping.first(ranks),
        )

    def recipe(self, base: Recipe) -> Recipe:
        """A job's recipe with what the layout decides of it."""
        return replace(base, microbatch=self.microbatch, recompute=RECOMPUTES[self.recompute], zero=self.zero)

    def microbatches(self, batch: int) -> int:
        """Microbatches of each data-parallel rank; `batch` is a multiple of what all take at a time."""
        return batch // (self.dp * self.microbatch)

    def pipeline(self, batch: int) -> Pipeline:
        """The numbers of its pipeline in a step of so many sequences."""
        return Pipeline(pp=self.pp, virtual=self.virtual, microbatches=self.microbatches(batch))

    def chunks(self) -> Chunks:
        """Where the model's pieces stand."""
        sizes = Pipeline(pp=self.pp, virtual=self.virtual, microbatches=self.pp * self.virtual * 2)
        return find_pipeline_schedule(self.schedule).chunks(sizes)

    def plan(self, model: ModelShape) -> Plan:
        """The plan with experts in order."""
        degrees = Degrees(tp=self.tp, cp=self.cp, pp=self.pp, ep=self.ep, etp=self.etp)
        plan = degrees.contiguous(model.shape_LEK, model.moe_layer_ids, ranks=self.gpus)
        return plan.with_(
            gpu_of_rank=self.gpu_of_rank,
            virtual=self.virtual,
            folded=self.chunks().folded,
            dp=0,
            dispatch=self.dispatch,
            stage_of_layer=self.cut or None,
        )

    def name(self) -> str:
        """The layout in one line, what is usual left out: ``TP2 x PP8 x DP16, EP32, 1f1b, 4 sequences at a time``."""
        degrees = ((name, getattr(self, name.lower())) for name in ("TP", "CP", "PP", "DP"))
        parts = [" x ".join(f"{name}{value}" for name, value in degrees if value > 1) or "one GPU"]
        parts.append(f"EP{self.ep}" + (f" x ETP{self.etp}" if self.etp > 1 else ""))
        parts += [self.dispatch] if self.dispatch else []
        parts.append(self.schedule + (f" of {self.virtual} chunks" if self.virtual > 1 else ""))
        parts.append(f"microbatch {self.microbatch}")
        parts += [f"recompute {self.recompute}"] if self.recompute != "none" else []
        parts.append(f"ZeRO {self.zero}")
        parts += self.mapped
        return ", ".join(parts + ([f"layers {self.layers_of_stages()}"] if self.cut else []))

    def layers_of_stages(self) -> str:
        """How many layers each virtual stage has, in order: ``4, 13 x 4, 5``; of an even cut, ``even``."""
        if not self.cut:
            return "even"
        counts = [self.cut.count(stage) for stage in range(self.pp * self.virtual)]
        runs: list[list[int]] = []
        for count in counts:
            if runs and runs[-1][0] == count:
                runs[-1][1] += 1
            else:
                runs.append([count, 1])
        return ", ".join(f"{times} x {count}" if times > 1 else str(count) for count, times in runs)

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["mapping"] = self.mapping.name
        return fields | {"name": self.name(), "cut": list(self.cut), "layers_of_stages": self.layers_of_stages()}
