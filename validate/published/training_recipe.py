"""How the jobs behind measured training steps trained: recipe, dispatcher, what hosts take, what is computed again.

Four numbers from seven rows marked fit; docs/accuracy.md says what each rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moecast.sim import ModelShape
from moecast.sim.training import BF16, FP8, FULL, NONE, HostWait, Recipe, Recompute

Fields = Mapping[str, str]

OPERATION_S = 40.2e-6
"""What a host takes to launch one operation of a layer: Qwen3-30B-A3B on 16 H100 without CUDA graphs, a row marked fit.

A direction of its layers takes 4.83 ms, its kernels 2.3.
"""

OPERATIONS, OF_LATENT_ATTENTION, OF_SHARED_EXPERTS = 120, 35, 12
"""Operations of a direction of an MoE layer in Megatron-Core: with grouped queries, more with MLA, and shared experts.

Counted by hand in its modules without CUDA graphs, to a fifth or so: attention some 35, router 25,
dispatch and combine 40, experts 20.
"""

SUMS, OF_LATENT_SUMS, OF_A_SUM = 2.5, 5.0, 3
"""Collectives among ranks that share tokens, mean of both directions, and operations of one.

With sequence parallelism grouped queries gather once and scatter once forward, and gather twice and
scatter once backward, as the two products of shared experts do; MLA gathers for queries, keys and
positions apart (4 and 6; Megatron-Core's `MLASelfAttention`). Each is an allocation, a launch, and
events between two streams: counted by hand, when rows of microbatch 1 had been seen to be short.
"""

NCCL_OVER_EFA = HostWait(byte_s=23e-12)
"""What NCCL's all-to-all over EFA adds: AWS's two fit rows are 3 % (DeepSeek-V3) and 1 % (Qwen3-235B) too long."""

DEEPEP_OVER_EFA = HostWait(copy_s=1.1e-6)
"""What hosts poll where DeepEP's ports go over EFA, for each token that goes to another node.

The two fit rows ask for 0.78 (DeepSeek-V3) and 1.41 us (Qwen3-235B). That it holds up the host was
chosen after the rows with overlap had been seen.
"""

PLAIN = 1.73
"""Times that kernels of plain Megatron-LM take of what they are priced at, experts without a grouped product and all.

SimuMax's two fit rows ask for 1.75 (DeepSeek-V2) and 1.71 (DeepSeek-V3): their batches are padded
to a capacity, so that no host waits, and take longer than any host.
"""


def recipe_of(row: Fields) -> Recipe:
    """Sequence, batch, microbatch and precision of the row; Megatron's distributed optimizer."""
    return Recipe(
        sequence=whole(row, "seq"),
        batch=whole(row, "gbs"),
        microbatch=whole(row, "mbs"),
        precision=FP8 if "fp8" in (row.get("precision") or "") else BF16,
        recompute=recompute_of(row),
        slower=PLAIN if row.get("source") == "SimuMax" else 1.0,
        zero=1,
    )


def recompute_of(row: Fields) -> Recompute:
    """What Megatron-Bridge's recipes of DeepSeek-V3 compute again.

    That of Qwen3-235B computes nothing again.

    On 256 GPUs whole layers (`deepseek_v3_pretrain_config_32nodes`), with which Megatron refuses to
    overlap; AWS's rows of NCCL marked fit agree with each other so and not without. In its
    performance recipes MLA's way up.
    """
    source = row.get("source") if row["model"] == "deepseek-v3" else ""
    if source == "AWS" and row.get("overlap") == "off":
        return FULL
    return Recompute(name="mla_up_proj", modules=("mla_up_proj",)) if source == "Megatron-Bridge" else NONE


def host_of(row: Fields, model: ModelShape) -> HostWait:
    """What hosts take to launch an MoE layer, and what sends over EFA add.

    Megatron-Bridge's recipes for GB200 and GB300 put attention, router and what comes before a
    dispatch into CUDA graphs: nothing is said of hosts there.
    """
    count = operations(model, tp=whole(row, "tp"))
    launched = HostWait(launch_s=0.0 if row["gpu"].startswith("gb") else OPERATION_S * count)
    if row.get("source") != "AWS":
        return launched
    return replace(NCCL_OVER_EFA if dispatch_of(row) == "nccl" else DEEPEP_OVER_EFA, launch_s=launched.launch_s)


def operations(model: ModelShape, *, tp: int = 1) -> float:
    """What a host launches for a direction of an MoE layer, whose ranks may share tokens."""
    latent, shared = model.attention.kind == "mla", bool(model.shared_intermediate)
    sums = (OF_LATENT_SUMS if latent else SUMS) + shared * SUMS if tp > 1 else 0.0
    return OPERATIONS + latent * OF_LATENT_ATTENTION + shared * OF_SHARED_EXPERTS + OF_A_SUM * sums


def dispatch_of(row: Fields) -> str:
    """NCCL's all-to-all where the row says so, else kernels that send a copy to each domain once."""
    return "nccl" if (row.get("dispatcher") or "").startswith("nccl") else "per_domain"


def whole(row: Fields, name: str, default: int = 1) -> int:
    """A number of the row, or what it is where it is empty.

    Raises
    ------
    ValueError
        No whole number from 1.
    """
    text = row.get(name) or ""
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} = {text!r}: a whole number from 1")
    return int(text)


def positive(row: Fields, name: str) -> float:
    """A number of the row.

    Raises
    ------
    ValueError
        None, or not above 0.
    """
    try:
        value = float(row.get(name) or "")
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} = {row.get(name)!r}: a positive number")
    return value
