"""Compiles every kernel for an H100/H200 without having one; run by test_compile.py in a process of its own."""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moecast.kernels import grouped_gemm, permute

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 << 10


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: Any) -> Any:
    names = list(types)
    # What a launch finds out by itself: pointers and widths are multiples of 16, which the pipeline needs.
    aligned = [name for name in names if types[name].startswith("*") or name in {"columns", "depth", "hidden"}]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=HOPPER, options=permute.LAUNCH | options)


def compile_gemm(*, swiglu: bool, per_expert: int) -> Any:
    tiling = grouped_gemm.choose_tiling(
        choices_per_expert=per_expert, dtype=torch.bfloat16, swiglu=swiglu, shared_bytes=SHARED_BYTES
    )
    pointers = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "out_ptr": "*bf16", "expert_ptr": "*i32", "rows_ptr": "*i32"}
    constants = {
        "ROWS": tiling.rows, "COLUMNS": tiling.columns, "DEPTH": tiling.depth, "GROUP": tiling.group,
        "SWIGLU": swiglu, "UPCAST": False,
    }  # fmt: skip
    return compile_kernel(
        grouped_gemm._grouped_gemm_kernel,
        pointers | {"tiles": "i32", "columns": "i32", "depth": "i32"},
        constants,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )


def main() -> None:
    large = compile_gemm(swiglu=True, per_expert=1000)
    assert "wgmma" in large.asm["ptx"], "the large tile does not use Hopper's tensor cores"
    for compiled in (large, compile_gemm(swiglu=False, per_expert=1)):
        assert compiled.metadata.shared <= SHARED_BYTES
    compile_kernel(
        permute._count_kernel,
        {"expert_ptr": "*i32", "count_ptr": "*i32", "n_choices": "i32", "experts": "i32"},
        {"CHUNK": permute.CHUNK, "EXPERTS": 256},
    )
    compile_kernel(
        permute._place_kernel,
        {"expert_ptr": "*i32", "first_ptr": "*i32", "row_ptr": "*i32", "n_choices": "i32", "experts": "i32"},
        {"CHUNK": permute.CHUNK},
    )
    compile_kernel(
        permute._permute_kernel,
        {"x_ptr": "*bf16", "row_ptr": "*i32", "out_ptr": "*bf16", "hidden": "i32"},
        {"CHOICES": 8, "BLOCK": 1024},
    )
    compile_kernel(
        permute._unpermute_kernel,
        {"y_ptr": "*bf16", "row_ptr": "*i32", "gate_ptr": "*fp32", "out_ptr": "*bf16", "hidden": "i32"},
        {"CHOICES": 8, "BLOCK": 1024},
    )
    sys.stdout.write("compiled\n")


if __name__ == "__main__":
    main()
