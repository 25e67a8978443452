"""What the routed experts of a layer cost on one rank: two grouped products over the rows of its slots.

    seconds = launch + slots + rows + seen + sum over both products of (tiles^p + traffic^p)^(1/p)

A product's tiles run in waves over the SMs, each with rows of one slot only, so that skew costs
what it costs through the loads and through nothing else; its traffic reads the weights of each slot
that has rows once, and moves the rows. `rows` is the activation and the sorting of the rows that a
rank serves; `seen` is what some kernels do for every (token, choice) pair that they are shown, also
for those of other ranks (Triton's fused experts zero and sum them). Sources: tiles and waves as in
`moecast.sim.cost.gemm`; the heights of tiles that libraries have; vLLM's and SGLang's default tiles
of the Triton kernel ("default": 16 x 32 up to as many tokens as experts, above it 64 x 64);
DeepGEMM's contiguous layout ("padded": each slot's rows fill whole tiles of 128).
docs/cost/grouped.md has the parameters' errors.

Axes: G rank, P slot; arrays may have any axes in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.formulas import soft_maximum
from moecast.sim.cost.grouped_parameters import TYPES, ExpertType, GroupedParameters
from moecast.sim.cost.slot_loop import count_tiles

if TYPE_CHECKING:
    from moecast.sim.cost.shapes import ExpertBlock
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Sizes = int | Int

ROWS_B = np.array([8, 16, 32, 64, 128, 256])  # heights of a tile
PADDED = 128  # the only one where each slot's rows are padded to whole tiles
COLUMNS = 128  # its width where the best height is taken
SMALL, LARGE = (16, 32), (64, 64)  # Triton's default tiles
VALUE_BYTES = 2  # what the kernels between the products read and write is bf16


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedWork:
    """What loads ask of the products, and the sizes of these: one number for all ranks, or one for each; R rank."""

    rows_R: Float
    hit_R: Float
    tiles_RB: Float
    seen_R: Float
    slots: Sizes
    choices: Sizes
    width: Sizes
    inner: Sizes
    ups: Sizes

    @classmethod
    def of(cls, block: ExpertBlock, load_RP: Int, seen_R: npt.ArrayLike | None = None) -> GroupedWork:
        """Count the loads [R, P] of one kind of experts; `seen_R` as of `grouped_seconds`."""
        rows_R, hit_R, tiles_RB = count_tiles(np.ascontiguousarray(load_RP, np.int64), ROWS_B)
        return cls(
            rows_R=rows_R.astype(np.float64),
            hit_R=hit_R.astype(np.float64),
            tiles_RB=tiles_RB.astype(np.float64),
            seen_R=np.maximum(rows_R, rows_R if seen_R is None else seen_R).astype(np.float64),
            slots=load_RP.shape[-1],
            choices=block.choices,
            width=block.width,
            inner=block.inner,
            ups=block.ups,
        )

    @property
    def matrices(self) -> tuple[tuple[Sizes, Sizes], tuple[Sizes, Sizes]]:
        """(inner, outer) of both products."""
        return (self.width, self.ups * self.inner), (self.inner, self.width)

    @property
    def value_bytes(self) -> Sizes:
        """Bytes of all values that stand between kernels for one row."""
        return VALUE_BYTES * (2 * self.width + (self.ups + 1) * self.inner)


def grouped_seconds(
    parameters: GroupedParameters,
    hardware: Hardware,
    block: ExpertBlock,
    load_GP: npt.ArrayLike,
    *,
    element_type: str,
    seen_G: npt.ArrayLike | None = None,
    sms: int | None = None,
) -> Float:
    """Time of one layer's routed experts on each rank; never falls when a load grows.

    Parameters
    ----------
    load_GP
        [..., G, P] rows that each slot serves.
    element_type
        One of `TYPES`.
    seen_G
        (token, choice) pairs that the kernels are shown, those that other ranks serve among them:
        with attention by TP all of the group's. None: only those that are served here, as after an
        all-to-all.
    sms
        SMs that are free for it; None: all.

    Returns
    -------
    float64 [..., G], seconds.

    Raises
    ------
    ValueError
        An unknown type, or loads that are no whole numbers.
    """
    load = np.asarray(load_GP)
    if load.ndim < 1 or not np.issubdtype(load.dtype, np.integer):
        raise ValueError(f"load_GP: whole numbers [..., G, P], not {load.dtype} of shape {load.shape}")
    seen_R = None if seen_G is None else np.broadcast_to(seen_G, load.shape[:-1]).ravel()
    work = GroupedWork.of(block, load.reshape(-1, load.shape[-1]), seen_R)
    return seconds_of_work(parameters, hardware, work, element_type=element_type, sms=sms).reshape(load.shape[:-1])


def seconds_of_work(
    parameters: GroupedParameters,
    hardware: Hardware,
    work: GroupedWork,
    *,
    element_type: str,
    sms: int | None = None,
) -> Float:
    """As of `grouped_seconds`, of loads that are counted already.

    Raises
    ------
    ValueError
        An unknown type.
    """
    if element_type not in TYPES:
        raise ValueError(f"element type {element_type!r}: one of {', '.join(TYPES)}")
    used = hardware.sms if sms is None else sms
    moved_R = work.rows_R * parameters.row_traffic + work.seen_R * parameters.seen_traffic
    seconds_R = parameters.launch_s + parameters.slot_s * work.slots + moved_R * work.value_bytes / hardware.memory_Bps
    for inner, outer in work.matrices:
        seconds_R = seconds_R + _product_seconds(parameters, hardware, TYPES[element_type], work, inner, outer, used)
    return np.asarray(seconds_R, np.float64)


def _product_seconds(
    parameters: GroupedParameters,
    hardware: Hardware,
    kind: ExpertType,
    work: GroupedWork,
    inner: Sizes,
    outer: Sizes,
    sms: int,
) -> Float:
    """Join tiles and traffic of one product [rows, inner] x [inner, outer] of each slot."""
    moved_R = work.hit_R * (inner * outer * kind.weight_bytes)
    moved_R = moved_R + work.rows_R * (inner * kind.input_bytes + VALUE_BYTES * outer)
    traffic_R = moved_R / (hardware.memory_Bps * parameters.memory_part)

    def tiles(height: int, columns: int) -> Float:
        tile_s = _tile_seconds(parameters, hardware, kind, inner, height, columns)
        tiles_R = work.tiles_RB[:, int(np.searchsorted(ROWS_B, height))] * -(-outer // columns)
        return np.asarray(np.ceil(tiles_R / sms) * tile_s)

    if parameters.tiles != "default":
        best_R = np.min([tiles(height, columns) for height, columns in _shapes(parameters)], axis=0)
        return soft_maximum(best_R, traffic_R, parameters.softness)
    large_R = soft_maximum(
        tiles(*LARGE), traffic_R * (parameters.memory_part / parameters.large_part), parameters.softness
    )
    # The smaller of both, not the small tiles alone: what a kernel switches to never makes more
    # work take less.
    small_R = np.minimum(soft_maximum(tiles(*SMALL), traffic_R, parameters.softness), large_R)
    return np.where(work.seen_R <= work.choices * work.slots, small_R, large_R)


def _tile_seconds(
    parameters: GroupedParameters, hardware: Hardware, kind: ExpertType, inner: Sizes, height: int, columns: int
) -> Float:
    """A tile of all of `inner` on one SM: its operands pass through while it multiplies, the slower counts."""
    peaks = hardware.peak_flop_per_s
    sm_rate = next(peaks[rate] for rate in kind.rates if rate in peaks) * parameters.peak_part / hardware.sms
    operands = (height * kind.input_bytes + columns * kind.weight_bytes) / parameters.operand_Bps
    return np.asarray(inner * max(2.0 * height * columns / sm_rate, operands) + parameters.wave_s)


def fastest_seconds(
    kernels: Sequence[GroupedParameters],
    hardware: Hardware,
    block: ExpertBlock,
    load_GP: npt.ArrayLike,
    *,
    element_type: str,
    seen_G: npt.ArrayLike | None = None,
    sms: int | None = None,
) -> Float:
    """As of `grouped_seconds`, of the kernel that is fastest for each rank, as an engine that has several takes it."""
    each = [
        grouped_seconds(one, hardware, block, load_GP, element_type=element_type, seen_G=seen_G, sms=sms)
        for one in kernels
    ]
    return np.asarray(np.min(each, axis=0), np.float64)


def grouped_floor_seconds(
    kernels: Sequence[GroupedParameters],
    hardware: Hardware,
    block: ExpertBlock,
    rows: npt.ArrayLike,
    hits: npt.ArrayLike,
    *,
    element_type: str,
    seen: npt.ArrayLike = 0.0,
) -> Float:
    """At most what `fastest_seconds` says of any loads with so many rows on so many slots.

    Convex and rising in both.

    `seen`: (token, choice) pairs that every rank's kernels are shown at the least.

    Proof: `rows` rows on `hits` slots fill at least rows / height tiles, and at least `hits`, and
    those take at least tiles / SMs waves. So where a · height + b is at most the price of a tile
    for all heights and kernels, the time is at least a · rows + b · hits, and the largest over such
    lines (`_lines_below`) is convex. Traffic is linear in rows and hits, under the best of the
    reached parts. The p-norm of two convex functions is convex, rises with both and falls with p,
    of which the largest is taken. Launches and the price of rows are the least of all kernels, and
    of pairs that other ranks serve: a row more is one of these less, so that the sum still rises
    with rows. Seconds of slots are left out.
    """
    kind, best = TYPES[element_type], _least(kernels)
    rows, hits = np.asarray(rows, np.float64), np.asarray(hits, np.float64)
    value_bytes = VALUE_BYTES * (2 * block.width + (block.ups + 1) * block.inner)
    shown = np.maximum(np.asarray(seen, np.float64), rows)
    moved = rows * best.row_traffic + shown * best.seen_traffic
    seconds = best.launch_s + moved * value_bytes / hardware.memory_Bps
    for inner, outer in block.matrices:
        lines = _lines_of(tuple(kernels), hardware, element_type, inner, outer)
        work_s = np.max([row_s * rows + hit_s * hits for row_s, hit_s in lines], axis=0)
        moved_bytes = hits * inner * outer * kind.weight_bytes
        moved_bytes += rows * (inner * kind.input_bytes + VALUE_BYTES * outer)
        traffic_s = moved_bytes / (hardware.memory_Bps * best.memory_part)
        seconds = seconds + soft_maximum(np.asarray(work_s), np.asarray(traffic_s), best.softness)
    return np.asarray(seconds)


@lru_cache(maxsize=256)
def _lines_of(
    kernels: tuple[GroupedParameters, ...], hardware: Hardware, element_type: str, inner: int, outer: int
) -> tuple[tuple[float, float], ...]:
    """As of `_lines_below`, of the tiles that kernels have for products of one size; searches ask again and again."""
    kind = TYPES[element_type]
    prices = [
        (
            height,
            -(-outer // columns) / hardware.sms * float(_tile_seconds(one, hardware, kind, inner, height, columns)),
        )
        for one in kernels
        for height, columns in _shapes(one)
    ]
    return tuple(_lines_below(prices))


def _lines_below(prices: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Lines a · height + b, as (a, b), below which no tile's price lies: through two heights, and with a or b of 0."""
    least = {height: min(price for at, price in prices if at == height) for height, _ in prices}
    lines = [(min(price / height for height, price in least.items()), 0.0), (0.0, min(least.values()))]
    for one, other in combinations(sorted(least), 2):
        slope = (least[other] - least[one]) / (other - one)
        start = least[one] - slope * one
        if slope >= 0 and start >= 0:
            lines.append((slope, start))
    # Rounding may put the heights that made a line a hair above it.
    return [
        line
        for line in lines
        if all(line[0] * height + line[1] <= price * (1 + 1e-12) for height, price in least.items())
    ]


def partition_floor_seconds(
    kernels: Sequence[GroupedParameters],
    hardware: Hardware,
    block: ExpertBlock,
    load_E: Int,
    *,
    ranks: int,
    slots: int,
    element_type: str,
) -> tuple[float, float]:
    """At most the mean over ranks that each hold some of the experts, and at most any one that holds `slots` of them.

    Each expert stands on one rank, with all its rows. Proof: the tiles of an expert are known, so
    each expert adds at least the least, over kernels and heights, of its tiles' part of a wave to
    its rank, and its own traffic; a rank's norm of both sums is convex and rises with both, so that
    the mean over ranks is at least its value at the mean sums, and a rank with `slots` experts
    takes at least its value at the sums of the `slots` least. Launches, slots and the price of rows
    are the least of all kernels.
    """
    kind, best = TYPES[element_type], _least(kernels)
    value_bytes = VALUE_BYTES * (2 * block.width + (block.ups + 1) * block.inner)
    tiles_EB = -(-np.asarray(load_E, np.int64)[:, None] // ROWS_B)
    row_E = load_E * ((best.row_traffic + best.seen_traffic) * value_bytes / hardware.memory_Bps)

    def sums(part_E: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
        return float(part_E.sum()) / ranks, float(np.sort(part_E)[:slots].sum())

    fixed_s = best.launch_s + min(one.slot_s for one in kernels) * slots
    mean_s, least_s = (fixed_s + part for part in sums(row_E))
    for inner, outer in block.matrices:
        each_E = [
            tiles_EB[:, int(np.searchsorted(ROWS_B, height))]
            * float(-(-outer // columns) / hardware.sms * _tile_seconds(one, hardware, kind, inner, height, columns))
            for one in kernels
            for height, columns in _shapes(one)
        ]
        moved_E = (np.asarray(load_E) > 0) * (inner * outer * kind.weight_bytes)
        moved_E = moved_E + load_E * (inner * kind.input_bytes + VALUE_BYTES * outer)
        tile_sums, traffic_sums = sums(np.min(each_E, axis=0)), sums(moved_E / (hardware.memory_Bps * best.memory_part))
        joined = [
            float(soft_maximum(np.array(a), np.array(b), best.softness))
            for a, b in zip(tile_sums, traffic_sums, strict=True)
        ]
        mean_s, least_s = mean_s + joined[0], least_s + joined[1]
    return mean_s, least_s


def _shapes(parameters: GroupedParameters) -> list[tuple[int, int]]:
    """(height, columns) of the tiles that a kernel has."""
    if parameters.tiles == "default":
        return [SMALL, LARGE]
    return [(int(height), COLUMNS) for height in ROWS_B if parameters.tiles == "best" or height == PADDED]


def _least(kernels: Sequence[GroupedParameters]) -> GroupedParameters:
    """Of each constant that a floor needs the one that makes it lowest."""
    return replace(
        kernels[0],
        launch_s=min(one.launch_s for one in kernels),
        memory_part=max(max(one.memory_part, one.large_part) for one in kernels),
        softness=max(one.softness for one in kernels),
        row_traffic=min(one.row_traffic for one in kernels),
        seen_traffic=min(one.seen_traffic for one in kernels),
    )
