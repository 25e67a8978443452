"""Plain text out of the files that documentation packages hold: HTML, manual pages, info files, TeX, source code.

Each rule is a function from one file's text to its documents (most files are one). They are crude
on purpose: the text trains a small model, it is not shown to anyone; what matters is that the same
file always gives the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

_SKIPPED = {"script", "style", "nav", "head", "footer", "header", "svg", "button"}
_BREAKS = {"p", "div", "br", "li", "tr", "pre", "h1", "h2", "h3", "h4", "h5", "dt", "dd", "td", "section", "table"}


class _Text(HTMLParser):
    """Collects the character data of the body, a line per block element."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.skipping += tag in _SKIPPED
        if tag in _BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.skipping -= tag in _SKIPPED and self.skipping > 0
        if tag in _BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data)


def _html(text: str) -> list[str]:
    parser = _Text()
    parser.feed(text)
    return ["".join(parser.parts)]


def _man(text: str) -> list[str]:
    """Roff manual pages: comments and requests off, fonts and escapes undone."""
    text = re.sub(r"^[.']\\\".*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[.'](TH|SH|SS|B|I|BR|RB|IR|RI|BI|IB|IP|TP|Nm|Fl|Ar|Xr|Sh|Ss)\b *", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[.'].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\[&,/|^]|\\s[-+]?\d", "", text)
    text = re.sub(r"\\\((lq|rq|oq|cq|aq|dq)", '"', text)
    text = re.sub(r"\\\(..|\\\*\(..|\\\[\w+\]", " ", text)
    return [text.replace(r"\-", "-").replace(r"\e", "\\").replace("\\ ", " ").replace('"', "")]


def _info(text: str) -> list[str]:
    """GNU info: one document per node, without its navigation line."""
    return [node.split("\n", 2)[2] for node in text.split("\x1f") if node.count("\n") > 2]


def _tex(text: str) -> list[str]:
    """TeX: comments off, one document per section."""
    text = re.sub(r"(?<!\\)%.*$", "", text, flags=re.MULTILINE)
    return re.split(r"(?=\\(?:subsec|section|chapter|subsubsec)\b)", text)


def _plain(text: str) -> list[str]:
    return [text]


RULES: dict[str, Callable[[str], list[str]]] = {
    "html": _html,
    "info": _info,
    "man": _man,
    "plain": _plain,
    "tex": _tex,
}


def clean(text: str) -> str:
    """Trim lines, keep indentation, and fold runs of empty lines into one."""
    text = "\n".join(line.rstrip() for line in text.replace("\r", "").expandtabs(4).split("\n"))
    text = re.sub(r"(?<=\S)[ \xa0]{2,}", " ", text)
    return re.sub(r"\n{2,}", "\n\n", text).strip()
