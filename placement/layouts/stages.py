"""Which layers stand on which pipeline stage: under memory, with the time of each layer as routing makes it.

Layers stay in order, so a cut is where each stage ends. A pipeline of m microbatches takes the sum of all layers and
m - 1 times its slowest stage: with many microbatches the slowest stage is what counts, and the sum is the same for
every cut. So the cut with the least slowest stage is sought, among those the one that leaves most memory free where it
is scarcest.

A pipeline rank may hold several stages (virtual ones, or of two copies of the model): then what counts is the slowest
rank, and memory is what all its stages hold. Activations stand as often as the rank has microbatches in flight.

`by_dynamic_programming` is exact and quick, where each rank has one stage; `by_cp_sat` says the same in constraints,
also where ranks have several. Each checks the other (`tests/layouts/test_stages.py`).

Axes: H hidden layer, V stage, R pipeline rank.
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
    kept_bytes_H
        Activations that a layer keeps of a microbatch; empty: none.
    in_flight_R
        Microbatches that each rank keeps them of; empty: none.
    stages_R
        The stages of each rank; empty: one each, in order.
    wanted_H
        Layers of which every stage wants one; empty: no matter.

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
    kept_bytes_H: Sequence[int] = ()
    in_flight_R: Sequence[float] = ()
    stages_R: Sequence[tuple[int, ...]] = ()
    wanted_H: Sequence[bool] = ()

    def __post_init__(self) -> None:
        layers = len(self.seconds_H)
        for name in ("bytes_H", "kept_bytes_H", "wanted_H"):
            values = getattr(self, name)
            if len(values) != layers and (values or name == "bytes_H"):
                raise MoecastError(f"one for each of the {layers} layers", field=name, value=len(values))
        if not 1 <= self.stages <= layers:
            raise MoecastError(f"1 to the {layers} layers there are", field="stages", value=self.stages)
        if min(*self.seconds_H, *self.bytes_H, 0) < 0 or not np.isfinite(np.array(self.seconds_H)).all():
            raise MoecastError("times and sizes are finite and not negative", field="seconds_H, bytes_H")
        if {stage for stages in self.ranks for stage in stages} != set(range(self.stages)):
            raise MoecastError("every stage on some rank", field="stages_R", value=self.stages_R)
        if len(self.in_flight_R) not in (0, len(self.ranks)):
            raise MoecastError(f"one for each of {len(self.ranks)} ranks", field="in_flight_R", value=self.in_flight_R)

    @property
    def ranks(self) -> Sequence[tuple[int, ...]]:
        """The stages of each rank."""
        return self.stages_R or [(stage,) for stage in range(self.stages)]

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

    def held_RH(self) -> npt.NDArray[np.int64]:
        """What each layer holds of each rank's memory, if it is there."""
        bytes_H = self.all_bytes_H()
        if not self.in_flight_R or not self.kept_bytes_H:
            return np.broadcast_to(bytes_H, (len(self.ranks), len(bytes_H)))
        kept_RH = np.ceil(np.outer(self.in_flight_R, self.kept_bytes_H)).astype(np.int64)
        return np.asarray(bytes_H + kept_RH)

    def slowest_s(self, stage_of_layer: Sequence[int]) -> float:
        """Time of the slowest rank of a cut."""
        of_stage_V = np.bincount(stage_of_layer, self.all_seconds_H(), self.stages)
        return float(max(of_stage_V[list(stages)].sum() for stages in self.ranks))

    def fits(self, stage_of_layer: Sequence[int]) -> bool:
        """Whether every rank of a cut fits, and every stage has what it wants."""
        on_H, held_RH = np.array(stage_of_layer), self.held_RH()
        full = any(
            held_RH[rank][np.isin(on_H, stages)].sum() > self.usable_bytes for rank, stages in enumerate(self.ranks)
        )
        wanted = not self.wanted_H or len(set(on_H[np.array(self.wanted_H)].tolist())) == self.stages
        return wanted and not full


def by_dynamic_programming(problem: StageProblem) -> tuple[int, ...]:
    """The stage of each layer: the least slowest stage, by the best cuts of all first layers into fewer stages.

    Raises
    ------
    MoecastError
        No cut fits.
    """
    if any(len(stages) > 1 for stages in problem.ranks):
        raise MoecastError("one stage on each rank: others are cut by CP-SAT", field="stages_R")
    seconds_H, held_RH = problem.all_seconds_H(), problem.held_RH()
    rank_V = {stages[0]: rank for rank, stages in enumerate(problem.ranks)}
    layers = len(seconds_H)
    until_s, wanted = np.append(0.0, np.cumsum(seconds_H)), np.append(0, np.cumsum(problem.wanted_H or [True] * layers))
    # Of each number of first layers: its slowest and its fullest stage; and where the last of them begins.
    best_s, fullest = np.append(0.0, np.full(layers, np.inf)), np.append(0.0, np.full(layers, np.inf))
    begins: list[npt.NDArray[np.int64]] = []
    for stage in range(problem.stages):
        until_bytes = np.append(0, np.cumsum(held_RH[rank_V[stage]]))
        after_s, after_full = np.full(layers + 1, np.inf), np.full(layers + 1, np.inf)
        begin = np.full(layers + 1, -1)
        for end in range(1, layers + 1):
            held = (until_bytes[end] - until_bytes[:end]).astype(np.float64)
            slow_s = np.maximum(best_s[:end], until_s[end] - until_s[:end])
            slow_s[(held > problem.usable_bytes) | (wanted[end] == wanted[:end])] = np.inf
            full = np.maximum(fullest[:end], held)
            first = int(np.lexsort((full, slow_s))[0])
            if slow_s[first] < np.inf:
                after_s[end], after_full[end], begin[end] = slow_s[first], full[first], first
        best_s, fullest = after_s, after_full
        begins.append(begin)
    if best_s[layers] == np.inf:
        raise MoecastError(_no_cut(problem), field="stages", value=problem.stages)
    stage_of_layer, end = [0] * layers, layers
    for stage in reversed(range(problem.stages)):
        first = int(begins[stage][end])
        stage_of_layer[first:end] = [stage] * (end - first)
        end = first
    return tuple(stage_of_layer)


def by_cp_sat(problem: StageProblem, *, work: float = 20.0, proved: bool = True) -> tuple[int, ...]:
    """The stage of each layer: the least slowest rank, by CP-SAT, to the nanosecond of each layer.

    Parameters
    ----------
    work
        Limit on the solver's deterministic time, about seconds.
    proved
        Whether the cut must be proved best; else the best found within the limit is taken.

    Raises
    ------
    MoecastError
        No cut fits, or none was found, or proved best, within the limit.
    """
    from ortools.sat.python import cp_model

    whole_H = [round(value / WHOLE_S) for value in problem.all_seconds_H()]
    held_RH = problem.held_RH()
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
    for rank, stages in enumerate(problem.ranks):
        there_H = [sum(on_HV[layer][stage] for stage in stages) for layer in range(layers)]
        model.add(sum(int(held_RH[rank][layer]) * there_H[layer] for layer in range(layers)) <= problem.usable_bytes)
        model.add(sum(time * there_H[layer] for layer, time in enumerate(whole_H)) <= slowest)
    for stage in range(problem.stages):
        model.add_at_least_one(on_HV[h][stage] for h in range(layers) if not problem.wanted_H or problem.wanted_H[h])
    model.minimize(slowest)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time, solver.parameters.num_workers = work, 1
    status = solver.solve(model)
    if status in (cp_model.INFEASIBLE, cp_model.MODEL_INVALID):
        raise MoecastError(_no_cut(problem), field="stages", value=problem.stages)
    if status != cp_model.OPTIMAL and (proved or status != cp_model.FEASIBLE):
        raise MoecastError(f"no cut was proved best with a work limit of {work:g}", field="stages")
    return tuple(int(solver.value(stage)) for stage in stage_H)


def _no_cut(problem: StageProblem) -> str:
    held, room = int(problem.all_bytes_H().sum()), problem.usable_bytes * len(problem.ranks)
    return (
        f"no cut of {len(problem.bytes_H)} layers fits: they hold {held / 2**30:.1f} GiB, the stages {room / 2**30:.1f}"
    )
