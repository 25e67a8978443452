"""Points of a sweep on the machines of a Ray cluster.

A machine answers a point from files of its own at the sweep's paths: inputs do not travel, their
hashes do, and a machine whose file is not the same refuses the point instead of answering another
question. Ray gives the points of a machine that is lost to others.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecast import __version__
from moecast.cli import sweep_workers
from moecast.errors import MoecastError

if TYPE_CHECKING:
    from moecast.cli.asked import Asked

LOCAL = "local"
"""The address that starts a Ray cluster on this machine, and stops it in the end."""
AHEAD = 2
"""Points that wait on each processor, so that none is idle while answers travel."""
FILES = ("plan", "trace", "load", "cluster", "model")
"""Fields of a question that may name files."""
_BLOCK_bytes = 1 << 20
_checked: set[tuple[Path, str]] = set()


def answered_by_ray(
    asked: Asked, points: Sequence[tuple[int, Mapping[str, Any]]], *, address: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answer points on a Ray cluster, each as soon as it is done, as `sweep_workers.answered` does.

    Parameters
    ----------
    address
        `local`, `auto` (the cluster that this machine is in) or HOST:PORT of its head.

    Raises
    ------
    MoecastError
        Ray is not installed or not there, or a machine has another version of moecast or another
        file.
    """
    # what Ray says of lost machines, where a result is to stand
    with contextlib.redirect_stdout(sys.stderr):
        ray = _started(address)
        try:
            named = [_named(asked), *(changed for _, changed in points)]
            hashes = {path: hash_of(path) for path in sorted({path for values in named for path in _files(values)})}
            work = (ray.put(asked), Path.cwd(), hashes, __version__)
            for number, found, wrong in _in_flight(ray, points, work):
                if wrong:
                    raise MoecastError(wrong, field="--ray", value=address)
                yield number, found
        except ray.exceptions.RayError as error:
            rule = f"Ray gave up: {str(error).splitlines()[0]}"
            raise MoecastError(rule, field="--ray", value=address) from error
        finally:
            ray.shutdown()


def _in_flight(ray: Any, points: Sequence[Any], work: tuple[Any, ...]) -> Iterator[tuple[int, Any, str]]:
    """Hand points out, some more than there are processors at a time, and take answers as they come."""
    answer = ray.remote(num_cpus=1, max_retries=3)(_answer_there)
    most = max(1, int(ray.cluster_resources().get("CPU", 1))) * AHEAD
    left = list(points)[::-1]
    running: list[Any] = []
    while left or running:
        while left and len(running) < most:
            running.append(answer.remote(*work, left.pop()))
        done, running = ray.wait(running)
        yield from ray.get(done)


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names, in hex."""
    digest = hashlib.sha256()
    for file in sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]:
        digest.update(os.fsencode(file.relative_to(path)) + b"\0")
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK_bytes):
                digest.update(block)
    return digest.hexdigest()


def difference(folder: Path, hashes: Mapping[Path, str], version: str) -> str:
    """What this machine has otherwise than the one that asks, in words; empty: nothing, and it stands in the folder."""
    host = socket.gethostname()
    if version != __version__:
        return f"{host} has moecast {__version__}, not {version}"
    if not folder.is_dir():
        return f"{host} has no folder {folder}: put the same files there on every machine"
    os.chdir(folder)  # so that paths mean what they mean to who asks
    for path, wanted in hashes.items():
        if (path, wanted) in _checked:
            continue
        if not path.exists():
            return f"{host} has no {folder / path}: put the same file there on every machine"
        if hash_of(path) != wanted:
            return f"{folder / path} of {host} is another file (its SHA-256 does not begin with {wanted[:12]})"
        _checked.add((path, wanted))
    return ""


def _named(asked: Asked) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in FILES}


def _files(values: Mapping[str, Any]) -> list[Path]:
    """Those that are there; others are presets, or refused as they would be here."""
    found = [Path(value) for name, value in values.items() if name in FILES and value is not None]
    return [path for path in found if path.exists()]


def _answer_there(
    asked: Asked, folder: Path, hashes: Mapping[Path, str], version: str, point: tuple[int, Mapping[str, Any]]
) -> tuple[int, dict[str, Any] | None, str]:
    """On a worker: the answer to a point, or what is not as it should be on its machine."""
    wrong = difference(folder, hashes, version)
    if wrong:
        return point[0], None, wrong
    number, found = sweep_workers.answer_one(asked, point)
    return number, found, ""


def _started(address: str) -> Any:
    """Connect to a cluster, or start one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MoecastError("ray is not installed: pip install 'moecast[ray]'", field="--ray", value=address) from error
    asked: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **asked)
    except (ConnectionError, RuntimeError, ValueError) as error:
        rule = "local, auto or HOST:PORT of a Ray cluster that answers"
        raise MoecastError(f"{rule} ({str(error).splitlines()[0]})", field="--ray", value=address) from error
    return ray
