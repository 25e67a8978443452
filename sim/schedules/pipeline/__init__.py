"""Pipeline schedules: in which order each rank of a pipeline takes the passes of its microbatches.

To add one: a file with a class that satisfies `PipelineSchedule`, and an entry in
`PIPELINE_SCHEDULES`.
"""

from __future__ import annotations

from moecast.errors import MoecastError
from moecast.sim.schedules.pipeline.cells import Block, Cell, Chunks, Pair, Pipeline
from moecast.sim.schedules.pipeline.dual import DualPipe, DualPipeV
from moecast.sim.schedules.pipeline.even import CellSeconds, Timed, time_order
from moecast.sim.schedules.pipeline.forward_only import ForwardOnly
from moecast.sim.schedules.pipeline.gpipe import GPipe
from moecast.sim.schedules.pipeline.interleaved import InterleavedOneFOneB
from moecast.sim.schedules.pipeline.lower import Sends, StageWork, cell_tasks, lower
from moecast.sim.schedules.pipeline.one_f_one_b import OneFOneB
from moecast.sim.schedules.pipeline.order import PipelineOrder, PipelineSchedule, make_order
from moecast.sim.schedules.pipeline.overlapped import OverlappedOneFOneB
from moecast.sim.schedules.pipeline.zero_bubble_h1 import ZeroBubbleH1
from moecast.sim.schedules.pipeline.zero_bubble_v import ZeroBubbleV

PIPELINE_SCHEDULES: tuple[PipelineSchedule, ...] = (
    ForwardOnly(),
    GPipe(),
    OneFOneB(),
    InterleavedOneFOneB(),
    OverlappedOneFOneB(),
    ZeroBubbleH1(),
    ZeroBubbleV(),
    DualPipe(),
    DualPipeV(),
)


def find_pipeline_schedule(name: str) -> PipelineSchedule:
    """Find a pipeline schedule by name.

    Raises
    ------
    MoecastError
        There is none.
    """
    for schedule in PIPELINE_SCHEDULES:
        if schedule.name == name:
            return schedule
    names = ", ".join(schedule.name for schedule in PIPELINE_SCHEDULES)
    raise MoecastError(f"one of {names}", field="schedule", value=name)


__all__ = [
    "PIPELINE_SCHEDULES",
    "Block",
    "Cell",
    "CellSeconds",
    "Chunks",
    "Pair",
    "Pipeline",
    "PipelineOrder",
    "PipelineSchedule",
    "Sends",
    "StageWork",
    "Timed",
    "cell_tasks",
    "find_pipeline_schedule",
    "lower",
    "make_order",
    "time_order",
]
