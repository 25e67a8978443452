"""Pipelines as programs: every task of the work once, where its schedule puts it, against the recursion over cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.sim.network import Bound, Fluid
from moecast.sim.program import COMMUNICATION, COMPUTE, Compute, Exchange, StepProgram, StepTimes, Task
from moecast.sim.schedules.pipeline import (
    PIPELINE_SCHEDULES,
    Cell,
    CellSeconds,
    Pair,
    Pipeline,
    PipelineOrder,
    find_pipeline_schedule,
    lower,
    make_order,
    time_order,
)
from tests.sim.network_cases import make_flows

RUNGS = [Bound(), Fluid()]
WIDTH = 2
"""Ranks of each pipeline rank in these tests."""
LINK = 1e9
SMALL = [
    Pipeline(pp=pp, virtual=virtual, microbatches=microbatches)
    for pp, virtual, microbatches in [(1, 1, 2), (2, 1, 4), (3, 1, 5), (4, 1, 8), (2, 2, 4), (3, 2, 6), (2, 3, 2)]
]


@dataclass(frozen=True, kw_only=True)
class ToyStage:
    """A chunk whose passes take `seconds` each over all its layers; with `travel_s` these dispatch and combine."""

    chunk: int
    ranks_R: np.ndarray
    layers: range
    seconds: CellSeconds
    travel_s: float = 0.0
    n_links: int

    def forward(self, _microbatch: int, layer: int, **_: bool) -> Iterator[Task]:
        half_s = self.seconds.forward_s / len(self.layers) / 2
        yield self._compute("attention", half_s, layer)
        yield from self._travel("dispatch", layer)
        yield self._compute("expert", half_s, layer)
        yield from self._travel("combine", layer)

    def backward(self, _microbatch: int, layer: int, *, weights: bool, **_: bool) -> Iterator[Task]:
        seconds = self.seconds.inputs_s + (self.seconds.weights_s if weights else 0.0)
        half_s = seconds / len(self.layers) / 2
        yield from self._travel("combine", layer)
        yield self._compute("expert", half_s, layer)
        yield from self._travel("dispatch", layer)
        yield self._compute("attention", half_s, layer)

    def weights(self, _microbatch: int, layer: int, **_: bool) -> Iterator[Compute]:
        half_s = self.seconds.weights_s / len(self.layers) / 2
        yield self._compute("expert", half_s, layer)
        yield self._compute("attention", half_s, layer)

    def _compute(self, kind: str, seconds: float, layer: int) -> Compute:
        return Compute(kind=kind, layer=layer, seconds_R=np.full(len(self.ranks_R), seconds))

    def _travel(self, kind: str, layer: int) -> Iterator[Exchange]:
        """Each rank sends the other of its chunk what takes its own link `travel_s`."""
        if self.travel_s:
            flows = make_flows(
                [self.travel_s * LINK] * 2,
                [[rank] for rank in self.ranks_R.tolist()],
                source=[0, 1],
                destination=[1, 0],
            )
            group_R = np.zeros(2, np.int32)
            yield Exchange(kind=kind, layer=layer, flows=flows, setup_s=0.0, barrier=False, group_R=group_R)


def make_works(order: PipelineOrder, seconds_C: list[CellSeconds], *, travel_s=0.0, layers=2) -> list[ToyStage]:
    return [
        ToyStage(
            chunk=chunk,
            ranks_R=np.arange(WIDTH, dtype=np.int32) + WIDTH * rank,
            layers=range(layers),
            seconds=seconds_C[chunk],
            travel_s=travel_s,
            n_links=order.chunks.n_ranks * WIDTH,
        )
        for chunk, rank in enumerate(order.chunks.rank_C)
    ]


def make_program(order: PipelineOrder, works: list[ToyStage], *, send_s: float = 0.0) -> StepProgram:
    """The program on links of which each rank has one for its all-to-alls; sends take their latency only."""
    pairs = list(range(WIDTH))

    def sends(*_: int) -> Exchange:
        flows = make_flows(
            [0.0] * WIDTH, [[]] * WIDTH, source=pairs, destination=[WIDTH + r for r in pairs], latency=send_s
        )
        group_R = np.zeros(2 * WIDTH, np.int32)
        return Exchange(kind="other", layer=-1, flows=flows, setup_s=0.0, barrier=False, group_R=group_R)

    n_ranks = order.chunks.n_ranks * WIDTH
    return StepProgram(
        tasks=tuple(lower(order, works, sends)),
        n_ranks=n_ranks,
        capacity_J=np.full(n_ranks, LINK),
        link_names_J=tuple(f"link {rank}" for rank in range(n_ranks)),
    )


def ends_of_cells(program: StepProgram, times: StepTimes, order: PipelineOrder) -> np.ndarray:
    """When each pipeline rank is done with all that it computes."""
    ends = np.zeros(program.n_ranks)
    for task, leave_R in zip(program.tasks, times.leave_S, strict=True):
        if isinstance(task, Compute):
            np.maximum.at(ends, program.ranks_of(task), leave_R)
    return ends.reshape(order.chunks.n_ranks, WIDTH)


@st.composite
def orders(draw: st.DrawFn) -> PipelineOrder:
    schedule = draw(st.sampled_from(PIPELINE_SCHEDULES))
    return make_order(schedule, draw(st.sampled_from([p for p in SMALL if schedule.supports(p) is None])))


def draw_seconds(data: st.DataObject, order: PipelineOrder) -> list[CellSeconds]:
    seconds = st.floats(0.01, 3.0)
    return [
        CellSeconds(forward_s=data.draw(seconds), inputs_s=data.draw(seconds), weights_s=data.draw(seconds))
        for _ in order.chunks.rank_C
    ]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), order=orders(), send_s=st.sampled_from([0.0, 0.1, 1.0]))
def test_a_pipeline_without_overlap_ends_when_its_cells_do(rung, data, order, send_s):
    """Pairs apart: one after the other within each turn, they are not the recursion's blocks."""
    order = apart(order)
    seconds_C = draw_seconds(data, order)
    program = make_program(order, make_works(order, seconds_C), send_s=send_s)
    timed = time_order(order, seconds_C, send_s=send_s)
    ends = [max(block.end_s for block in timed if block.rank == rank) for rank in range(order.chunks.n_ranks)]
    found = ends_of_cells(program, rung.run(program), order)
    np.testing.assert_allclose(found, np.array(ends)[:, None].repeat(WIDTH, axis=1), rtol=1e-9)


def apart(order: PipelineOrder) -> PipelineOrder:
    """The same order with the cells of each pair one after the other."""
    blocks_G = tuple(tuple(cell for block in blocks for cell in block.cells) for blocks in order.blocks_G)
    return replace(order, blocks_G=blocks_G)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), order=orders())
def test_a_lowering_writes_no_time_and_loses_no_task(data, order):
    works = make_works(order, draw_seconds(data, order), travel_s=0.5)
    program = make_program(order, works)

    def seen(task: Task, microbatch: int) -> tuple[object, ...]:
        took = task.seconds_R.tobytes() if isinstance(task, Compute) else task.flows.bytes_F.tobytes()
        return task.kind, task.layer, microbatch, took

    wanted: Counter[object] = Counter()
    for _, block in order.merged():
        for cell in block.cells:
            work = works[cell.chunk]
            for layer in work.layers:
                if cell.kind == "F":
                    tasks = list(work.forward(cell.microbatch, layer))
                elif cell.kind == "W":
                    tasks = list(work.weights(cell.microbatch, layer))
                elif isinstance(block, Pair):
                    tasks = [
                        *work.backward(cell.microbatch, layer, weights=False),
                        *work.weights(cell.microbatch, layer),
                    ]
                else:
                    tasks = list(work.backward(cell.microbatch, layer, weights=cell.kind == "BW"))
                wanted.update(seen(task, cell.microbatch) for task in tasks)
    assert wanted == Counter(seen(task, task.microbatch) for task in program.tasks if task.kind != "other")
    sends = [task for task in program.tasks if task.kind == "other"]
    crossing = sum(
        order.chunks.rank_C[need.chunk] != rank
        for rank, block in order.merged()
        for cell in block.cells
        for need in order.needs(cell)
    )
    assert len(sends) == crossing


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), order=orders())
def test_lengthening_any_task_can_lengthen_the_step_and_never_shortens_it(rung, data, order):
    program = make_program(order, make_works(order, draw_seconds(data, order), travel_s=0.2), send_s=0.1)
    before_s = rung.run(program).step_time_s
    index = data.draw(st.integers(0, len(program.tasks) - 1))
    task = program.tasks[index]
    for longer_s in (0.05, before_s):
        if isinstance(task, Compute):
            longer: Task = replace(task, seconds_R=task.seconds_R + longer_s)
        else:
            longer = replace(task, setup_s=task.setup_s + longer_s)
        tasks = (*program.tasks[:index], longer, *program.tasks[index + 1 :])
        after_s = rung.run(replace(program, tasks=tasks)).step_time_s
        assert after_s >= before_s * (1 - 1e-9)
    # as long as the whole step before: only work that stands beside all others could hide it
    assert after_s > before_s


@settings(max_examples=25, deadline=None)
@given(data=st.data(), order=orders())
def test_whatever_a_cell_works_on_has_come(data, order):
    """By the program's edges and streams alone: a microbatch begins on each pipeline rank of its route in turn."""
    program = make_program(order, make_works(order, draw_seconds(data, order), travel_s=0.3), send_s=0.2)
    times = Fluid().run(program)
    spans = [
        (task.microbatch, int(program.ranks_of(task)[0]) // WIDTH, enter_R.min())
        for task, enter_R in zip(program.tasks, times.enter_S, strict=True)
        if task.kind != "other"
    ]
    for route in order.chunks.routes:
        ranks = [order.chunks.rank_C[chunk] for chunk in route]
        for microbatch in range(order.microbatches):
            if order.chunks.route_of(microbatch) == route:
                starts = [min(start for m, rank, start in spans if (m, rank) == (microbatch, there)) for there in ranks]
                # a rank that has two chunks begins with the one that comes first
                firsts = [start for place, start in enumerate(starts) if ranks[place] not in ranks[:place]]
                assert firsts == sorted(firsts)


def test_a_pair_is_laid_as_deepseek_draws_it():
    order = make_order(find_pipeline_schedule("dualpipe"), Pipeline(pp=2, microbatches=6))
    [block] = [block for block in order.blocks_G[0] if isinstance(block, Pair)][:1]
    works = make_works(order, [CellSeconds(forward_s=1.0, inputs_s=1.0, weights_s=1.0)] * 4, travel_s=0.1, layers=1)
    program = make_program(order, works)
    forward, _ = block.cells
    put = [
        (task.kind, "F" if task.microbatch == forward.microbatch else "B", task.stream)
        for task in program.tasks
        if task.kind != "other" and program.ranks_of(task)[0] == 0 and beside(program, task)
    ]
    assert put == [
        ("combine", "B", COMMUNICATION),
        ("attention", "F", COMPUTE),
        ("dispatch", "F", COMMUNICATION),
        ("expert", "B", COMPUTE),
        ("expert", "B", COMPUTE),  # its weights' gradient
        ("dispatch", "B", COMMUNICATION),
        ("expert", "F", COMPUTE),
        ("combine", "F", COMMUNICATION),
        ("attention", "B", COMPUTE),
        ("attention", "B", COMPUTE),
    ]


def beside(program: StepProgram, task: Task) -> bool:
    """Whether a task of rank 0 is of the first pair: between its first exchange beside compute and the next pair's."""
    own = [t for t in program.tasks if t.kind != "other" and program.ranks_of(t)[0] == 0]
    start = next(place for place, t in enumerate(own) if t.stream == COMMUNICATION)
    return any(t is task for t in own[start : start + 10])


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_pairs_hide_what_travels_and_the_same_order_apart_does_not(rung):
    order = make_order(find_pipeline_schedule("dualpipe"), Pipeline(pp=2, microbatches=24))
    seconds_C = [CellSeconds(forward_s=1.0, inputs_s=1.0, weights_s=1.0)] * 4
    apart_s, together_s = (
        rung.run(make_program(which, make_works(which, seconds_C, travel_s=0.2))).step_time_s
        for which in (apart(order), order)
    )
    compute_s = 24 * 3.0  # with 2 ranks DualPipe has no bubble
    cells_s = 24 * 2 * 4 * 0.2  # each microbatch forward and backward, two layers' dispatch and combine
    assert apart_s == pytest.approx(compute_s + cells_s, rel=0.1)
    unpaired = sum(isinstance(block, Cell) and block.kind != "W" for block in order.blocks_G[0])
    assert together_s < compute_s + 0.8 * unpaired + 2 * 0.2
