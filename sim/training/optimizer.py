"""The optimizer's step: what Adam and Muon read, write and multiply on each rank.

Sources: Adam with float32 master weights as mixed precision trains; Muon (arXiv 2502.16982):
momentum, five Newton-Schulz iterations that orthogonalise each matrix, in bf16, and Adam for
embedding, LM head and norms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from moecast.sim.cost import roofline
from moecast.sim.training.gradients import check_zero
from moecast.sim.training.precision import Precision
from moecast.sim.training.shard import Matrix, Shard

if TYPE_CHECKING:
    from moecast.topology import Hardware

ADAM_MOMENTS, MUON_MOMENTS = 2, 1
NEWTON_SCHULZ_ITERATIONS = 5
# norm of the gradients, their scaling, the update, and their zeroing; each over all tensors at once
STEP_KERNELS = 4


class Optimizer(Protocol):
    """How a step turns gradients into weights."""

    @property
    def name(self) -> str:
        """What questions call it."""

    def state_bytes(self, shard: Shard, precision: Precision, *, zero: int = 1) -> float:
        """Bytes of master weights and moments on a rank."""

    def seconds(self, shard: Shard, hardware: Hardware, precision: Precision, *, zero: int = 1) -> float:
        """Time of the step on a rank."""


def owned_parameters(shard: Shard, *, zero: int = 1) -> float:
    """Parameters that a rank updates: all that it holds, or with ZeRO its part of them.

    Raises
    ------
    ValueError
        There is no such level of ZeRO.
    """
    dense, experts = (1, 1) if check_zero(zero) == 0 else (shard.dense_ranks, shard.expert_ranks)
    return sum(held.dense / dense + held.experts / experts for held in shard.held())


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Two moments and a master weight for each parameter; the step only moves memory."""

    name: str = "adam"

    def state_bytes(self, shard: Shard, precision: Precision, *, zero: int = 1) -> float:
        """Bytes of master weights and moments on a rank."""
        each = precision.master_bytes + ADAM_MOMENTS * precision.moment_bytes
        return owned_parameters(shard, zero=zero) * each

    def seconds(self, shard: Shard, hardware: Hardware, precision: Precision, *, zero: int = 1) -> float:
        """Time of the step on a rank."""
        moved = owned_parameters(shard, zero=zero) * step_bytes(precision, moments=ADAM_MOMENTS)
        return float(roofline.memory_seconds(hardware, moved)) + STEP_KERNELS * hardware.kernel_launch_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon:
    """Momentum of each matrix, made orthogonal; what is no matrix of a layer is updated by Adam.

    A rank orthogonalises the matrices of which it owns a part (their momentum is gathered for it):
    its share of the arithmetic, but no less than one matrix. Matrices that tensor parallelism cuts
    are taken block by block.
    """

    name: str = "muon"

    def state_bytes(self, shard: Shard, precision: Precision, *, zero: int = 1) -> float:
        """Bytes of master weights and moments on a rank."""
        adam = Adam().state_bytes(shard, precision, zero=zero)
        return adam - (ADAM_MOMENTS - MUON_MOMENTS) * precision.moment_bytes * self._in_matrices(shard, zero)

    def seconds(self, shard: Shard, hardware: Hardware, precision: Precision, *, zero: int = 1) -> float:
        """Time of the step on a rank."""
        matrices = self._in_matrices(shard, zero)
        others = owned_parameters(shard, zero=zero) - matrices
        moved = others * step_bytes(precision, moments=ADAM_MOMENTS)
        moved += matrices * step_bytes(precision, moments=MUON_MOMENTS)
        rate = roofline.flop_rate(hardware, "bf16", "gemm")
        dense, experts = (1, 1) if zero == 0 else (shard.dense_ranks, shard.expert_ranks)
        flop = _share(shard.dense_matrices(), dense) + _share(shard.expert_matrices(), experts)
        kernels = STEP_KERNELS + 3 * NEWTON_SCHULZ_ITERATIONS
        return float(roofline.memory_seconds(hardware, moved)) + flop / rate + kernels * hardware.kernel_launch_s

    def _in_matrices(self, shard: Shard, zero: int) -> float:
        dense, experts = (1, 1) if zero == 0 else (shard.dense_ranks, shard.expert_ranks)
        return _elements(shard.dense_matrices()) / dense + _elements(shard.expert_matrices()) / experts


ADAM, MUON = Adam(), Muon()
OPTIMIZERS: tuple[Optimizer, ...] = (ADAM, MUON)


def step_bytes(precision: Precision, *, moments: int) -> float:
    """Bytes that one parameter moves in a step.

    Its gradient is read for the norm and for the update and set to zero; master weight and moments
    are read and written; the weight that GEMMs read is written.
    """
    return (
        3 * precision.gradient_bytes
        + 2 * precision.master_bytes
        + 2 * moments * precision.moment_bytes
        + precision.weight_bytes
    )


def newton_schulz_flop(rows: int, columns: int) -> float:
    """FLOP that make one matrix orthogonal: five times X Xᵀ, its square, and their product with X.

    With m the smaller and n the larger side: 5 · (4 m² n + 2 m³).
    """
    small, large = sorted((float(rows), float(columns)))
    return NEWTON_SCHULZ_ITERATIONS * (4 * small**2 * large + 2 * small**3)


def _elements(matrices: Iterable[Matrix]) -> float:
    return sum(rows * columns * count for rows, columns, count in matrices)


def _share(matrices: tuple[Matrix, ...], ranks: int) -> float:
    """One rank's share of orthogonalising the matrices that `ranks` ranks hold, no less than the largest of them."""
    flop = [newton_schulz_flop(rows, columns) * count for rows, columns, count in matrices]
    largest = max((newton_schulz_flop(rows, columns) for rows, columns, _ in matrices), default=0.0)
    return max(sum(flop) / ranks, largest) if flop else 0.0
