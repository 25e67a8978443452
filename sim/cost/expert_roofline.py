"""Routed experts by the roofline: waves of whole tiles over the SMs, or traffic, whichever takes longer.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import roofline

if TYPE_CHECKING:
    from moecast.sim.cost.shapes import ExpertBlock
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

TILE_COLUMNS = 128  # output columns of a grouped GEMM's tile (DeepGEMM's and CUTLASS's usual block)
# the smallest tile of Hopper's warp-group MMA, which masked decode kernels take
DECODE_TILE_ROWS = 64


def tile_rows(hardware: Hardware, phase: str) -> int:
    """Tokens per tile of the experts' grouped GEMM."""
    return min(DECODE_TILE_ROWS, hardware.gemm_tile_rows) if phase == "decode" else hardware.gemm_tile_rows


def expert_seconds(
    block: ExpertBlock, hardware: Hardware, load_GP: npt.ArrayLike, *, phase: str, sms: int | None = None
) -> Float:
    """One layer's routed experts on each rank: ragged gate-and-up GEMM, activation, ragged down GEMM.

    Each slot's rows are rounded up to whole tiles, and the tiles run in waves over the SMs; each
    kernel takes the time of its waves or of its traffic, whichever is longer. Weights are read once
    per slot that has work. Launches are always paid: the counts are on the device, so empty kernels
    are launched too.

    Prefill (contiguous layout): rows are padded to whole tiles in memory, and two more kernels
    permute them by expert and back. Decode (low-latency, masked layout): the buffer has room for
    the most that can come, of which kernels skip what is empty, so only real rows move, and
    dispatch has sorted them already; whole tiles are still computed.
    """
    load = np.asarray(load_GP)
    rows_G = _moved_rows(hardware, load, phase)
    into, back = block.matrices
    up = grouped_gemm_seconds(block, hardware, load, phase=phase, inner=into[0], outer=into[1], sms=sms)
    activation_bytes = 2 * into[1] + block.row_bytes(hardware, block.inner)
    activation = roofline.memory_seconds(hardware, rows_G * activation_bytes)
    down = grouped_gemm_seconds(block, hardware, load, phase=phase, inner=back[0], outer=back[1], sms=sms)
    total: Float = up + activation + down + 3 * hardware.kernel_launch_s
    if phase == "prefill":
        total = total + permute_seconds(block, hardware, rows_G) + unpermute_seconds(block, hardware, rows_G)
    return total


def expert_floor_seconds(
    block: ExpertBlock, hardware: Hardware, rows: npt.ArrayLike, hits: npt.ArrayLike, *, phase: str
) -> Float:
    """`expert_seconds` without the loss of tiles and waves: launches, and linear pieces priced per row and hit."""
    tile = tile_rows(hardware, phase)
    rows, hits = np.asarray(rows, np.float64), np.asarray(hits, np.float64)
    seconds = np.full(np.broadcast_shapes(rows.shape, hits.shape), 3 * hardware.kernel_launch_s)
    for inner, outer in block.matrices:
        flop_s = 2.0 * rows * inner * outer / roofline.flop_rate(hardware, block.weight_type, "grouped_gemm")
        weights = hits * block.matrix_bytes(inner, outer)
        seconds = seconds + np.maximum(flop_s, roofline.memory_seconds(hardware, weights + rows * 2 * outer))
    if phase == "prefill":
        # Rows that move are at least the rows that come: a whole tile's price by the row.
        for moved in (permute_seconds, unpermute_seconds):
            per_tile = float(moved(block, hardware, np.array([tile]))[0]) - hardware.kernel_launch_s
            seconds = seconds + rows / tile * per_tile + hardware.kernel_launch_s
    return np.asarray(seconds)


def permute_seconds(block: ExpertBlock, hardware: Hardware, rows_G: npt.ArrayLike) -> Float:
    """Sort the rows that came by expert: each is read and written once."""
    row_bytes = 2 * block.row_bytes(hardware, block.width)
    return roofline.memory_seconds(hardware, np.asarray(rows_G) * row_bytes) + hardware.kernel_launch_s


def unpermute_seconds(block: ExpertBlock, hardware: Hardware, rows_G: npt.ArrayLike) -> Float:
    """Sum the experts' bf16 rows by token, weighted: each is read once, and at most as many are written."""
    return roofline.memory_seconds(hardware, np.asarray(rows_G) * (2 * 2 * block.width)) + hardware.kernel_launch_s


def grouped_gemm_seconds(
    block: ExpertBlock,
    hardware: Hardware,
    load_GP: npt.ArrayLike,
    *,
    phase: str,
    inner: int,
    outer: int,
    sms: int | None = None,
) -> Float:
    """Multiply each slot's rows by its own [inner, outer] matrix: waves of tiles against weights and rows.

    A tile is `tile_rows` by 128 columns over all of `inner`; a wave is a tile on every SM. Without
    the launch.
    """
    load, rows_per_tile = np.asarray(load_GP), tile_rows(hardware, phase)
    tiles_G, hit_G, rows_G = _tiles(load, rows_per_tile), (load > 0).sum(-1), _moved_rows(hardware, load, phase)
    used = hardware.sms if sms is None else sms
    waves_G = -(-tiles_G * -(-outer // TILE_COLUMNS) // used)
    tile_flop = 2.0 * rows_per_tile * TILE_COLUMNS * inner
    sm_rate = roofline.flop_rate(hardware, block.weight_type, "grouped_gemm") / hardware.sms
    traffic_G = hit_G * block.matrix_bytes(inner, outer) + rows_G * (block.row_bytes(hardware, inner) + 2 * outer)
    arithmetic_G = waves_G * np.float64(tile_flop / sm_rate)
    return np.maximum(arithmetic_G, roofline.memory_seconds(hardware, traffic_G))


def _tiles(load_GP: Int, rows_per_tile: int) -> Int:
    tiles_G: Int = (-(-load_GP // rows_per_tile)).sum(-1)
    return tiles_G


def _moved_rows(hardware: Hardware, load_GP: Int, phase: str) -> Int:
    """Count the rows that move: whole tiles in prefill's contiguous layout, real rows in decode's masked one."""
    rows_per_tile = tile_rows(hardware, phase)
    rows_G: Int = _tiles(load_GP, rows_per_tile) * rows_per_tile if phase == "prefill" else load_GP.sum(-1)
    return rows_G
