"""Element types: what a number costs to store and to send, and at which rate a GPU multiplies it.

Sources: DeepSeek-V3's config (`quantization_config`: FP8 e4m3 weights, one float32 scale per block
of 128 by 128; activations one per 128 elements) and technical report (arXiv 2412.19437, 3.3); OCP
Microscaling Formats v1.0 (MXFP4: 4-bit elements, one 8-bit scale per 32); NVIDIA's NVFP4 (one FP8
scale per 16).
"""

from __future__ import annotations

from collections.abc import Mapping

# Bytes per weight, scales included: FP8 with a float32 for each block of 128 by 128; MXFP4 with a
# byte for 32, NVFP4 with one for 16; int4 with a 16-bit scale for 128, 64 or 32 (GPTQ, AWQ,
# compressed-tensors), int8 with one a column.
_WEIGHT_BYTES: Mapping[str, float] = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp32": 4.0,
    "fp8": 1.0 + 4 / (128 * 128),
    "int8": 1.0,
    "mxfp4": 0.5 + 1 / 32,
    "nvfp4": 0.5 + 1 / 16,
    "int4": 0.5 + 2 / 128,
    "int4_g64": 0.5 + 2 / 64,
    "int4_g32": 0.5 + 2 / 32,
}
ELEMENT_TYPES = tuple(_WEIGHT_BYTES)

# Bytes per element of a KV cache: FP8 and int8 with a scale for a whole tensor.
_CACHE_BYTES: Mapping[str, float] = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp32": 4.0,
    "fp8": 1.0,
    "int8": 1.0,
    "nvfp4": 0.5 + 1 / 16,
}
CACHE_TYPES = tuple(_CACHE_BYTES)

SCALE_GROUP = 128  # elements of an FP8 activation that share a float32 scale
# source index and count that travel with a dispatched copy (DeepEP's low-latency message)
COPY_METADATA_BYTES = 16


def check_type(name: str) -> str:
    """`name`, if it is an element type.

    Raises
    ------
    ValueError
        It is not.
    """
    if name not in ELEMENT_TYPES:
        raise ValueError(f"element type {name!r}: one of {', '.join(ELEMENT_TYPES)}")
    return name


def weight_bytes(name: str) -> float:
    """Bytes per weight, its share of the block scales included."""
    return _WEIGHT_BYTES[check_type(name)]


def check_cache_type(name: str) -> str:
    """`name`, if a KV cache can be of this type.

    Raises
    ------
    ValueError
        It cannot.
    """
    if name not in CACHE_TYPES:
        raise ValueError(f"KV cache type {name!r}: one of {', '.join(CACHE_TYPES)}")
    return name


def cache_bytes(name: str, width: int) -> int:
    """Bytes of `width` elements in a KV cache."""
    return round(width * _CACHE_BYTES[check_cache_type(name)])


def row_bytes(name: str, width: int) -> int:
    """Bytes of one token's activation of `width` elements with its scales.

    Most types' weights meet 16-bit ones.

    FP8 carries one float32 per 128 elements, a last incomplete group included; NVFP4 (as a rate of
    the hardware table: "fp4") a byte per 16.
    """
    if name in ("fp4", "nvfp4"):
        return -(-width // 2) + -(-width // 16)
    if check_type(name) == "fp8":
        return width + 4 * -(-width // SCALE_GROUP)
    return 4 * width if name == "fp32" else 2 * width


def multiply_type(name: str, peaks: Mapping[str, float]) -> str:
    """Name the rate of the hardware table at which weights of this type are multiplied.

    FP8 needs FP8 tensor cores, NVFP4 FP4 ones. MXFP4 runs block-scaled against 8-bit activations
    where the GPU has FP4 tensor cores (their mixed instruction has the FP8 rate). What the GPU has
    no cores for is widened to bf16 on the way in, as int4 and int8 are everywhere: their weights
    are read small and multiplied in bf16.
    """
    if check_type(name) == "fp8" and "fp8" in peaks:
        return "fp8"
    if name == "nvfp4" and "fp4" in peaks:
        return "fp4"
    if name == "mxfp4" and "fp4" in peaks and "fp8" in peaks:
        return "fp8"
    return "bf16"
