"""One matrix product per expert in a single launch, with SwiGLU fused into the first of the two.

Axes: R row, M tile of rows, E expert, D depth (summed over), N column of the result, U gate and up
rows (2·N).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from moecast.kernels.device import shared_memory_bytes, support
from moecast.kernels.permute import LAUNCH, TileIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How the product is cut: the tile one program makes, and what it keeps in flight.

    `group` row tiles are walked before the next column block, so that an expert's weights are read
    from the L2 cache.
    """

    rows: int
    columns: int
    depth: int
    group: int = 8
    warps: int = 4
    stages: int = 3


def choose_tiling(
    *,
    choices_per_expert: float,
    dtype: torch.dtype,
    swiglu: bool,
    rows: int | None = None,
    shared_bytes: int = 227 << 10,
) -> Tiling:
    """Tiles from the shape alone: many rows per expert want square tiles, few want thin ones that pad less.

    `rows` fixes the tile height, which the two products of a layer share. `shared_bytes` is what
    one thread block can have (227 KiB on Hopper); the pipeline is made as deep as fits, four stages
    at most.
    """
    if rows is None:
        rows = next((r for r in (16, 32, 64) if choices_per_expert <= r), 128)
    depth = 128 // dtype.itemsize  # one 128-byte line of each operand
    columns = 128
    stage_bytes = (rows + columns * (2 if swiglu else 1)) * depth * dtype.itemsize
    return Tiling(
        rows=rows,
        columns=columns,
        depth=depth,
        warps=8 if rows == 128 else 4,
        stages=max(1, min(4, shared_bytes // stage_bytes)),
    )


@triton.jit
def _grouped_gemm_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    expert_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    tiles: tl.tensor,
    columns: tl.tensor,
    depth: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWIGLU: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """Make one tile: x_RD times the tile's expert's weight_END, or with SWIGLU its weight_EUD and the activation."""
    program = tl.program_id(0)
    in_group = GROUP * tl.cdiv(columns, COLUMNS)
    first_tile = program // in_group * GROUP
    height = min(tiles - first_tile, GROUP)
    tile = first_tile + program % in_group % height
    block = program % in_group // height
    expert = tl.load(expert_ptr + tile).to(tl.int64)
    if expert < 0:
        return

    local = tl.arange(0, ROWS)
    row = tile.to(tl.int64) * ROWS + local
    row_inside = local < tl.load(rows_ptr + tile)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    column_inside = column < columns
    step = tl.arange(0, DEPTH)
    x_block = x_ptr + row[:, None] * depth + step[None, :]
    first_row = expert * (2 * columns if SWIGLU else columns)
    weight_block = weight_ptr + (first_row + column)[None, :] * depth + step[:, None]
    up_block = weight_ptr + (first_row + columns + column)[None, :] * depth + step[:, None]

    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    total_up = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, depth, DEPTH):
        inside = start + step < depth
        x = tl.load(x_block + start, mask=row_inside[:, None] & inside[None, :], other=0.0)
        weight_inside = inside[:, None] & column_inside[None, :]
        weight = tl.load(weight_block + start, mask=weight_inside, other=0.0)
        if UPCAST:  # the interpreter multiplies bf16 as if its bits were integers
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        total = tl.dot(x, weight, total, input_precision="ieee")
        if SWIGLU:
            up = tl.load(up_block + start, mask=weight_inside, other=0.0)
            if UPCAST:
                up = up.to(tl.float32)
            total_up = tl.dot(x, up, total_up, input_precision="ieee")

    if SWIGLU:
        total = total * tl.sigmoid(total) * total_up
    out_block = out_ptr + row[:, None] * columns + column[None, :]
    tl.store(out_block, total.to(out_ptr.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])


def grouped_gemm(
    x_RD: Tensor, weight_END: Tensor, index: TileIndex, *, swiglu: bool = False, tiling: Tiling | None = None
) -> Tensor:
    """Multiply each tile of rows with the transposed matrix of its expert, summed in float32.

    Parameters
    ----------
    x_RD
        Rows in the layout of `index`, contiguous.
    weight_END
        One matrix per expert; with `swiglu` it is [E, 2·N, D] and the result ``silu(x·gateᵀ) ·
        (x·upᵀ)``.
    index
        Which expert each tile belongs to.
    tiling
        None: chosen from the shape.

    Returns
    -------
    [R, N] in the type of `x_RD`; padding rows undefined.
    """
    depth, rows = x_RD.shape[1], len(index.expert_M)
    columns = weight_END.shape[1] // (2 if swiglu else 1)
    if tiling is None:
        tiling = choose_tiling(
            choices_per_expert=0, dtype=x_RD.dtype, swiglu=swiglu, rows=index.tile, shared_bytes=_shared_bytes(x_RD)
        )
    out_RN = torch.empty(index.rows, columns, dtype=x_RD.dtype, device=x_RD.device)
    grid = (rows * triton.cdiv(columns, tiling.columns),)
    _grouped_gemm_kernel[grid](
        x_RD,
        weight_END,
        out_RN,
        index.expert_M,
        index.rows_M,
        rows,
        columns,
        depth,
        ROWS=tiling.rows,
        COLUMNS=tiling.columns,
        DEPTH=tiling.depth,
        GROUP=tiling.group,
        SWIGLU=swiglu,
        UPCAST=support().interpreted,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **LAUNCH,
    )
    return out_RN


def _shared_bytes(x: Tensor) -> int:
    return shared_memory_bytes(x.get_device()) if x.is_cuda else 227 << 10
