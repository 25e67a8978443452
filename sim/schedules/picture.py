"""Schedules as pictures: a line per rank and stream, a box per task or pass, as an SVG that any browser shows.

Axes: S task, R rank of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from moecast.sim.breakdown import waits_for_peers
from moecast.sim.program import StepProgram, StepTimes
from moecast.sim.schedules.pipeline import Timed
from moecast.units import format_s

COLOURS = {
    "attention": "#4c78a8",
    "router": "#9ecae9",
    "dispatch": "#f58518",
    "expert": "#54a24b",
    "combine": "#e45756",
    "other": "#b279a2",
}
PASSES = {
    "F": ("#4c78a8", "forward"),
    "BW": ("#54a24b", "backward"),
    "B": ("#54a24b", "gradients of the input"),
    "W": ("#9bcf96", "gradients of the weights"),
}
_ROW, _GAP, _LEFT, _TOP, _LEGEND = 22, 6, 150, 34, 30
_LEAST_LABEL = 14.0  # pixels that a microbatch's number needs
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """What stands in one line from one moment to another; `part` of the line's height: 0 all, 1 upper, 2 lower half."""

    row: int
    begin_s: float
    end_s: float
    colour: str
    label: str
    about: str
    part: int = 0


def _draw(
    title: str, lines: Sequence[str], boxes: Iterable[_Box], end_s: float, legend: Mapping[str, str], width: int
) -> str:
    scale = (width - _LEFT - 10) / max(end_s, 1e-30)
    height = _TOP + len(lines) * (_ROW + _GAP) + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" {_FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="14" fill="#1f2937">{escape(title)}</text>',
    ]
    for row, label in enumerate(lines):
        parts.append(f'<text x="8" y="{_top(row) + 15}" fill="#374151">{escape(label)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{_top(row)}" width="{width - _LEFT - 10}" height="{_ROW}" fill="#f1f3f5"/>')
    parts += [line for box in boxes for line in _drawn(box, scale)]
    left = float(_LEFT)
    for name, colour in legend.items():
        parts.append(f'<rect x="{left}" y="{height - 20}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 17}" y="{height - 10}" fill="#374151">{escape(name)}</text>')
        left += 34 + 7.0 * len(name)
    return "\n".join([*parts, "</svg>\n"])


def _drawn(box: _Box, scale: float) -> Iterator[str]:
    left, wide = _LEFT + box.begin_s * scale, max((box.end_s - box.begin_s) * scale, 0.2)
    top, high = _top(box.row) + (_ROW // 2 if box.part == 2 else 0), _ROW // 2 if box.part else _ROW
    yield (
        f'<rect x="{left:.2f}" y="{top}" width="{wide:.2f}" height="{high}" fill="{box.colour}" '
        f'stroke="#ffffff" stroke-width="0.4"><title>{escape(box.about)}</title></rect>'
    )
    if box.label and wide >= _LEAST_LABEL:
        size, down = ("9", 9) if box.part else ("12", 15)
        where = f'x="{left + wide / 2:.2f}" y="{top + down}" font-size="{size}"'
        yield f'<text {where} text-anchor="middle" fill="#ffffff">{box.label}</text>'


def _top(row: int) -> int:
    return _TOP + row * (_ROW + _GAP)


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
    called = dict(zip(ranks, names or [f"rank {rank}" for rank in ranks], strict=True))
    rows = [(rank, stream) for rank in ranks for stream in program.streams if _has(program, rank, stream)]
    lines = [
        called[rank] if len(program.streams) == 1 else f"{called[rank]}, {stream or 'transfers'}"
        for rank, stream in rows
    ]
    end_s = times.step_time_s if until_s is None else until_s
    used = {kind: colour for kind, colour in COLOURS.items() if any(task.kind == kind for task in program.tasks)}
    boxes = _program_boxes(program, times, {row: index for index, row in enumerate(rows)}, end_s)
    return _draw(f"{title}: {format_s(end_s)}", lines, boxes, end_s, used, width)


def _has(program: StepProgram, rank: int, stream: str | None) -> bool:
    return any(task.stream == stream and rank in program.ranks_of(task) for task in program.tasks)


def _program_boxes(
    program: StepProgram, times: StepTimes, place: Mapping[tuple[int, str | None], int], end_s: float
) -> Iterator[_Box]:
    idle_S = waits_for_peers(program, times).idle_S
    for index, task in enumerate(program.tasks):
        for at, rank in enumerate(program.ranks_of(task).tolist()):
            row = place.get((rank, task.stream))
            begin_s = float(times.enter_S[index][at] + idle_S[index][at])
            leave_s = min(float(times.leave_S[index][at]), end_s)
            if row is not None and leave_s > begin_s:
                number = "" if task.microbatch < 0 else str(task.microbatch)
                about = f"{task.kind}, microbatch {number}" if number else task.kind
                yield _Box(
                    row=row, begin_s=begin_s, end_s=leave_s, colour=COLOURS[task.kind], label=number, about=about
                )


def draw_order(timed: Sequence[Timed], *, title: str, width: int = 960) -> str:
    """Draw the passes of a pipeline, a line per rank; an overlapped pair has its forward above its backward."""
    end_s = max(block.end_s for block in timed)
    lines = [f"pipeline rank {rank}" for rank in range(max(block.rank for block in timed) + 1)]
    kinds = {cell.kind for block in timed for cell in block.block.cells}
    legend = {name: colour for kind, (colour, name) in PASSES.items() if kind in kinds}
    return _draw(title, lines, (box for block in timed for box in _block_boxes(block)), end_s, legend, width)


def _block_boxes(timed: Timed) -> Iterator[_Box]:
    cells = timed.block.cells
    for part, cell in enumerate(cells, start=1):
        yield _Box(
            row=timed.rank,
            begin_s=timed.start_s,
            end_s=timed.end_s,
            colour=PASSES[cell.kind][0],
            label=str(cell.microbatch),
            about=str(cell),
            part=part if len(cells) > 1 else 0,
        )
