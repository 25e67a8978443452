"""How an engine was set in a serving run that others measured, as far as its row says nothing.

A row names engine, GPU, layout and concurrency, and no option of the engine. Where an engine's
default cannot be what ran, since the run would not have done what it states, the nearest setting
that can is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from moecast.errors import MoecastError
from moecast.sim import ModelShape
from moecast.sim.memory import MEMORY_FRACTION
from moecast.sim.serving.batchers.sglang import chunk_tokens
from moecast.sim.serving.capacity import kv_capacity
from moecast.validate.published.serving import MEAN_LENGTH, ServingRow

WHOLE_PROMPT_TOKENS = 8192
SPARE_FRACTION = 0.95
PROMPT_RANK_TOKENS = 16384
"""Of each rank of SGLang's workers that compute prompts only.

Its instructions for such workers with attention by DP give 131,072 to 8 ranks (sgl-project/sglang
issue 6017), Dynamo's script for GB200 in NVFP4 65,536 to 4.
"""
POLLED_GPUS = ("b200_sxm", "b300_sxm")
MANY_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Options of an engine in a run.

    Parameters
    ----------
    kv_type
        Of the cache.
    memory_fraction
        Of a GPU's memory that the engine takes.
    batched_tokens
        The budget of an iteration; None: the engine's default.
    receive_every
        Iterations without prompts between two looks at who has come.
    """

    kv_type: str
    memory_fraction: float = MEMORY_FRACTION
    batched_tokens: int | None = None
    receive_every: int = 1


def settings_of(row: ServingRow) -> RunSettings:
    """How the engine of a row that decodes was set."""
    budget = batched_tokens_of(row)
    kv_type, fraction = cache_of(row, budget or WHOLE_PROMPT_TOKENS)
    return RunSettings(
        kv_type=kv_type, memory_fraction=fraction, batched_tokens=budget, receive_every=receive_every_of(row)
    )


def batched_tokens_of(row: ServingRow) -> int | None:
    """The budget of an iteration where prompts are not cut: the longest one has to fit beside everybody's token.

    With less, a prompt would wait until nobody is left who decodes. SGLang's default depends on the
    GPU's memory. None: the engine's default.
    """
    if row.engine == "sglang":
        return chunk_tokens(row.cluster().hardware.memory_bytes, sharers=row.dp)
    if row.engine != "trtllm":
        return None
    return max(WHOLE_PROMPT_TOKENS, row.isl + round(row.concurrency))


def prompt_tokens_of(worker: ServingRow) -> int | None:
    """The budget of an iteration of a worker that computes prompts only."""
    return PROMPT_RANK_TOKENS if worker.engine == "sglang" else batched_tokens_of(worker)


def receive_every_of(row: ServingRow) -> int:
    """Iterations between two looks of SGLang's scheduler at who has come (its `scheduler_recv_interval`).

    Of rows marked fit those on B200 and B300 with DeepSeek's model and 128 in flight wait for 30
    decode steps, and the one with Qwen's on B300 and 256 in flight for none, as those on H200. That
    few in flight are polled more often, from 16 on seldom, and that Qwen's runs on B200 are polled,
    too, was read off rows marked check: it is an option of the runs, which the rows do not state.
    """
    polled = row.gpu in POLLED_GPUS and not (row.gpu == "b300_sxm" and "qwen" in row.model.lower())
    if row.engine != "sglang" or row.mode == "disagg" or not polled:
        return 1
    return 30 if row.concurrency >= MANY_IN_FLIGHT else 10


def cache_of(row: ServingRow, batched_tokens: int) -> tuple[str, float]:
    """Element type of the cache, and the part of the memory: the first choice that holds what was in flight.

    The engine's default; an FP8 cache; an FP8 cache and more memory. Where none does, the default.
    Of checkpoints in NVFP4 vLLM takes FP8 at once: they carry its scales.
    """
    default = row.shape().kv_type
    first = "fp8" if row.engine == "vllm" and row.precision == "fp4" else default
    choices = ((first, MEMORY_FRACTION), ("fp8", MEMORY_FRACTION), ("fp8", SPARE_FRACTION))
    tokens = round(MEAN_LENGTH * (row.isl + row.osl))
    wanted = row.concurrency * tokens / (row.dp * row.workers)
    for kv_type, fraction in choices:
        model = row.shape().with_types(kv_type=kv_type)
        if _tokens_held(row, model, tokens, batched_tokens, fraction) >= wanted:
            return kv_type, fraction
    return first, MEMORY_FRACTION


def _tokens_held(row: ServingRow, model: ModelShape, tokens: int, batched_tokens: int, fraction: float) -> float:
    try:
        capacity = kv_capacity(
            model,
            row.plan(model),
            row.cluster().hardware,
            tokens=tokens,
            batched_tokens=batched_tokens,
            fraction=fraction,
        )
    except MoecastError:
        return 0.0
    return capacity.free_bytes / capacity.token_bytes
