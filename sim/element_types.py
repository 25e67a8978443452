"""Element types: what a number costs to store and to send, and at which rate a GPU multiplies it.

Sources: DeepSeek-V3's config (`quantization_config`: FP8 e4m3 weights, one float32 scale per block of 128 by 128;
activations one per 128 elements) and technical report (arXiv 2412.19437, 3.3); OCP Microscaling Formats v1.0
(MXFP4: 4-bit elements, one 8-bit scale per 32).
"""

from __future__ import annotations

from collections.abc import Mapping

ELEMENT_TYPES = ("bf16", "fp8", "mxfp4")

_WEIGHT_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp8": 1.0 + 4 / (128 * 128), "mxfp4": 0.5 + 1 / 32}
_ACTIVATION_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp8": 1.0}

SCALE_GROUP = 128  # elements of an FP8 activation that share a float32 scale
COPY_METADATA_BYTES = 16  # source index and count that travel with a dispatched copy (DeepEP's low-latency message)


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


def row_bytes(name: str, width: int) -> int:
    """Bytes of one token's activation of `width` elements with its scales; MXFP4 weights meet bf16 activations.

    FP8 carries one float32 per 128 elements, a last incomplete group included.
    """
    if check_type(name) == "fp8":
        return width + 4 * -(-width // SCALE_GROUP)
    return 2 * width


def multiply_type(name: str, peaks: Mapping[str, float]) -> str:
    """Name the rate of the hardware table at which weights of this type are multiplied.

    FP8 needs FP8 tensor cores. MXFP4 runs block-scaled against 8-bit activations where the GPU has FP4 tensor cores
    (their mixed instruction has the FP8 rate), else it is widened to bf16 on the way in.
    """
    if check_type(name) == "fp8" and "fp8" in peaks:
        return "fp8"
    if name == "mxfp4" and "fp4" in peaks and "fp8" in peaks:
        return "fp8"
    return "bf16"
