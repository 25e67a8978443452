"""Text for terminals that cannot show all of it: µs must not become ?s, which might be ms."""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from moecast.units import plain

_HANDLER = "moecast.plain"


def plain_streams() -> None:
    """Let stdout and stderr write what their encoding has no letter for in plain ones, and "?" for the rest.

    A stream that was closed before the program began (`>&-`) takes everything and keeps nothing.
    """
    codecs.register_error(_HANDLER, _plainer)
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def say(text: str, *, err: bool = False) -> None:
    """Print a line as the stream takes it: click's own `echo` writes UTF-8 to streams that say they know ASCII only."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return plain(letters), error.end
