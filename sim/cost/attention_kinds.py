"""Which of an engine's attention kernels takes a shape, and how kinds of parameters are named.

A kind is "prefill <attention>/<cache> [kernel]" or "decode <cache> [kernel]", element types by
name; the kernel is left out where it is the engine's main one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_SHARED = 32  # query heads that TensorRT-LLM's grouped kernel of decode takes at once
NARROW = 128  # heads narrower than this have other kernels of decode in TensorRT-LLM


def kernel_class(engine: str, phase: str, *, group: npt.ArrayLike, head_dim: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """Name the kernel by shape alone: "" the main one, "separate" and "narrow" in TensorRT-LLM's decode.

    Its masked multi-head kernel takes each query head apart where none or too many share a key
    head.

    Parameters
    ----------
    group
        Query heads that share a key head.
    """
    group_R, head_dim_R = np.broadcast_arrays(np.asarray(group, np.float64), np.asarray(head_dim, np.float64))
    names = np.full(group_R.shape, "", "U40")
    if (engine, phase) != ("trtllm", "decode"):
        return names
    names[head_dim_R < NARROW] = "narrow"
    names[(group_R <= 1) | (group_R > MOST_SHARED)] = "separate"
    return names


def type_names(phase: str, cache: str) -> tuple[str, ...]:
    """Element types under which a kind may stand for a type of cache ("bf16" or "fp8"), the likeliest first."""
    if phase == "decode":
        return (cache,)
    return ("fp8/fp8", "bf16/fp8", "bf16/bf16") if cache == "fp8" else ("bf16/bf16",)
