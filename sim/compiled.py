"""How the loops of the network are compiled: cached on disk, without the interpreter's lock, x / 0 = infinity.

Functions that only compiled ones call are `inner`: they go without the wrapper through which Python
would call them, which for arguments like a whole network takes longer to compile than the loop
itself.
"""

from __future__ import annotations

from typing import Any

from moecast.compiled import njit

_ENTRY: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_INNER: dict[str, Any] = {**_ENTRY, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

entry = njit(**_ENTRY)
inner = njit(**_INNER)
