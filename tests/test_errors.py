"""The one line: short, whole, and shown as it is, whatever a file holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moecast.errors import MoecastError

anything = st.none() | st.text() | st.integers() | st.floats() | st.lists(st.text())


@given(rule=st.text(), file=st.none() | st.text(), field=st.none() | st.text(), value=anything)
def test_it_is_one_line_that_can_be_printed(rule: str, file: str | None, field: str | None, value: object) -> None:
    line = str(MoecastError(rule, file=file, field=field, value=value))
    assert line.isprintable()
    assert line == line.encode("utf-8").decode("utf-8")


def test_it_is_short() -> None:
    line = str(MoecastError("r" * 9999, file="f.json", field="x" * 9999, value=10**10_000))
    assert len(line) < 1000
    assert line.startswith("f.json: xxx")


def test_what_would_move_a_terminal_is_escaped() -> None:
    line = str(MoecastError("unknown field", file="c.yaml", field="\x1b[2J\u202e\ud800"))
    assert line == r"c.yaml: \x1b[2J\u202e\ud800: unknown field"
