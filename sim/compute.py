"""What the arithmetic of a step costs on each rank: experts, router, shared experts, dense layers, norms, LM head.

Every function is the roofline of its kernels under the hardware table and never falls when work is added.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import element_types, roofline
from moecast.sim.attention import attention_seconds, into_seconds, projection_seconds

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
    "grouped_gemm_seconds",
    "head_seconds",
    "into_seconds",
    "norm_seconds",
    "permute_seconds",
    "projection_seconds",
    "router_seconds",
    "selection_seconds",
    "shared_expert_seconds",
    "tile_rows",
    "unpermute_seconds",
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
    load, inner, hidden = np.asarray(load_GP), -(-model.expert_intermediate // etp), model.expert_width
    rows_G = _moved_rows(hardware, load, phase)
    ups = model.mlp_matrices - 1
    up = grouped_gemm_seconds(model, hardware, load, phase=phase, inner=hidden, outer=ups * inner, sms=sms)
    activation_bytes = 2 * ups * inner + _input_bytes(model, hardware, inner)
    activation = roofline.memory_seconds(hardware, rows_G * activation_bytes)
    down = grouped_gemm_seconds(model, hardware, load, phase=phase, inner=inner, outer=hidden, sms=sms)
    total: Float = up + activation + down + 3 * hardware.kernel_launch_s
    if phase == "prefill":
        total = total + permute_seconds(model, hardware, rows_G) + unpermute_seconds(model, hardware, rows_G)
    return total


def permute_seconds(model: ModelShape, hardware: Hardware, rows_G: npt.ArrayLike) -> Float:
    """Sort the rows that came by expert: each is read and written once."""
    row_bytes = 2 * _input_bytes(model, hardware, model.expert_width)
    return roofline.memory_seconds(hardware, np.asarray(rows_G) * row_bytes) + hardware.kernel_launch_s


def unpermute_seconds(model: ModelShape, hardware: Hardware, rows_G: npt.ArrayLike) -> Float:
    """Sum the experts' bf16 rows by token, weighted: each is read once, and at most as many are written."""
    return (
        roofline.memory_seconds(hardware, np.asarray(rows_G) * (2 * 2 * model.expert_width)) + hardware.kernel_launch_s
    )


def _tiles(load_GP: npt.NDArray[np.int64], rows_per_tile: int) -> npt.NDArray[np.int64]:
    tiles_G: npt.NDArray[np.int64] = (-(-load_GP // rows_per_tile)).sum(-1)
    return tiles_G


def _moved_rows(hardware: Hardware, load_GP: npt.NDArray[np.int64], phase: str) -> npt.NDArray[np.int64]:
    """Count the rows that move: whole tiles in prefill's contiguous layout, real rows in decode's masked one."""
    rows_per_tile = tile_rows(hardware, phase)
    rows_G: npt.NDArray[np.int64] = (
        _tiles(load_GP, rows_per_tile) * rows_per_tile if phase == "prefill" else load_GP.sum(-1)
    )
    return rows_G


def grouped_gemm_seconds(
    model: ModelShape,
    hardware: Hardware,
    load_GP: npt.ArrayLike,
    *,
    phase: str,
    inner: int,
    outer: int,
    sms: int | None = None,
) -> Float:
    """Multiply each slot's rows by its own [inner, outer] matrix: waves of tiles against weights and rows.

    A tile is `tile_rows` by 128 columns over all of `inner`; a wave is a tile on every SM. Without the launch.
    """
    load, rows_per_tile = np.asarray(load_GP), tile_rows(hardware, phase)
    tiles_G, hit_G, rows_G = _tiles(load, rows_per_tile), (load > 0).sum(-1), _moved_rows(hardware, load, phase)
    used = hardware.sms if sms is None else sms
    waves_G = -(-tiles_G * -(-outer // TILE_COLUMNS) // used)
    tile_flop = 2.0 * rows_per_tile * TILE_COLUMNS * inner
    sm_rate = roofline.flop_rate(hardware, model.weight_type, "grouped_gemm") / hardware.sms
    row_bytes = _input_bytes(model, hardware, inner) + 2 * outer
    traffic_G = hit_G * (inner * outer * model.type_bytes(model.weight_type)) + rows_G * row_bytes
    arithmetic_G = waves_G * np.float64(tile_flop / sm_rate)
    return np.maximum(arithmetic_G, roofline.memory_seconds(hardware, traffic_G))


def _input_bytes(model: ModelShape, hardware: Hardware, width: int) -> int:
    """Bytes of a row that goes into an expert's GEMM: FP8 with scales where the GEMM multiplies FP8."""
    kind = element_types.multiply_type(model.weight_type, hardware.peak_flop_per_s)
    return element_types.row_bytes(kind, width)


def _mlp_seconds(
    model: ModelShape, hardware: Hardware, tokens_G: npt.ArrayLike, inner: int, *, element_type: str
) -> Float:
    ups = model.mlp_matrices - 1
    up = roofline.gemm_seconds(hardware, tokens_G, inner=model.hidden, outer=ups * inner, element_type=element_type)
    activation = roofline.elementwise_seconds(hardware, tokens_G, row_bytes=(ups + 1) * 2 * inner)
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
    """One layer's router: a bf16 GEMM to E scores, and one kernel of softmax and top-k."""
    scores = roofline.gemm_seconds(hardware, tokens_G, inner=model.hidden, outer=model.experts, element_type="bf16")
    for inner, outer in ((model.hidden, model.expert_hidden), (model.expert_hidden, model.hidden)):
        if model.expert_hidden:  # into the width of latent experts, and back
            scores = scores + roofline.gemm_seconds(
                hardware, tokens_G, inner=inner, outer=outer, element_type=model.dense_type
            )
    return scores + selection_seconds(hardware, tokens_G, experts=model.experts, choices=model.choices)


def selection_seconds(hardware: Hardware, tokens_G: npt.ArrayLike, *, experts: int, choices: int) -> Float:
    """Softmax and top-k over the bf16 scores of each token: K + 1 passes, charged at the memory's speed.

    The passes really run in registers and wait for each other; `benchmarks/compute.py` lays this beside published
    times.
    """
    return roofline.elementwise_seconds(hardware, tokens_G, row_bytes=roofline.OUTPUT_BYTES * experts * (choices + 1))


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
