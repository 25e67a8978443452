"""What commands print: rich tables for people, JSON for machines, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moecast.cli.plain import say

if TYPE_CHECKING:
    from rich.console import Console

    from moecast.report import Entry
    from moecast.sim import Prediction

FIRST_LINE_S, LINE_EVERY_S = 6.0, 30.0


class Advance:
    """What work tells of itself while it is shown: called with (done, of).

    Parameters
    ----------
    move
        Told (done, of, what is being done in words; empty where that was not said).
    """

    def __init__(self, move: Callable[[int, int, str], None]) -> None:
        self._move, self._at, self._said = move, (0, 0), ""

    def __call__(self, done: int, of: int) -> None:
        """Show that so much is done."""
        self._at = done, of
        self._move(done, of, self._said)

    def say(self, what: str) -> None:
        """Show what is being done."""
        self._said = what
        self._move(*self._at, what)


def console() -> Console:
    """Where people read; wide enough for the tables when it is no terminal."""
    from rich.console import Console

    out = Console()
    return out if out.is_terminal else Console(width=120, highlight=False)


def echo_json(value: Any) -> None:
    """Print one JSON value and nothing else."""
    say(json.dumps(value, allow_nan=False))


@contextlib.contextmanager
def progress(what: str, *, quiet: bool) -> Iterator[Advance | None]:
    """A progress bar on stderr, or a line now and then where that is no terminal.

    Yields the function that moves it, or None when output is for machines.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if quiet:
        yield None
        return
    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        with _lines(what) as advance:
            yield advance
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    left = TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()
    with Progress(*columns, *left, console=stderr, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def move(done: int, of: int, said: str) -> None:
            bar.update(task, completed=done, total=of or None, description=_named(what, said))

        yield Advance(move)


def _named(what: str, said: str) -> str:
    return f"{what}, {said}" if said else what


def two_halves(advance: Advance | None) -> tuple[Advance | None, Advance | None]:
    """The two halves of a way that is shown as one."""
    if advance is None:
        return None, None
    return (
        Advance(lambda done, of, _: advance(done, 2 * of)),
        Advance(lambda done, of, _: advance(of + done, 2 * of)),
    )


@contextlib.contextmanager
def _lines(what: str) -> Iterator[Advance]:
    """Print how far the work is after `FIRST_LINE_S` and then every `LINE_EVERY_S`: for the logs of batch jobs.

    A thread watches, since nothing is reported while loops are compiled or a library is at work.
    """
    start, printed, told = time.monotonic(), 0, (0, 0, "")
    ended, lock = threading.Event(), threading.Lock()

    def print_if_due() -> None:
        nonlocal printed
        with lock:
            passed, (done, of, said) = time.monotonic() - start, told
            if passed >= FIRST_LINE_S + printed * LINE_EVERY_S and not ended.is_set():
                printed = max(printed + 1, int((passed - FIRST_LINE_S) // max(LINE_EVERY_S, 1e-9)) + 1)
                part = f"{done / of:.0%}" if of else "at work"
                say(f"{_named(what, said)}: {part} after {passed:.0f} s", err=True)

    def move(*moved: Any) -> None:
        nonlocal told
        told = moved
        print_if_due()

    def watch() -> None:
        print_if_due()
        while not ended.wait(0.5):
            print_if_due()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield Advance(move)
    finally:
        ended.set()
        thread.join()


def comparison_table(title: str, columns: Sequence[Entry]) -> None:
    """Print the plans and rungs of one phase side by side, the best of each row and rung in green."""
    from rich.table import Table
    from rich.text import Text

    from moecast.report.rows import table_rows
    from moecast.sim.gains import EXPLAINED, listed_gains

    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column("")
    for entry in columns:
        table.add_column(Text(f"{entry.plan}\n{entry.prediction.network}"), justify="right", overflow="fold")
    group = None
    for row in table_rows(columns):
        if group is not None and row.group != group:
            table.add_section()
        group = row.group
        cells = [Text(text, style="green" if i in row.best else "") for i, text in enumerate(row.texts)]
        table.add_row(Text(row.name), *cells)
    out = console()
    out.print(table)
    for name in dict.fromkeys(name for entry in columns for name in listed_gains(entry.prediction.gains)):
        if name in EXPLAINED:
            out.print(f"{name}: {EXPLAINED[name]}", markup=False)


def show_rows(title: str, rows: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    """Print names and texts as a table, and what is to be read with them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title=Text(title), title_justify="left", title_style="bold")
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    out = console()
    out.print(table)
    for note in notes:
        out.print(note, markup=False)


def show_prediction(prediction: Prediction, *, name: str = "prediction") -> None:
    """Print one prediction: what was asked, the table, the warnings."""
    from rich.markup import escape

    from moecast.report import Entry
    from moecast.sim.accuracy.grounds import grounds_text
    from moecast.sim.quantities import title_of

    out = console()
    for label in prediction.labels:
        out.print(f"[yellow]{escape(label)}[/yellow]")
    grounds = grounds_text(prediction.rests_on)
    # else the labels have told the model
    title = prediction.table_title if prediction.whole else title_of(prediction)
    comparison_table(title, [Entry(plan=name, prediction=prediction)])
    if grounds:
        out.print(grounds, markup=False)
    for warning in prediction.warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}")
