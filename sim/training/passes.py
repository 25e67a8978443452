"""The three passes of a module in training: forward, input gradient (B) and weight gradient (W).

A GEMM's passes have the same arithmetic in other shapes: Y = X W multiplies [rows, inner] by
[inner, outer]; its input gradient dX = dY W^T reduces over `outer`, its weight gradient dW = X^T dY
over the rows. Splitting the backward pass into B and W is what zero-bubble schedules stand on
(arXiv 2401.10241).

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim import element_types
from moecast.sim.cost import costs_of, roofline
from moecast.sim.cost.expert_roofline import TILE_COLUMNS

if TYPE_CHECKING:
    from moecast.sim.training.precision import Precision
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]

# times an element of the gradients: a weight gradient is added to the sum of earlier microbatches
ACCUMULATE_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passes:
    """Seconds of a module's forward pass, of its input gradients and of its weight gradients on each rank."""

    forward_G: Float
    input_G: Float
    weight_G: Float

    def __add__(self, other: Passes) -> Passes:
        """Two modules, one after the other."""
        return Passes(
            forward_G=self.forward_G + other.forward_G,
            input_G=self.input_G + other.input_G,
            weight_G=self.weight_G + other.weight_G,
        )

    @property
    def backward_G(self) -> Float:
        """Both gradients."""
        return self.input_G + self.weight_G


def nothing(rows_G: npt.ArrayLike) -> Passes:
    """A module that the model does not have."""
    zero_G = np.zeros(np.shape(rows_G))
    return Passes(forward_G=zero_G, input_G=zero_G, weight_G=zero_G)


def elementwise_passes(
    hardware: Hardware, rows_G: npt.ArrayLike, *, forward_bytes: float, backward_bytes: float, kernels: int = 1
) -> Passes:
    """Kernels that only move memory, so many bytes a row in each direction; they have no weights to speak of."""
    return Passes(
        forward_G=costs_of(hardware).elementwise_seconds(rows_G, row_bytes=forward_bytes, kernels=kernels),
        input_G=costs_of(hardware).elementwise_seconds(rows_G, row_bytes=backward_bytes, kernels=kernels),
        weight_G=np.zeros(np.shape(rows_G)),
    )


def gemm_passes(hardware: Hardware, rows_G: npt.ArrayLike, *, inner: int, outer: int, precision: Precision) -> Passes:
    """A linear layer [inner, outer] over each rank's rows, each pass in the recipe's element type."""
    forward_G = costs_of(hardware).gemm_seconds(
        rows_G, inner=inner, outer=outer, element_type=precision.forward, quantised=True
    )
    input_G = costs_of(hardware).gemm_seconds(
        rows_G, inner=outer, outer=inner, element_type=precision.input_gradient, quantised=True
    )
    return Passes(
        forward_G=forward_G + cast_seconds(hardware, rows_G, width=inner, element_type=precision.forward),
        input_G=input_G + cast_seconds(hardware, rows_G, width=outer, element_type=precision.input_gradient),
        weight_G=weight_gradient_seconds(hardware, rows_G, inner=inner, outer=outer, precision=precision),
    )


def cast_seconds(hardware: Hardware, rows_G: npt.ArrayLike, *, width: int, element_type: str) -> Float:
    """Quantise the rows that go into a GEMM; nothing where it multiplies bf16.

    One kernel reads bf16 and writes FP8 twice, along rows for this GEMM and along columns for the
    weight gradient (Transformer Engine's quantisers).
    """
    if element_types.multiply_type(element_type, hardware.peak_flop_per_s) != "fp8":
        return np.zeros(np.shape(rows_G))
    moved = 2 * width + 2 * element_types.row_bytes("fp8", width)
    return costs_of(hardware).elementwise_seconds(rows_G, row_bytes=moved)


def weight_gradient_seconds(
    hardware: Hardware, rows_G: npt.ArrayLike, *, inner: int, outer: int, precision: Precision
) -> Float:
    """Multiply [inner, rows] by [rows, outer] and add the product to the sum of earlier microbatches.

    One launch.

    As fast as the forward product of the same sizes, or as the traffic of the sum, which is read
    and written in the gradients' element type (fused gradient accumulation).
    """
    rows = np.asarray(rows_G, np.float64)
    product_G = costs_of(hardware).gemm_seconds(
        rows, inner=inner, outer=outer, element_type=precision.weight_gradient, quantised=True
    )
    row_bytes = _row_bytes(hardware, precision, inner) + _row_bytes(hardware, precision, outer)
    traffic_G = rows * row_bytes + inner * outer * ACCUMULATE_BYTES * precision.gradient_bytes
    moved_G = roofline.launched(hardware, roofline.memory_seconds(hardware, traffic_G), rows, 1)
    return np.maximum(product_G, moved_G)


def grouped_weight_gradient_seconds(
    hardware: Hardware,
    load_GP: npt.ArrayLike,
    *,
    inner: int,
    outer: int,
    precision: Precision,
    sms: int | None = None,
) -> Float:
    """Multiply each slot's [inner, rows] by its [rows, outer]: one product per expert, which reduces over its rows.

    A tile is 128 by 128 of a product over all of the slot's rows, rounded up to whole tiles of
    rows. Tiles are of unequal depth, so they fill each other's gaps: the time is the work over the
    SMs, or the deepest tile. Without the launch.
    """
    load = np.asarray(load_GP)
    depth_GP = -(-load // hardware.gemm_tile_rows) * hardware.gemm_tile_rows
    tiles = -(-inner // TILE_COLUMNS) * -(-outer // TILE_COLUMNS)
    sm_rate = roofline.flop_rate(hardware, precision.weight_gradient, "grouped_gemm") / hardware.sms
    tile_GP = np.float64(2.0 * TILE_COLUMNS * TILE_COLUMNS / sm_rate) * depth_GP
    used = hardware.sms if sms is None else sms
    arithmetic_G = np.maximum(tile_GP.sum(-1) * (tiles / used), tile_GP.max(-1, initial=0.0))
    row_bytes = _row_bytes(hardware, precision, inner) + _row_bytes(hardware, precision, outer)
    hit_G = (load > 0).sum(-1)
    traffic_G = depth_GP.sum(-1) * row_bytes + hit_G * (inner * outer * ACCUMULATE_BYTES * precision.gradient_bytes)
    return np.maximum(arithmetic_G, roofline.memory_seconds(hardware, traffic_G))


def _row_bytes(hardware: Hardware, precision: Precision, width: int) -> int:
    kind = element_types.multiply_type(precision.weight_gradient, hardware.peak_flop_per_s)
    return element_types.row_bytes(kind, width)
