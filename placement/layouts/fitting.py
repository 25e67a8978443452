"""Which layouts fit into the memory of a GPU, and by how much the others do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moecast.placement.layouts.fitted import Fitting, Overfull
from moecast.placement.layouts.serving_layout import SEQUENTIAL, ServingLayout, way_of
from moecast.sim.memory import memory_by_part, usable_bytes
from moecast.sim.step import Step
from moecast.sim.workload import Workload

if TYPE_CHECKING:
    from moecast.placement.layouts.serving_question import ServingQuestion


Asked = tuple[ServingLayout, list[int], str]
Answers = Callable[[Sequence[Asked]], Iterable[tuple[int, int]]]


def fitting(
    question: ServingQuestion, layouts: Sequence[ServingLayout], phase: str, answers: Answers | None = None
) -> Fitting[ServingLayout]:
    """Keep the layouts whose step fits.

    Memory rises with the batch, so for all else alike the largest batch that fits is found by halving. What does not
    change it (how many data-parallel ranks there are beside, schedules, microbatches, modes that have no buffers) is
    asked once.

    Parameters
    ----------
    answers
        Who says, as `most_batch`, which is the largest batch of each; None: this process.
    """
    batches: dict[ServingLayout, list[int]] = defaultdict(list)
    of_way: dict[tuple[Any, ...], ServingLayout] = {}
    alike = []
    shown: dict[ServingLayout, ServingLayout] = {}  # who stands for those alike where one is named
    for layout in layouts:
        if (way := way_of(layout)) not in of_way:
            of_way[way] = _alike(layout)
        alike.append(of_way[way])
        shown.setdefault(of_way[way], layout)
    for same, layout in zip(alike, layouts, strict=True):
        batches[same].append(layout.batch)
    asked = [(same, sorted(set(found)), phase) for same, found in batches.items()]
    answers = answers or (lambda asked: (most_batch(question, *each) for each in asked))
    most = dict(zip(batches, answers(asked), strict=True))
    fits = [layout.batch <= most[same][0] for same, layout in zip(alike, layouts, strict=True)]
    nearest: dict[int, Overfull[ServingLayout]] = {}
    for same, (batch, missing) in most.items():
        known = nearest.get(same.gpus)
        if batch == 0 and (known is None or missing < known.missing_bytes):
            nearest[same.gpus] = Overfull(layout=replace(shown[same], batch=min(batches[same])), missing_bytes=missing)
    fitted_sizes = {layout.gpus for layout, fit in zip(layouts, fits, strict=True) if fit}
    return Fitting(
        layouts=tuple(layout for layout, fit in zip(layouts, fits, strict=True) if fit),
        overfull=len(layouts) - sum(fits),
        nearest={gpus: nearest[gpus] for gpus in sorted(nearest) if gpus not in fitted_sizes},
    )


def memory_of(question: ServingQuestion, layout: ServingLayout, phase: str) -> dict[str, int]:
    """Bytes by part on the rank that holds most, with an even share of the experts' rows."""
    model = question.model
    workload = Workload(phase=phase, tokens_per_rank=layout.batch, steps=1, reuse=True)
    plan = replace(layout, microbatches=1).plan(model)
    step = _even_step(question, layout, phase)
    return memory_by_part(model, plan, workload, question.cluster.hardware, steps=[step])


def _alike(layout: ServingLayout) -> ServingLayout:
    """What memory depends on, but for the batch."""
    dispatch = layout.dispatch if layout.dispatch == "per_choice" else "nccl" if layout.ep > 1 else None
    return replace(layout, batch=1, schedule=SEQUENTIAL, microbatches=1, sequence_parallel=True, dispatch=dispatch)


def most_batch(question: ServingQuestion, same: ServingLayout, batches: Sequence[int], phase: str) -> tuple[int, int]:
    """The largest of some batches that fits, 0 where none does; and the bytes that the smallest misses then."""
    usable = usable_bytes(question.cluster.hardware, question.memory_fraction)

    def needed(batch: int) -> int:
        return sum(memory_of(question, replace(same, batch=batch), phase).values())

    if needed(batches[-1]) <= usable:  # as with most: asked first
        return batches[-1], 0
    if (least := needed(batches[0])) > usable:
        return 0, least - usable
    low, high = 0, len(batches) - 1  # batches[low] fits, batches[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(batches[middle]) <= usable else (low, middle)
    return batches[low], 0


def _even_step(question: ServingQuestion, layout: ServingLayout, phase: str) -> Step:
    """A step of as many tokens on each data-parallel rank, whichever they are: one of them stands for all."""
    tokens = layout.batch * layout.dp
    if phase == "decode":
        context_T = np.full(tokens, question.context)
        last_T = None
    else:
        length = min(layout.batch, question.isl)
        place_T = np.arange(tokens) % layout.batch % length
        context_T, last_T = place_T + 1 + question.isl - length, place_T == length - 1
    return Step(
        token_T=np.zeros(tokens, np.int64),
        source_T=np.repeat(np.arange(layout.dp, dtype=np.int32), layout.batch),
        context_T=context_T,
        phase=phase,
        last_T=last_T,
    )
