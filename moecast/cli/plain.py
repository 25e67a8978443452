"""Text for terminals that cannot show all of it: µs must not become ?s, which might be ms."""

from __future__ import annotations

import codecs
import sys
from io import TextIOWrapper

_HANDLER = "moecast.plain"
_PLAIN = {
    "·": "*", "×": "x", "…": "...", "÷": "/", "–": "-", "−": "-", "µ": "u", "μ": "u", "ρ": "rho", "α": "alpha",
    "⌈": "ceil(", "⌉": ")", "⌊": "floor(", "⌋": ")", "│": "|", "─": "-", "‖": "|", "Σ": "sum ", "±": "+-", "φ": "phi",
    "├": "+", "┤": "+", "└": "+", "┘": "+", "┌": "+", "┐": "+", "┴": "+", "┬": "+", "┼": "+",
    "≥": ">=", "≤": "<=", "½": "1/2", "√": "sqrt ", "→": "->", "↓": "down", "↑": "up", "²": "^2", "³": "^3", "•": "*",
    "━": "-", "╸": "-", "╺": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip


def plain_streams() -> None:
    """Let stdout and stderr write what their encoding has no letter for in plain ones, and "?" for the rest."""
    codecs.register_error(_HANDLER, _plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in letters), error.end
