"""How loops are compiled: by numba, kept on disk, and compiled anew when anything that they are made of has changed.

A function that Python calls is an `entry`, one that only compiled ones call is `inner`: it goes without
the wrapper through which Python would call it, which for arguments like a whole network takes longer
to compile than the loop itself. Both run without the interpreter's lock, and x / 0 is infinity.

numba's own cache looks at the file of the function alone. A function that calls a compiled one of
another file, or takes a constant or a named tuple from there, would go on running that file's old
code after a change.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

# 32 bits of a generator, in a compiled loop
from numba.np.random.generator_core import next_uint32 as next_uint32

_NARROW = (types.int8, types.int16, types.int32, types.uint8, types.uint16, types.uint32)

# Of each module with compiled functions: its source and what it takes from others, as a digest.
_digest_of: dict[str, bytes] = {}


def njit(*, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as `numba.njit` does with these options, and with `cache` keep what comes out on disk.

    It lies where numba would put it: in `NUMBA_CACHE_DIR`, else beside the source, else (read-only
    packages) in the user's cache folder. It is used while these are what they were: the options, the level of
    optimisation (`NUMBA_OPT`), the function's file, the files whose compiled functions or named tuples that file
    takes, theirs in turn, and its global constants. Where no folder can be written to, every process compiles for
    itself; what is damaged is compiled again, and one line on stderr says so.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if cache and isinstance(dispatcher, Dispatcher):  # it is none under NUMBA_DISABLE_JIT
            try:
                dispatcher._cache = _Cache(function, options)  # type: ignore[attr-defined]
            except RuntimeError:  # numba's way to say that there is no folder
                _digest_of[function.__module__] = b""
            except OSError as error:
                _digest_of[function.__module__] = b""
                _tell(error, numba.config.CACHE_DIR or function.__code__.co_filename)
        if isinstance(dispatcher, Dispatcher):
            dispatcher.get_call_template = _whole_types(dispatcher.get_call_template)  # type: ignore[method-assign]
        return dispatcher

    return compiled


_FUNCTION: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}

entry = njit(**_FUNCTION)
inner = njit(**_FUNCTION, no_cpython_wrapper=True)


def _whole_types(get_call_template: Callable[..., Any]) -> Callable[..., Any]:
    """Let compiled functions that pass a constant, or a number of another width, be served by one version for int64.

    numba compiles a version for each of them, and one for the first value of a variable that is counted up, which
    nothing ever calls: a quarter of the time that the fluid network takes to compile.
    """

    def template(args: Any, kws: Any) -> Any:
        return get_call_template([_whole(a) for a in args], {name: _whole(a) for name, a in kws.items()})

    return template


def _whole(of: Any) -> Any:
    of = types.unliteral(of)
    return types.int64 if of in _NARROW else of


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's cache of one function, with a stamp that stands for more than the function's own file."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__(function)
        module, source = function.__module__, self._impl.locator.get_source_stamp()
        _digest_of[module] = _digest(repr(source), *_taken(module, function.__globals__))
        self.stamp = _digest("checked data", repr(sorted(options.items())), _digest_of[module].hex()).hex()
        # numba's key names the processor and not the level of optimisation: slower loops would be taken for fast ones.
        name = f"{self._impl.filename_base}.O{numba.config.OPT}"
        self._cache_file = _CheckedFiles(self._cache_path, name, self.stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What is kept for a signature; None, so that it is compiled, where there is nothing or it cannot be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged pickle raises nearly anything
            _tell(error, self._cache_path)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if that can be done: in the place of an index that cannot be read, too."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _tell(error, self._cache_path)
            self._begin_anew(sig, data)

    def _begin_anew(self, sig: Any, data: Any) -> None:
        try:
            self.flush()
            super().save_overload(sig, data)
        except Exception:  # no room, no permission: the next process compiles for itself as well
            self.disable()


class _CheckedFiles(IndexDataCacheFile):  # type: ignore[misc]
    """numba's files with a digest before the data, since machine code with a wrong byte in it ends the process."""

    def _load_data(self, name: str) -> Any:
        data = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
            raise ValueError("its digest is another")
        return pickle.loads(data[_DIGEST_BYTES:])  # noqa: S301 - numba's own file, as written

    def _save_data(self, name: str, data: Any) -> None:
        dumped = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(dumped).digest() + dumped)


_DIGEST_BYTES = hashlib.sha256().digest_size
_told = False


def _tell(error: Exception, folder: str) -> None:
    """Say once a process that compiled loops cannot be kept or found."""
    global _told  # noqa: PLW0603 - once a process is what it is for
    if not _told:
        _told = True
        reason = " ".join(f"{type(error).__name__} {error}".split())[:120]
        sys.stderr.write(
            f"moecast: {folder}: compiled loops kept there cannot be used ({reason}); compiling without them. "
            "Delete the folder's .nbi and .nbc files, or name another with NUMBA_CACHE_DIR.\n"
        )


def _taken(module: str, names: dict[str, Any]) -> list[str]:
    """What a module's namespace holds by now of other modules' compiled code, and the constants in it."""
    taken = []
    for name, value in sorted(names.items()):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if home != module and home in _digest_of:
            taken.append(f"{name}: {_digest_of[home].hex()}")
        elif _is_constant(value) and not name.startswith("__"):
            taken.append(f"{name} = {value!r}")
    return taken


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_constant(item) for item in value)
    return isinstance(value, (bool, int, float, complex, str, bytes, np.generic, np.dtype))


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()
