"""Options that several commands share, said once: same flag, same help, same meaning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from moecast.sim.plan import DispatchMode
    from moecast.sim.plan import ReplicaRule as ReplicaRuleName


def shipped(path: Path | None) -> Path | None:
    """Read ``shipped`` as the trace that comes with moecast, ``shipped:POLICY`` as that of a router policy.

    A file of that name goes first.
    """
    kind, _, policy = str(path).partition(":")
    if path is None or kind != "shipped" or path.exists():
        return path
    from moecast.traces import shipped_trace_path

    return shipped_trace_path(policy or None)


Cluster = Annotated[
    str, typer.Option("--cluster", help="A preset (`moecast topology list`) or a YAML file.", show_default=False)
]
OptionalCluster = Annotated[
    str | None,
    typer.Option("--cluster", help="A preset (`moecast topology list`) or a YAML file.", show_default=False),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        "--nodes",
        min=1,
        max=16384,
        help="How many of the preset's nodes (or domains).",
        show_default="as the file says",
    ),
]
Fabric = Annotated[
    str | None,
    typer.Option(
        "--fabric", help="leaf-spine:2 (oversubscription), rail:1 or single-switch.", show_default="as the file says"
    ),
]
Model = Annotated[str, typer.Option("--model", help="A preset or a Hugging Face config.json.", show_default=False)]
ModelOrTrace = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A preset or a Hugging Face config.json.",
        show_default="the config.json in the trace, if it has one",
    ),
]
Trace = Annotated[
    Path,
    typer.Option(
        "--trace",
        callback=shipped,
        help="A Parquet file, a folder of shards, `shipped` or `shipped:POLICY`.",
        show_default=False,
    ),
]
OptionalTrace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        help="A Parquet file, a folder of shards, `shipped` or `shipped:POLICY`.",
        show_default=False,
    ),
]
Routing = Annotated[
    str | None,
    typer.Option(
        "--routing",
        help="Make routing of the model's own shape: uniform, zipf:S, power-law:A, gamma:V, or trace (like "
        "--trace, else like the shipped one).",
        show_default="what --trace recorded",
    ),
]
Isl = Annotated[
    int | None,
    typer.Option(
        "--isl",
        min=1,
        max=1 << 20,
        help="Tokens of each prompt that --routing or --load makes (input sequence length).",
        show_default="1024",
    ),
]
RecordedSteps = Annotated[
    bool, typer.Option("--recorded-steps", help="Take the recorded steps, each with the ranks that held its tokens.")
]
TraceArgument = Annotated[
    Path,
    typer.Argument(
        help="A Parquet file, a folder of shards, `shipped` or `shipped:POLICY`.", metavar="TRACE", callback=shipped
    ),
]
Load = Annotated[
    Path | None,
    typer.Option(
        "--load",
        help="Counts instead of a trace: a load table that `trace import` wrote; each layer is drawn by itself.",
        show_default=False,
    ),
]
Part = Annotated[
    str, typer.Option("--part", help="all, planning or measuring: which part of the trace (see --plan-on).")
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="A plan of moecast, SGLang or TensorRT-LLM.", show_default="contiguous over all GPUs"),
]
Network = Annotated[
    str,
    typer.Option("--network", help="The rung: bound (fast), fluid, or fluid:0.3% (within a tolerance, for many GPUs)."),
]
FluidSteps = Annotated[
    int, typer.Option("--fluid-steps", min=1, help="How many of the steps the fluid rung runs; bound runs all.")
]
Gains = Annotated[bool, typer.Option("--gains/--no-gains", help="Time a step again with twice of each resource.")]
Dims = Annotated[
    str | None,
    typer.Option(
        "--dims", help="Take widths, attention and element types from another model.", show_default="the model's own"
    ),
]
WeightType = Annotated[
    str | None,
    typer.Option(
        "--weight-type",
        help="Element type of the routed experts: bf16, fp8, nvfp4, mxfp4, int4, …",
        show_default="the checkpoint's",
    ),
]
DenseType = Annotated[
    str | None,
    typer.Option(
        "--dense-type", help="Of attention, dense layers and shared experts.", show_default="the checkpoint's"
    ),
]
KvType = Annotated[
    str | None, typer.Option("--kv-type", help="Of the KV cache: bf16, fp8, …", show_default="the checkpoint's")
]
Kernels = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        help="Who prices kernels: fitted (on measured ones), roofline (the hardware table's "
        "efficiencies), or tables:DIR (your own measured tables, fitted for what they lack).",
        show_default="the cluster's: presets have fitted",
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="Whose kernels run: trtllm, sglang, vllm, megatron, or neutral (none in particular).",
        show_default="the cluster's, else neutral",
    ),
]
MemoryFraction = Annotated[
    float,
    typer.Option(
        "--memory-fraction", min=0.01, max=1.0, help="The part of a GPU's memory that the engine takes (vLLM: 0.9)."
    ),
]
Phase = Annotated[str, typer.Option("--phase", help="prefill, decode, or mixed (prefill chunks beside decode).")]
TokensPerRank = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-rank",
        min=0,
        help="Tokens (prefill) or sequences (decode, mixed) that each rank has in flight; with "
        "--tp or --cp, each group of ranks that shares them.",
        show_default="512 in prefill, 32 in decode and mixed",
    ),
]
PrefillTokens = Annotated[
    int | None,
    typer.Option(
        "--prefill-tokens",
        min=0,
        help="Phase mixed: tokens of prompts that each rank takes beside its running sequences.",
        show_default="512 in phase mixed",
    ),
]
Speculate = Annotated[
    int,
    typer.Option(
        "--speculate",
        min=0,
        max=64,
        help="Drafts that are verified for each running sequence in a step, beside its token.",
    ),
]
Acceptance = Annotated[
    float,
    typer.Option("--acceptance", min=0.0, max=1.0, help="The chance that a draft is accepted after those before it."),
]
Steps = Annotated[int, typer.Option("--steps", min=1, max=1_000_000, help="How many steps the Workload holds.")]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=1,
        max=1 << 30,
        help="Keys each decoded token attends to.",
        show_default="its recorded position + 1",
    ),
]
Topics = Annotated[
    str | None,
    typer.Option(
        "--topics", help="Restrict or weight topics: law,code or law=3,code=1.", show_default="all, as recorded"
    ),
]
OneTopic = Annotated[bool, typer.Option("--one-topic-per-step", help="Draw each step from a single topic.")]
RequestPlacement = Annotated[
    str,
    typer.Option("--request-placement", help="Which DP rank a sequence runs on: any, or one that serves its topic."),
]
Reuse = Annotated[bool, typer.Option("--reuse", help="Allow a trace too small for the Workload to repeat its tokens.")]
FromPhase = Annotated[
    str | None,
    typer.Option(
        "--from-phase", help="Draw from rows of another phase; the result says so.", show_default="the same phase"
    ),
]
PlanOn = Annotated[
    float,
    typer.Option("--plan-on", min=0.0, max=1.0, help="The first part of each topic that plans are made on."),
]
Ep = Annotated[
    int | None,
    typer.Option("--ep", min=1, max=65535, help="Ranks of an EP group.", show_default="all GPUs of the cluster"),
]
Tp = Annotated[
    int | None,
    typer.Option(
        "--tp",
        min=1,
        max=65535,
        help="Consecutive ranks that share their tokens: they split attention, dense layers and "
        "the vocabulary, and each token is dispatched by one of them.",
        show_default="the plan's, else 1: every rank attends for its own tokens (DP attention)",
    ),
]
Cp = Annotated[
    int | None,
    typer.Option("--cp", min=1, max=65535, help="Ranks that share sequences.", show_default="the plan's, else 1"),
]
ContextExchange = Annotated[
    str | None,
    typer.Option(
        "--context-exchange",
        help="With --cp: keys and values go round beside attention (ring), are gathered before it "
        "(all-gather), or stay while queries go round and results come back (token-ring). Decode "
        "gathers queries.",
        show_default="the plan's, else ring",
    ),
]
ContextSplit = Annotated[
    str | None,
    typer.Option(
        "--context-split",
        help="With --cp: each rank takes two runs of every sequence that together read as many "
        "keys (zig-zag), one run (contiguous), or short sequences whole and long ones cut over a "
        "domain or all ranks (zeppelin).",
        show_default="the plan's, else zig-zag",
    ),
]
Dp = Annotated[
    int | None,
    typer.Option(
        "--dp",
        min=1,
        max=65535,
        help="Ranks, or groups of --tp x --cp of them, that hold tokens of their own.",
        show_default="what the others leave",
    ),
]
Pp = Annotated[
    int | None, typer.Option("--pp", min=1, max=65535, help="Pipeline stages.", show_default="the plan's, else 1")
]
Vpp = Annotated[
    int | None,
    typer.Option(
        "--vpp", min=1, max=65535, help="Chunks of layers of each pipeline stage.", show_default="the plan's, else 1"
    ),
]
Microbatches = Annotated[
    int | None,
    typer.Option(
        "--microbatches",
        min=1,
        max=65535,
        help="Into how many parts each rank's tokens are cut, which go through the pipeline one behind the other.",
        show_default="the plan's, else 1",
    ),
]
Etp = Annotated[
    int | None,
    typer.Option(
        "--etp", min=1, max=65535, help="Ranks that share each expert by width.", show_default="the plan's, else 1"
    ),
]
SequenceParallel = Annotated[
    bool | None,
    typer.Option(
        "--sequence-parallel/--no-sequence-parallel",
        help="With --tp: each rank keeps its part of the tokens (reduce-scatter and all-gather), "
        "or all that it shares (all-reduce).",
        show_default="the plan's, else its part",
    ),
]
SlotsPerRank = Annotated[
    int | None,
    typer.Option(
        "--slots-per-rank", min=1, max=65535, help="Slots for experts in each rank and layer.", show_default="⌈E / ep⌉"
    ),
]
Dispatch = Annotated[
    str | None,
    typer.Option(
        "--dispatch",
        help="per_choice, per_rank, per_domain, nccl, all_gather or stay.",
        show_default="the plan's, else none where ranks that share tokens hold all experts "
        "(--no-sequence-parallel), per_domain in prefill and per_choice in decode",
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="How tasks overlap: sequential, shared-beside (shared experts beside dispatch), "
        "two-batch (half the tokens compute while the other half travels), token-weave (while its "
        "sums are all-reduced), chunked:D (MoE layers in D chunks) or fsmoe:D (those between and "
        "inside domains at once).",
        show_default="the plan's, else sequential",
    ),
]
ReplicaRule = Annotated[
    str | None,
    typer.Option(
        "--replica-rule",
        help="Which replica serves a choice: round_robin, nearest, fixed (SGLang: own GPU, own "
        "host, else dealt) by_rank (vLLM-Ascend: rank mod replicas) or lplb (DeepSeek's: a linear "
        "program splits each step's load).",
        show_default="the plan's or the engine's, else round_robin",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, nothing else.")]


def planning_part(plan_on: float) -> str:
    """What a plan's record says of the part of the trace it was made on."""
    return f"the first {plan_on:.0%} of each topic"


def dispatch_mode(text: str | None) -> DispatchMode | None:
    """Check ``--dispatch``.

    Raises
    ------
    MoecastError
        There is no such mode.
    """
    from moecast.errors import MoecastError
    from moecast.sim import DISPATCH_MODES

    if text is not None and text not in DISPATCH_MODES:
        raise MoecastError(f"one of {', '.join(DISPATCH_MODES)}", field="--dispatch", value=text)
    return cast("DispatchMode | None", text)


def replica_rule(text: str | None, *, made: bool = False) -> ReplicaRuleName | None:
    """Check ``--replica-rule``; `made`: for a plan to make, which has no replica weights.

    Raises
    ------
    MoecastError
        There is no such rule, or it needs a plan with replica weights.
    """
    from moecast.errors import MoecastError
    from moecast.sim import REPLICA_RULES

    known = [rule for rule in REPLICA_RULES if not (made and rule == "weights")]
    if text is not None and text not in known:
        raise MoecastError(f"one of {', '.join(known)}", field="--replica-rule", value=text)
    return cast("ReplicaRuleName | None", text)
