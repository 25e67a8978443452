"""What is asked, in the words of the options: one value from a question file, `--set` and options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moecast.cli import options
from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.sim import ModelShape, Workload
    from moecast.sim.degrees import Degrees
    from moecast.sim.workload import RequestPlacement
    from moecast.traces import RoutingTrace

DEFAULT_TOKENS_PER_RANK = {"prefill": 512, "decode": 32, "mixed": 32}
PARTS = ("all", "planning", "measuring")


LAYOUT = ("tp", "cp", "dp", "pp", "vpp", "etp")
"""Degrees of parallelism that override a plan's."""

CONTEXT = ("context_exchange", "context_split")
"""How ranks share sequences, where `--cp` has them do so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question as a user writes it: names, numbers and files, nothing of which has been read.

    Parameters
    ----------
    overrides
        What was changed of the question file, as a result says it.
    given
        Fields that were named on the command line.
    file, unused
        The question file, and what it holds that the command has no use for.
    """

    cluster: options.OptionalCluster = None
    nodes: options.Nodes = None
    fabric: options.Fabric = None
    kernels: options.Kernels = None
    engine: options.EngineName = None
    model: options.ModelOrTrace = None
    dims: options.Dims = None
    weight_type: options.WeightType = None
    dense_type: options.DenseType = None
    kv_type: options.KvType = None
    trace: options.OptionalTrace = None
    routing: options.Routing = None
    load: options.Load = None
    isl: options.Isl = None
    part: options.Part = "all"
    plan_on: options.PlanOn = 0.5
    plan: options.PlanFile = None
    ep: options.Ep = None
    tp: options.Tp = None
    cp: options.Cp = None
    dp: options.Dp = None
    pp: options.Pp = None
    vpp: options.Vpp = None
    etp: options.Etp = None
    sequence_parallel: options.SequenceParallel = None
    context_exchange: options.ContextExchange = None
    context_split: options.ContextSplit = None
    slots_per_rank: options.SlotsPerRank = None
    dispatch: options.Dispatch = None
    replica_rule: options.ReplicaRule = None
    schedule: options.Schedule = None
    microbatches: options.Microbatches = None
    phase: options.Phase = "prefill"
    tokens_per_rank: options.TokensPerRank = None
    prefill_tokens: options.PrefillTokens = None
    speculate: options.Speculate = 0
    acceptance: options.Acceptance = 0.0
    steps: options.Steps = 8
    context: options.Context = None
    topics: options.Topics = None
    one_topic_per_step: options.OneTopic = False
    request_placement: options.RequestPlacement = "any"
    reuse: options.Reuse = False
    from_phase: options.FromPhase = None
    recorded_steps: options.RecordedSteps = False
    network: options.Network = "fluid"
    fluid_steps: options.FluidSteps = 4
    memory_fraction: options.MemoryFraction = 0.9
    gains: options.Gains = True
    seed: options.Seed = 0
    overrides: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    file: Path | None = None
    unused: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """Where its routing comes from."""
        return Source(
            trace=self.trace,
            routing=self.routing,
            load=self.load,
            part=self.part,
            plan_on=self.plan_on,
            isl=self.isl,
        )

    @property
    def degrees(self) -> Degrees:
        """The degrees of parallelism that it asks for."""
        from moecast.sim.degrees import Degrees

        return Degrees(ep=self.ep, **{name: getattr(self, name) for name in LAYOUT})

    @property
    def types(self) -> ElementTypes:
        """The element types it changes."""
        return ElementTypes(weight_type=self.weight_type, dense_type=self.dense_type, kv_type=self.kv_type)

    def workload(self) -> Workload:
        """Which tokens are in flight together."""
        from moecast.sim import Workload

        default = DEFAULT_TOKENS_PER_RANK.get(self.phase, 1)
        prompts = DEFAULT_TOKENS_PER_RANK["prefill"] if self.phase == "mixed" else 0
        return Workload(
            phase=self.phase,
            tokens_per_rank=default if self.tokens_per_rank is None else self.tokens_per_rank,
            prefill_tokens_per_rank=prompts if self.prefill_tokens is None else self.prefill_tokens,
            speculate=self.speculate,
            acceptance=self.acceptance,
            steps=self.steps,
            context=self.context,
            seed=self.seed,
            topics=parse_topics(self.topics),
            one_topic_per_step=self.one_topic_per_step,
            request_placement=cast("RequestPlacement", self.request_placement),
            reuse=self.reuse,
            from_phase=self.from_phase,
            steps_mode="as-recorded" if self.recorded_steps else "drawn",
        )

    @property
    def changes(self) -> tuple[str, ...]:
        """What it changes in a plan or a checkpoint, and in a question file, as the result says it."""
        of_plan = (
            "kernels", "engine", "dispatch", "replica_rule", *LAYOUT, "sequence_parallel", *CONTEXT, "schedule",
            "microbatches", "weight_type", "dense_type", "kv_type",
        )  # fmt: skip
        told = {text.split(" = ")[0].rpartition(".")[2] for text in self.overrides}  # beside what the file has
        given = {name: getattr(self, name) for name in of_plan if name not in told}
        return (*(_said(name, value) for name, value in given.items() if value is not None), *self.overrides)

    @property
    def files(self) -> dict[str, str | Path | None]:
        """Files that it reads, by option: no output may replace one."""
        read = {option(name): getattr(self, name) for name in ("plan", "trace", "load", "cluster", "model")}
        return {"the question": self.file, **read}

    def with_(self, **changes: Any) -> Asked:
        """Copy with some fields replaced."""
        return replace(self, **changes)


def option(name: str) -> str:
    """The option of a field: `--tokens-per-rank`."""
    return f"--{name.replace('_', '-')}"


def _said(name: str, value: object) -> str:
    """An option with its value, as it is typed."""
    if isinstance(value, bool):
        return option(name) if value else option(f"no_{name}")
    return f"{option(name)} {value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementTypes:
    """`--weight-type`, `--dense-type` and `--kv-type`; None: the checkpoint's own."""

    weight_type: str | None = None
    dense_type: str | None = None
    kv_type: str | None = None

    def __post_init__(self) -> None:
        from moecast.sim.element_types import CACHE_TYPES, ELEMENT_TYPES

        for field, known in (("weight_type", ELEMENT_TYPES), ("dense_type", ELEMENT_TYPES), ("kv_type", CACHE_TYPES)):
            value = getattr(self, field)
            if value is not None and value not in known:
                raise MoecastError(f"one of {', '.join(known)}", field=option(field), value=value)

    def put_into(self, model: ModelShape) -> ModelShape:
        """The model with these types."""
        return model.with_types(weight_type=self.weight_type, dense_type=self.dense_type, kv_type=self.kv_type)


def parse_topics(text: str | None) -> dict[str, float] | tuple[str, ...] | None:
    """Read ``law,code`` (restrict) or ``law=3,code=1`` (weights).

    Raises
    ------
    MoecastError
        A weight that is not a number, or weights for some topics only.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not any("=" in part for part in parts):
        return tuple(parts)
    weights: dict[str, float] = {}
    for part in parts:
        name, _, weight = part.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError as error:
            rule = "give every topic a weight, as in law=3,code=1"
            raise MoecastError(rule, field="--topics", value=part) from error
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where routing comes from: `--trace`, `--routing` or `--load`.

    Parameters
    ----------
    trace
        A file or a folder, or `shipped`; what that stands for is put in its place.
    part, plan_on
        Which part of it, and where the planning part ends.
    isl
        Tokens of each made prompt; None: `made.DEFAULT_ISL`.
    """

    trace: Path | None
    routing: str | None = None
    load: Path | None = None
    part: str = "all"
    plan_on: float = 0.5
    isl: int | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise MoecastError(f"one of {', '.join(PARTS)}", field="--part", value=self.part)
        if self.load is not None and (self.trace is not None or self.routing is not None):
            raise MoecastError("counts are a source of their own: without --trace and --routing", field="--load")
        if self.load is None and self.routing is None and self.trace is None:
            rule = "give a recorded trace (--trace), or make routing of the model's own shape (--routing uniform)"
            raise MoecastError(rule, field="--trace")
        if self.routing is not None and self.trace is not None and self.routing != "trace":
            raise MoecastError("a trace only serves --routing trace", field="--routing", value=self.routing)
        if self.isl is not None and self.load is None and self.routing in (None, "trace"):
            rule = "recorded prompts have their own lengths: for routing by a law (uniform, zipf …) and --load only"
            raise MoecastError(rule, field="--isl", value=self.isl)
        object.__setattr__(self, "trace", options.shipped(self.trace))

    @property
    def made(self) -> bool:
        """Whether routing is made, at the model's own shape."""
        return self.routing is not None or self.load is not None

    @property
    def share(self) -> float:
        """Share of the tokens that is in the part asked for."""
        return {"all": 1.0, "planning": self.plan_on, "measuring": 1 - self.plan_on}[self.part]

    def cut(self, trace: RoutingTrace) -> RoutingTrace:
        """The part asked for."""
        return trace if self.part == "all" else trace.split(self.plan_on)[PARTS.index(self.part) - 1]
