"""How much memory there is, so that a file which claims to be huge is refused before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from moecast.errors import MoecastError
from moecast.units import format_bytes


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def check_memory(needed_bytes: int, file: str | Path, *, advice: str = "") -> None:
    """Fail when an array of this size would take more than four fifths of the memory at hand.

    Raises
    ------
    MoecastError
        Names both sizes.
    """
    available = available_bytes()
    if needed_bytes > available * 4 // 5:
        rule = f"needs {format_bytes(needed_bytes)} of memory, {format_bytes(available)} are free{advice}"
        raise MoecastError(rule, file=file)
