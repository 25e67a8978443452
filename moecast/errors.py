"""The one error a user sees: a line that names the file, the field, the value and the rule.

Names and values are a stranger's where the file is: whatever they hold, the line is short, and a
terminal shows it as it is.
"""

from __future__ import annotations

from pathlib import Path


class MoecastError(Exception):
    """Input that cannot be used; the command line prints it in one line and exits with 2.

    Parameters
    ----------
    rule
        What is wrong and what to do about it, as one clause.
    file, field, value
        Where it was found; those not known are left out of the line.
    """

    def __init__(
        self, rule: str, *, file: str | Path | None = None, field: str | None = None, value: object = None
    ) -> None:
        self.rule, self.file, self.field, self.value = rule, file, field, value
        name = field and _cut(field, 200)
        place = name if value is None else f"{name} = {_cut(_repr(value), 80)}" if name else _cut(_repr(value), 80)
        parts = [str(part) for part in (file, place) if part]
        super().__init__(_printable(" ".join(": ".join([*parts, _cut(rule, 600)]).split())))


def _repr(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, lists inside lists without end
        return f"({type(value).__name__})"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _printable(text: str) -> str:
    """Escape what moves a terminal's cursor, turns text around or is no character."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
