"""Results that print themselves as a table, and show themselves as one in a notebook."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from html import escape

from moecast.units import plain


class ShownAsTable(ABC):
    """A value that is a title, a name and a text per row, and sentences to be read with them."""

    __slots__ = ()

    @property
    @abstractmethod
    def table_title(self) -> str:
        """What the numbers are of."""

    @abstractmethod
    def table_rows(self) -> list[tuple[str, str]]:
        """The names, indented by two blanks where they are parts of what stands before, and the texts."""

    def table_notes(self) -> list[str]:
        """What a reader should know with the numbers."""
        return []

    def __str__(self) -> str:
        """The table as text, in ASCII where standard output has no other letters."""
        rows = self.table_rows()
        width = max((len(name) for name, _ in rows), default=0)
        lines = [self.table_title, *(f"  {name:<{width}}  {text}" for name, text in rows), *self.table_notes()]
        text = "\n".join(lines)
        try:
            text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            return plain(text)
        return text

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        rows = "".join(
            f"<tr><td style='text-align:left'>{'&emsp;' * name.startswith('  ')}{escape(name.strip())}</td>"
            f"<td>{escape(text)}</td></tr>"
            for name, text in self.table_rows()
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.table_notes())
        return f"<table><caption>{escape(self.table_title)}</caption><tbody>{rows}</tbody></table>{notes}"
