"""Which layers stand on which pipeline stage: under memory, with the time of each layer as routing makes it.

Layers stay in order, so a cut is where each stage ends. A pipeline of m microbatches takes the sum of all layers and
m - 1 times its slowest stage: with many microbatches the slowest stage is what counts, and the sum is the same for
every cut. So the cut with the least slowest stage is sought, among those the one that leaves most memory free where it
is scarcest.

`by_dynamic_programming` is exact and quick; `by_cp_sat` says the same in constraints, to which others can be added, and
is the check (`tests/layouts/test_stages.py`).

Axes: H hidden layer, V stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError

Float = npt.NDArray[np.float64]

WHOLE_S = 1e-9
"""CP-SAT counts in whole numbers: nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageProblem:
    """Layers to be dealt to stages.

    Parameters
    ----------
    seconds_H
        Time of each layer on its slowest rank.
    bytes_H
        What it holds of a GPU's memory.
    stages
        How many there are.
    usable_bytes
        Of each GPU.
    first_s, last_s, first_bytes, last_bytes
        Embedding, with the first layer; LM head, with the last.

    Raises
    ------
    MoecastError
        Fewer layers than stages, or lists of different lengths; a time or size below 0.
    """

    seconds_H: Sequence[float]
    bytes_H: Sequence[int]
    stages: int
    usable_bytes: int
    first_s: float = 0.0
    last_s: float = 0.0
    first_bytes: int = 0
    last_bytes: int = 0

    def __post_init__(self) -> None:
        layers = len(self.seconds_H)
        if len(self.bytes_H) != layers:
            raise MoecastError(f"one for each of the {layers} layers", field="bytes_H", value=len(self.bytes_H))
        if not 1 <= self.stages <= layers:
            raise MoecastError(f"1 to the {layers} layers there are", field="stages", value=self.stages)
        if min(*self.seconds_H, *self.bytes_H, 0) < 0 or not np.isfinite(np.array(self.seconds_H)).all():
            raise MoecastError("times and sizes are finite and not negative", field="seconds_H, bytes_H")

    def all_seconds_H(self) -> Float:
        """Times of the layers, embedding and LM head with the first and the last of them."""
        seconds_H = np.array(self.seconds_H, np.float64)
        seconds_H[0] += self.first_s
        seconds_H[-1] += self.last_s
        return seconds_H

    def all_bytes_H(self) -> npt.NDArray[np.int64]:
        """Sizes, the same way."""
        bytes_H = np.array(self.bytes_H, np.int64)
        bytes_H[0] += self.first_bytes
        bytes_H[-1] += self.last_bytes
        return bytes_H

    def slowest_s(self, stage_of_layer: Sequence[int]) -> float:
        """Time of the slowest stage of a cut."""
        return float(np.bincount(stage_of_layer, self.all_seconds_H(), self.stages).max())

    def fits(self, stage_of_layer: Sequence[int]) -> bool:
        """Whether every stage of a cut fits."""
        return bool((np.bincount(stage_of_layer, self.all_bytes_H(), self.stages) <= self.usable_bytes).all())


def by_dynamic_programming(problem: StageProblem) -> tuple[int, ...]:
    """The stage of each layer: the least slowest stage, by the best cuts of all first layers into fewer stages.

    Raises
    ------
    MoecastError
        No cut fits.
    """
    seconds_H, bytes_H = problem.all_seconds_H(), problem.all_bytes_H()
    layers = len(seconds_H)
    until_s, until_bytes = np.append(0.0, np.cumsum(seconds_H)), np.append(0, np.cumsum(bytes_H))
    # Of each number of first layers: its slowest and its fullest stage, and where the last of them begins.
    best: list[tuple[float, float]] = [(0.0, 0.0)] + [(np.inf, np.inf)] * layers
    begins: list[list[int]] = []
    for _ in range(problem.stages):
        after: list[tuple[float, float]] = [(np.inf, np.inf)] * (layers + 1)
        begin = [-1] * (layers + 1)
        for end in range(1, layers + 1):
            for first in range(end):
                held = float(until_bytes[end] - until_bytes[first])
                if best[first][0] == np.inf or held > problem.usable_bytes:
                    continue
                one = (max(best[first][0], float(until_s[end] - until_s[first])), max(best[first][1], held))
                if one < after[end]:
                    after[end], begin[end] = one, first
        best = after
        begins.append(begin)
    if best[layers][0] == np.inf:
        raise MoecastError(_no_cut(problem), field="stages", value=problem.stages)
    stage_of_layer, end = [0] * layers, layers
    for stage in reversed(range(problem.stages)):
        first = begins[stage][end]
        stage_of_layer[first:end] = [stage] * (end - first)
        end = first
    return tuple(stage_of_layer)


def by_cp_sat(problem: StageProblem, *, seconds: float = 20.0) -> tuple[int, ...]:
    """The stage of each layer: the least slowest stage, by CP-SAT, to the nanosecond of each layer.

    Raises
    ------
    MoecastError
        No cut fits, or none was proved best within the time.
    """
    from ortools.sat.python import cp_model

    whole_H = [round(value / WHOLE_S) for value in problem.all_seconds_H()]
    bytes_H = [int(value) for value in problem.all_bytes_H()]
    model, layers = cp_model.CpModel(), len(whole_H)
    stage_H = [model.new_int_var(0, problem.stages - 1, f"stage of layer {layer}") for layer in range(layers)]
    on_HV = [
        [model.new_bool_var(f"layer {layer} on {stage}") for stage in range(problem.stages)] for layer in range(layers)
    ]
    slowest = model.new_int_var(0, sum(whole_H), "slowest stage")
    model.add(stage_H[0] == 0)
    model.add(stage_H[-1] == problem.stages - 1)
    for layer in range(layers):
        model.add_exactly_one(on_HV[layer])
        model.add(stage_H[layer] == sum(stage * on for stage, on in enumerate(on_HV[layer])))
        if layer:  # in order, none left out
            model.add(stage_H[layer] - stage_H[layer - 1] >= 0)
            model.add(stage_H[layer] - stage_H[layer - 1] <= 1)
    for stage in range(problem.stages):
        model.add(sum(size * on_HV[layer][stage] for layer, size in enumerate(bytes_H)) <= problem.usable_bytes)
        model.add(sum(time * on_HV[layer][stage] for layer, time in enumerate(whole_H)) <= slowest)
    model.minimize(slowest)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = seconds, 1
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        raise MoecastError(_no_cut(problem), field="stages", value=problem.stages)
    if status != cp_model.OPTIMAL:
        raise MoecastError(f"no cut was proved best in {seconds:g} s", field="stages", value=problem.stages)
    return tuple(int(solver.value(stage)) for stage in stage_H)


def _no_cut(problem: StageProblem) -> str:
    held, room = int(problem.all_bytes_H().sum()), problem.usable_bytes * problem.stages
    return (
        f"no cut of {len(problem.bytes_H)} layers fits: they hold {held / 2**30:.1f} GiB, the stages {room / 2**30:.1f}"
    )
