"""The command line in processes of their own that do not each import everything anew.

Importing takes two seconds, and several hundred tests run a command. One process a test worker imports what commands
import and does nothing else; each command is a fork of it, which runs ``python -m moecast`` from the start with its own
arguments, folder, output and exit. Threads would not survive a fork: none has started, since nothing has run.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300

# What commands import when they run, of our own and of others; what is not here is imported by the command as ever.
WARM = (
    "moecast.cli moecast.cli.asked moecast.cli.made moecast.cli.place moecast.cli.plan moecast.cli.render "
    "moecast.cli.serve moecast.cli.simulate moecast.cli.train moecast.placement moecast.placement.layouts "
    "moecast.report moecast.sim.serving moecast.sim.training moecast.traces rich.progress rich.table typer.rich_utils"
)


def run_command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``moecast ARGUMENTS`` in the environment of this process.

    Raises
    ------
    subprocess.TimeoutExpired
        It has not ended after `TIMEOUT_S`; it is killed.
    """
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        asked = {
            "words": words,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ),
            "out": str(out),
            "err": str(err),
        }
        code = _answered(json.dumps(asked), words)
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def fresh(*arguments: object, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The same in a process that forks from nobody, with variables of its own: for what is read when Python starts."""
    command = [sys.executable, "-m", "moecast", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=TIMEOUT_S, env={**os.environ, **env}
    )


def _answered(asked: str, words: list[str]) -> int:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(asked + "\n")
    server.stdin.flush()
    child = int(server.stdout.readline())
    previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(TIMEOUT_S)
    try:
        code = int(server.stdout.readline())
    finally:
        expired = not signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if expired:
        raise subprocess.TimeoutExpired(words, TIMEOUT_S)
    return code


@cache
def _server() -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {__name__} import serve; serve()",
    ]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server


def serve() -> None:
    """Fork for each line that comes in; write the child's number, and its exit code once it has ended."""
    import importlib

    for name in WARM.split():
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            answers.close()
            _become(json.loads(line))
            break
        print(child, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)


def _become(asked: dict[str, Any]) -> None:
    """Be the command from here on."""
    import runpy

    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for stream, name in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    sys.argv[:] = ["moecast", *asked["words"]]
    runpy.run_module("moecast", run_name="__main__", alter_sys=True)
