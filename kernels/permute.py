"""Tokens sorted by expert and back: the index, the copy out, the weighted sum home.

Each expert's rows begin at a multiple of the tile, so that a tile of the grouped GEMM never mixes
experts. Rows between an expert's last token and the next tile are *padding*: nothing writes or
reads them. The index is built without atomics and without asking the GPU for a number, so it is the
same in every run and fits in a CUDA graph.

Axes: T token, K choice, X choice flattened (T·K), E expert, C chunk of choices, M tile of rows, R
row, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 128
# Said, not left to Triton's default, which changes between versions: no multiply and add are joined
# into one rounding.
LAUNCH: dict[str, bool] = {"enable_fp_fusion": False}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileIndex:
    """Where every choice stands in the padded layout.

    Parameters
    ----------
    row_X
        int32: row of each choice; -1 for no choice.
    expert_M, rows_M
        int32: each tile's expert (-1 beyond the last) and how many of its rows hold a token.
    tile
        Rows of a tile.
    """

    row_X: Tensor
    expert_M: Tensor
    rows_M: Tensor
    tile: int

    @property
    def rows(self) -> int:
        """R: rows of the padded layout, an upper bound known without looking at the routing."""
        return len(self.expert_M) * self.tile


@triton.jit
def _count_kernel(
    expert_ptr: tl.tensor,
    count_ptr: tl.tensor,
    n_choices: tl.tensor,
    experts: tl.tensor,
    CHUNK: tl.constexpr,
    EXPERTS: tl.constexpr,
) -> None:
    """Count the choices of each expert in one chunk: count_CE."""
    chunk = tl.program_id(0)
    choice = chunk * CHUNK + tl.arange(0, CHUNK)
    chosen = tl.load(expert_ptr + choice, mask=choice < n_choices, other=-1)
    expert = tl.arange(0, EXPERTS)
    count = tl.sum((chosen[:, None] == expert[None, :]).to(tl.int32), axis=0)
    tl.store(count_ptr + chunk * experts + expert, count, mask=expert < experts)


@triton.jit
def _place_kernel(
    expert_ptr: tl.tensor,
    first_ptr: tl.tensor,
    row_ptr: tl.tensor,
    n_choices: tl.tensor,
    experts: tl.tensor,
    CHUNK: tl.constexpr,
) -> None:
    """Give each choice of one chunk its row: its expert's first row for this chunk plus its rank in the chunk."""
    chunk = tl.program_id(0)
    local = tl.arange(0, CHUNK)
    choice = chunk * CHUNK + local
    inside = choice < n_choices
    chosen = tl.load(expert_ptr + choice, mask=inside, other=-1)
    # The same ids again as a row vector: a second load is simpler than a transpose.
    others = tl.load(
        expert_ptr + chunk * CHUNK + local[None, :], mask=(chunk * CHUNK + local[None, :]) < n_choices, other=-1
    )
    earlier = (others == chosen[:, None]) & (local[None, :] < local[:, None])
    rank = tl.sum(earlier.to(tl.int32), axis=1)
    valid = chosen >= 0
    first = tl.load(first_ptr + chunk * experts + chosen, mask=valid, other=0)
    tl.store(row_ptr + choice, tl.where(valid, first + rank, -1), mask=inside)


@triton.jit
def _permute_kernel(
    x_ptr: tl.tensor,
    row_ptr: tl.tensor,
    out_ptr: tl.tensor,
    hidden: tl.tensor,
    CHOICES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Read one token once and write it to the row of each of its choices."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    value = tl.load(x_ptr + token * hidden + column, mask=inside)
    for choice in range(CHOICES):
        row = tl.load(row_ptr + token * CHOICES + choice).to(tl.int64)
        # A limit instead of `inside & (row >= 0)`: the interpreter spreads a scalar truth value as
        # an int32.
        tl.store(out_ptr + row * hidden + column, value, mask=column < tl.where(row >= 0, hidden, 0))


@triton.jit
def _unpermute_kernel(
    y_ptr: tl.tensor,
    row_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    out_ptr: tl.tensor,
    hidden: tl.tensor,
    CHOICES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Sum a token's rows times their gates, in float32 and in the order of its choices."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for choice in range(CHOICES):
        row = tl.load(row_ptr + token * CHOICES + choice).to(tl.int64)
        gate = tl.load(gate_ptr + token * CHOICES + choice, mask=row >= 0, other=0.0).to(tl.float32)
        value = tl.load(y_ptr + row * hidden + column, mask=column < tl.where(row >= 0, hidden, 0), other=0.0)
        total += gate * value.to(tl.float32)
    tl.store(out_ptr + token * hidden + column, total.to(out_ptr.dtype.element_ty), mask=inside)


def build_index(experts_TK: Tensor, experts: int, tile: int) -> TileIndex:
    """Sort the choices by expert, each expert padded to whole tiles; stable in token order.

    Parameters
    ----------
    experts_TK
        int32 [T, K]; ids from 0 to `experts` - 1, or -1.
    experts
        E.
    tile
        Rows of a tile.
    """
    expert_X = experts_TK.reshape(-1).contiguous()
    n, device = len(expert_X), expert_X.device
    chunks = triton.cdiv(n, CHUNK)
    count_CE = torch.empty(chunks, experts, dtype=torch.int32, device=device)
    _count_kernel[(chunks,)](
        expert_X, count_CE, n, experts, CHUNK=CHUNK, EXPERTS=triton.next_power_of_2(experts), **LAUNCH
    )
    load_E = count_CE.sum(0, dtype=torch.int32)
    tiles_E = (load_E + (tile - 1)) // tile
    end_tile_E = tiles_E.cumsum(0, dtype=torch.int32)
    first_tile_E = end_tile_E - tiles_E
    first_CE = first_tile_E * tile + count_CE.cumsum(0, dtype=torch.int32) - count_CE
    row_X = torch.empty(n, dtype=torch.int32, device=device)
    _place_kernel[(chunks,)](expert_X, first_CE, row_X, n, experts, CHUNK=CHUNK, **LAUNCH)

    tile_M = torch.arange(most_tiles(n, experts, tile), dtype=torch.int32, device=device)
    expert_M = torch.searchsorted(end_tile_E, tile_M, right=True, out_int32=True)
    used_M = expert_M < experts
    held_M = expert_M.clamp(max=experts - 1)
    rows_M = (load_E[held_M] - (tile_M - first_tile_E[held_M]) * tile).clamp(max=tile)
    return TileIndex(
        row_X=row_X,
        expert_M=torch.where(used_M, expert_M, -1),
        rows_M=torch.where(used_M, rows_M, 0),
        tile=tile,
    )


def most_tiles(n_choices: int, experts: int, tile: int) -> int:
    """Bound the tiles that this many choices can need, however they fall on the experts."""
    return (n_choices + min(experts, n_choices) * (tile - 1)) // tile


def permute(x_TH: Tensor, index: TileIndex) -> Tensor:
    """Copy each token to the rows of its choices: [R, H], padding rows undefined."""
    tokens, hidden = x_TH.shape
    out_RH = torch.empty(index.rows, hidden, dtype=x_TH.dtype, device=x_TH.device)
    block = min(1024, triton.next_power_of_2(hidden))
    grid = (tokens, triton.cdiv(hidden, block))
    _permute_kernel[grid](x_TH, index.row_X, out_RH, hidden, CHOICES=len(index.row_X) // tokens, BLOCK=block, **LAUNCH)
    return out_RH


def unpermute(y_RH: Tensor, index: TileIndex, gates_TK: Tensor) -> Tensor:
    """Each token's gate-weighted sum over its rows: [T, H] in the type of `y_RH`."""
    tokens, choices = gates_TK.shape
    hidden = y_RH.shape[1]
    out_TH = torch.empty(tokens, hidden, dtype=y_RH.dtype, device=y_RH.device)
    block = min(1024, triton.next_power_of_2(hidden))
    grid = (tokens, triton.cdiv(hidden, block))
    _unpermute_kernel[grid](y_RH, index.row_X, gates_TK, out_TH, hidden, CHOICES=choices, BLOCK=block, **LAUNCH)
    return out_TH
