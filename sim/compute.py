"""What the arithmetic of a step costs on each rank: experts, router, shared experts, dense layers, norms, LM head.

Every function is the roofline of its kernels under the hardware table and never falls when work is added.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import element_types, roofline
from moecast.sim.attention import attention_seconds

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

TILE_COLUMNS = 128  # output columns of a grouped GEMM's tile (DeepGEMM's and CUTLASS's usual block)
DECODE_TILE_ROWS = 64  # the smallest tile of Hopper's warp-group MMA, which masked decode kernels take

__all__ = [
    "attention_seconds",
    "dense_layer_seconds",
    "embedding_seconds",
    "expert_seconds",
    "head_seconds",
    "norm_seconds",
    "router_seconds",
    "shared_expert_seconds",
    "tile_rows",
]


def tile_rows(hardware: Hardware, phase: str) -> int:
    """Tokens per tile of the experts' grouped GEMM."""
    return min(DECODE_TILE_ROWS, hardware.gemm_tile_rows) if phase == "decode" else hardware.gemm_tile_rows


def expert_seconds(
    model: ModelShape,
    hardware: Hardware,
    load_GP: npt.ArrayLike,
    *,
    phase: str,
    sms: int | None = None,
    etp: int = 1,
) -> Float:
    """One layer's routed experts on each rank: ragged gate-and-up GEMM, activation, ragged down GEMM.

    Each slot's rows are rounded up to whole tiles, and the tiles run in waves over the SMs; each kernel takes the time
    of its waves or of its traffic, whichever is longer. Weights are read once per slot that has work. Launches are
    always paid: the counts are on the device, so empty kernels are launched too.

    Prefill (contiguous layout): rows are padded to whole tiles in memory, and two more kernels permute them by expert
    and back. Decode (low-latency, masked layout): the buffer has room for the most that can come, of which kernels skip
    what is empty, so only real rows move, and dispatch has sorted them already; whole tiles are still computed.

    Parameters
    ----------
    load_GP
        [..., G, P] choices served in each slot.
    phase
        `prefill` or `decode`.
    sms
        SMs that communication leaves; None: all.
    etp
        Ranks that share each expert.

    Returns
    -------
    float64 [..., G], seconds.
    """
    load = np.asarray(load_GP)
    rows_per_tile = tile_rows(hardware, phase)
    tiles_GP = -(-load // rows_per_tile)
    tiles, hit = tiles_GP.sum(-1), (load > 0).sum(-1)
    rows = tiles * rows_per_tile if phase == "prefill" else load.sum(-1)
    inner = -(-model.expert_intermediate // etp)
    hidden_bytes = _input_bytes(model, hardware, model.hidden)
    inner_bytes = _input_bytes(model, hardware, inner)
    total = _grouped_gemm(
        model, hardware, tiles, hit, rows,
        shape=(rows_per_tile, model.hidden, 2 * inner), input_bytes=hidden_bytes, sms=sms,
    )  # fmt: skip
    total = total + roofline.memory_seconds(hardware, rows * (2 * 2 * inner + inner_bytes))
    total = total + _grouped_gemm(
        model, hardware, tiles, hit, rows,
        shape=(rows_per_tile, inner, model.hidden), input_bytes=inner_bytes, sms=sms,
    )  # fmt: skip
    kernels = 3
    if phase == "prefill":  # permute moves rows in and out, unpermute reads bf16 rows and writes their sums
        total = total + roofline.memory_seconds(hardware, rows * (2 * hidden_bytes + 2 * 2 * model.hidden))
        kernels = 5
    return total + kernels * hardware.kernel_launch_s


def _grouped_gemm(
    model: ModelShape,
    hardware: Hardware,
    tiles_G: npt.NDArray[np.int64],
    hit_G: npt.NDArray[np.int64],
    rows_G: npt.NDArray[np.int64],
    *,
    shape: tuple[int, int, int],
    input_bytes: int,
    sms: int | None,
) -> Float:
    """Waves of tiles against weights and rows; `shape` is (rows of a tile, inner, outer)."""
    rows_per_tile, inner, outer = shape
    used = hardware.sms if sms is None else sms
    waves_G = -(-tiles_G * -(-outer // TILE_COLUMNS) // used)
    tile_flop = 2.0 * rows_per_tile * TILE_COLUMNS * inner
    sm_rate = roofline.flop_rate(hardware, model.weight_type, "grouped_gemm") / hardware.sms
    traffic_G = hit_G * (inner * outer * model.type_bytes(model.weight_type)) + rows_G * (input_bytes + 2 * outer)
    arithmetic_G = waves_G * np.float64(tile_flop / sm_rate)
    return np.maximum(arithmetic_G, roofline.memory_seconds(hardware, traffic_G))


def _input_bytes(model: ModelShape, hardware: Hardware, width: int) -> int:
    """Bytes of a row that goes into an expert's GEMM: FP8 with scales where the GEMM multiplies FP8."""
    kind = element_types.multiply_type(model.weight_type, hardware.peak_flop_per_s)
    return element_types.row_bytes(kind, width)


def _mlp_seconds(
    model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, inner: int, *, element_type: str
) -> Float:
    up = roofline.gemm_seconds(hardware, tokens_G, inner=model.hidden, outer=2 * inner, element_type=element_type)
    activation = roofline.elementwise_seconds(hardware, tokens_G, row_bytes=3 * 2 * inner)
    down = roofline.gemm_seconds(hardware, tokens_G, inner=inner, outer=model.hidden, element_type=element_type)
    return up + activation + down


def shared_expert_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Float:
    """One layer's shared experts over each rank's own tokens, and adding their output; 0 without shared experts."""
    if not model.shared_intermediate:
        return np.zeros(np.shape(tokens_G))
    inner = -(-model.shared_intermediate // tp)
    add = roofline.elementwise_seconds(hardware, tokens_G, row_bytes=3 * 2 * model.hidden)
    return _mlp_seconds(model, hardware, tokens_G, inner, element_type=model.dense_type) + add


def dense_layer_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Float:
    """Compute the MLP of one layer that is not MoE; its attention and norms are counted like those of all layers."""
    if not model.dense_intermediate:
        return np.zeros(np.shape(tokens_G))
    return _mlp_seconds(model, hardware, tokens_G, -(-model.dense_intermediate // tp), element_type=model.dense_type)


def router_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike) -> Float:
    """One layer's router: a bf16 GEMM to E scores, and one kernel of softmax and top-k.

    The selection is charged as K + 1 readings of the float32 scores at the memory's speed; `benchmarks/compute.py` lays
    it beside published times.
    """
    scores = roofline.gemm_seconds(hardware, tokens_G, inner=model.hidden, outer=model.experts, element_type="bf16")
    return scores + selection_seconds(hardware, tokens_G, experts=model.experts, choices=model.choices)


def selection_seconds(hardware: Hardware, tokens_G: npt.ArrayLike, *, experts: int, choices: int) -> Float:
    """Softmax and top-k over the scores of each token."""
    return roofline.elementwise_seconds(hardware, tokens_G, row_bytes=4 * experts * (choices + 1))


def norm_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike) -> Float:
    """One layer's two norms, each fused with the addition to the residual stream: two reads and two writes."""
    return roofline.elementwise_seconds(hardware, tokens_G, row_bytes=2 * 4 * 2 * model.hidden, kernels=2)


def embedding_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike) -> Float:
    """Look up the tokens: a read and a write."""
    return roofline.elementwise_seconds(hardware, tokens_G, row_bytes=2 * 2 * model.hidden)


def head_seconds(model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, *, tp: int = 1) -> Float:
    """Last norm, LM head and sampling for the tokens whose next token is wanted (prefill: the last of each sequence).

    Sampling reads and writes the float32 logits once.
    """
    vocab = -(-model.vocab // tp)
    norm = roofline.elementwise_seconds(hardware, tokens_G, row_bytes=4 * 2 * model.hidden)
    logits = roofline.gemm_seconds(hardware, tokens_G, inner=model.hidden, outer=vocab, element_type="bf16")
    return norm + logits + roofline.elementwise_seconds(hardware, tokens_G, row_bytes=2 * 4 * vocab)
