"""A lower bound on the passes of a layer's experts: convex in the rows that a rank serves and in its experts hit.

Rows of whole tiles are at least the rows; waves of whole tiles take at least the tiles over the SMs; so each product
takes at least the larger of two linear functions, and the movement of rows at least a linear one. Launches are counted
where a rank without rows pays them, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moecast.sim.cost import ExpertBlock, costs_of, expert_roofline, roofline
from moecast.sim.cost.expert_roofline import TILE_COLUMNS
from moecast.sim.training.passes import ACCUMULATE_BYTES, Passes

if TYPE_CHECKING:
    from moecast.sim.model import ModelShape
    from moecast.sim.training import Precision
    from moecast.topology import Hardware


def expert_floor(
    model: ModelShape, hardware: Hardware, rows: float, hits: float, *, precision: Precision, etp: int = 1
) -> Passes:
    """At most what `moecast.sim.training.modules.expert_passes` says of any loads with such means of rows and hits."""
    typed = precision.of(model)
    forward_s = costs_of(hardware).expert_floor_seconds(ExpertBlock.of(typed, etp=etp), rows, hits, phase="prefill")
    block = ExpertBlock.of(model, etp=etp)
    return Passes(
        forward_G=np.asarray(forward_s),
        input_G=np.asarray(_inputs_s(block, hardware, rows, hits, precision)),
        weight_G=np.asarray(_weights_s(block, hardware, rows, hits, precision)),
    )


def _inputs_s(block: ExpertBlock, hardware: Hardware, rows: float, hits: float, precision: Precision) -> float:
    """Gradients of the rows: two permutations and a product with each matrix the other way round."""
    typed = replace(block, weight_type=precision.input_gradient)
    moved = (replace(block, weight_type="bf16"), block)
    per_row_s = sum(
        float(kernel(each, hardware, np.array([1]))[0]) - hardware.kernel_launch_s
        for kernel, each in zip(
            (expert_roofline.permute_seconds, expert_roofline.unpermute_seconds), moved, strict=True
        )
    )
    total = rows * per_row_s + (2 + len(block.matrices)) * hardware.kernel_launch_s
    for inner, outer in block.matrices:
        flop_s = 2.0 * rows * inner * outer / roofline.flop_rate(hardware, typed.weight_type, "grouped_gemm")
        row_bytes = typed.row_bytes(hardware, outer) + 2 * inner
        traffic = hits * typed.matrix_bytes(inner, outer) + rows * row_bytes
        total += max(flop_s, float(roofline.memory_seconds(hardware, traffic)))
    return total


def _weights_s(block: ExpertBlock, hardware: Hardware, rows: float, hits: float, precision: Precision) -> float:
    """Gradients of the weights: a product for each expert, added to the sum of earlier microbatches."""
    sm_rate = roofline.flop_rate(hardware, precision.weight_gradient, "grouped_gemm") / hardware.sms
    total = 2 * hardware.kernel_launch_s
    for inner, outer in block.matrices:
        tiles = -(-inner // TILE_COLUMNS) * -(-outer // TILE_COLUMNS)
        arithmetic_s = 2.0 * TILE_COLUMNS * TILE_COLUMNS / sm_rate * rows * tiles / hardware.sms
        traffic = hits * (inner * outer * ACCUMULATE_BYTES * precision.gradient_bytes)
        total += max(arithmetic_s, float(roofline.memory_seconds(hardware, traffic)))
    return total
