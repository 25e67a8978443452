"""Tiles fit the machine, whatever the shape."""

from __future__ import annotations

import pytest
import torch

from moecast.kernels.grouped_gemm import choose_tiling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("swiglu", [True, False])
@pytest.mark.parametrize("per_expert", [0.1, 16, 40, 1000])
@pytest.mark.parametrize("shared_bytes", [99 << 10, 163 << 10, 227 << 10])
def test_pipeline_fits_in_shared_memory(dtype: torch.dtype, swiglu: bool, per_expert: float, shared_bytes: int) -> None:
    tiling = choose_tiling(choices_per_expert=per_expert, dtype=dtype, swiglu=swiglu, shared_bytes=shared_bytes)
    stage = (tiling.rows + tiling.columns * (1 + swiglu)) * tiling.depth * dtype.itemsize
    assert stage * tiling.stages <= shared_bytes
    assert tiling.rows >= min(per_expert, 128)
