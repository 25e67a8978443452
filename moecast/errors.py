"""The one error a user sees: a line that names the file, the field, the value and the rule."""

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
        place = field if value is None else f"{field} = {_short(value)}" if field else _short(value)
        parts = [str(part) for part in (file, place) if part]
        super().__init__(" ".join(": ".join([*parts, rule]).split()))


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
