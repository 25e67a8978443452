"""A timed program as a picture: a line per rank and stream, a box per task, as an SVG that any browser shows.

Axes: S task, R rank of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from moecast.sim.breakdown import waits_for_peers
from moecast.sim.program import StepProgram, StepTimes, Task
from moecast.units import format_s

COLOURS = {
    "attention": "#4c78a8",
    "router": "#9ecae9",
    "dispatch": "#f58518",
    "expert": "#54a24b",
    "combine": "#e45756",
    "other": "#b279a2",
}
_ROW, _GAP, _LEFT, _TOP, _LEGEND = 22, 6, 150, 34, 30
_LEAST_LABEL = 14.0  # pixels that a microbatch's number needs
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def draw_program(
    program: StepProgram,
    times: StepTimes,
    *,
    title: str,
    ranks: Sequence[int] = (0,),
    names: Sequence[str] | None = None,
    width: int = 960,
    until_s: float | None = None,
) -> str:
    """Draw what some ranks do; boxes carry the number of their microbatch, waiting for peers is left blank.

    Parameters
    ----------
    ranks, names
        Which ranks, and what the lines are called; None: "rank 0", …
    until_s
        Where the picture ends; None: with the step.

    Raises
    ------
    ValueError
        A rank that the program does not have.
    """
    wrong = [rank for rank in ranks if not 0 <= rank < program.n_ranks]
    if wrong:
        raise ValueError(f"ranks = {wrong[0]}: the program has ranks 0 to {program.n_ranks - 1}")
    end_s = times.step_time_s if until_s is None else until_s
    scale = (width - _LEFT - 10) / max(end_s, 1e-30)
    called = [f"rank {rank}" for rank in ranks] if names is None else list(names)
    rows = [(rank, stream) for rank in ranks for stream in program.streams if _has(program, rank, stream)]
    place = {row: index for index, row in enumerate(rows)}
    height = _TOP + len(rows) * (_ROW + _GAP) + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" {_FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="14" fill="#1f2937">{escape(title)}: {escape(format_s(end_s))}</text>',
    ]
    for (rank, stream), row in place.items():
        name = called[list(ranks).index(rank)]
        label = name if len(program.streams) == 1 else f"{name}, {stream or 'transfers'}"
        top = _top(row)
        parts.append(f'<text x="8" y="{top + 15}" fill="#374151">{escape(label)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{width - _LEFT - 10}" height="{_ROW}" fill="#f1f3f5"/>')
    parts += _boxes(program, times, place, scale, end_s)
    parts += _legend(program.tasks, height)
    return "\n".join([*parts, "</svg>\n"])


def _top(row: int) -> int:
    return _TOP + row * (_ROW + _GAP)


def _has(program: StepProgram, rank: int, stream: str | None) -> bool:
    return any(task.stream == stream and rank in program.ranks_of(task) for task in program.tasks)


def _boxes(
    program: StepProgram, times: StepTimes, place: dict[tuple[int, str | None], int], scale: float, end_s: float
) -> Iterator[str]:
    idle_S = waits_for_peers(program, times).idle_S
    for index, task in enumerate(program.tasks):
        for at, rank in enumerate(program.ranks_of(task).tolist()):
            row = place.get((rank, task.stream))
            begin = float(times.enter_S[index][at] + idle_S[index][at])
            end = min(float(times.leave_S[index][at]), end_s)
            if row is not None and end > begin:
                yield from _box(task, _LEFT + begin * scale, _top(row), (end - begin) * scale)


def _box(task: Task, left: float, top: int, wide: float) -> Iterator[str]:
    what = task.kind if task.microbatch < 0 else f"{task.kind}, microbatch {task.microbatch}"
    yield (
        f'<rect x="{left:.2f}" y="{top}" width="{max(wide, 0.2):.2f}" height="{_ROW}" fill="{COLOURS[task.kind]}" '
        f'stroke="#ffffff" stroke-width="0.4"><title>{what}</title></rect>'
    )
    if task.microbatch >= 0 and wide >= _LEAST_LABEL:
        middle = left + wide / 2
        yield f'<text x="{middle:.2f}" y="{top + 15}" text-anchor="middle" fill="#ffffff">{task.microbatch}</text>'


def _legend(tasks: Sequence[Task], height: int) -> Iterator[str]:
    left = float(_LEFT)
    for kind in (kind for kind in COLOURS if any(task.kind == kind for task in tasks)):
        yield f'<rect x="{left}" y="{height - 20}" width="12" height="12" fill="{COLOURS[kind]}"/>'
        yield f'<text x="{left + 17}" y="{height - 10}" fill="#374151">{kind}</text>'
        left += 30 + 8.0 * len(kind)
