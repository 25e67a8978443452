"""One input after another into a public reading function: it is read, or refused in one line that names the file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from moecast.errors import MoecastError

MOST_S = 10.0  # of CPU time
MOST_BYTES = 1 << 30  # by which the process grows
MOST_CHARS = 1000  # of a line, its path left out
LEAST_READ = 0.05  # of the inputs, so that more than the first check is tried
_WAIT_S = 60  # for what waits without computing: no reader has a reason to
_ROOM_BYTES = 6 << 30  # address space beyond which allocation fails, so that the machine is not brought down


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A reader and the inputs made for it.

    Parameters
    ----------
    name
        What the table calls it.
    documents
        Gives the strategy of good documents; called once, so that imports wait until they are needed.
    write
        Writes a document below a folder, changed or not, and gives the path to read.
    read
        The public function that reads it, and uses what came out.
    share
        Inputs beside those of other targets: fewer for a slow one.
    first
        Documents that are read before any is timed, beside a few that are drawn: loops are compiled by them.
    """

    name: str
    documents: Callable[[], st.SearchStrategy[Any]]
    write: Callable[[Any, Random, Path], Path]
    read: Callable[[Path], object]
    share: float = 1.0
    first: tuple[Any, ...] = ()


class BrokenRuleError(AssertionError):
    """A reader that did what none may: the kind of it, and the line that shows it."""

    def __init__(self, kind: str, line: str = "") -> None:
        self.kind = kind
        super().__init__(f"{kind}: {line}" if line else kind)


class _TooSlowError(BaseException):
    """Raised by a signal inside a reader that takes too long; no reader catches it."""


@dataclasses.dataclass(kw_only=True)
class Tally:
    """What became of the inputs of a target."""

    target: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    rules: set[str] = dataclasses.field(default_factory=set)
    failures: dict[str, tuple[int, str]] = dataclasses.field(
        default_factory=dict
    )  # kind -> how often, a smallest input
    slowest_s: float = 0.0
    peak_bytes: int = 0


def attempt(target: Target, path: Path, tally: Tally) -> None:
    """Read one input.

    Raises
    ------
    BrokenRuleError
        Another exception than a MoecastError, a line that is none or does not name the file, too slow or too large.
    """
    tally.inputs += 1
    base_bytes = _restart_peak()
    begin = time.process_time()
    refusal: MoecastError | None = None
    try:
        with _limited():
            target.read(path)
    except MoecastError as error:
        refusal = error
    except _TooSlowError as error:
        raise BrokenRuleError(f"more than {MOST_S:g} s") from error
    except Exception as error:
        raise BrokenRuleError(_kind(error)) from error
    finally:
        took_s = time.process_time() - begin
        tally.slowest_s = max(tally.slowest_s, took_s)
        grown = _peak_bytes() - base_bytes
        tally.peak_bytes = max(tally.peak_bytes, grown)
    if took_s > MOST_S:
        raise BrokenRuleError(f"more than {MOST_S:g} s")
    if grown > MOST_BYTES:
        raise BrokenRuleError(f"more than {MOST_BYTES >> 20} MiB")
    if refusal is None:
        tally.read += 1
        return
    _check_line(str(refusal), path)
    tally.refused += 1
    tally.rules.add(refusal.rule[:40])


def _kind(error: BaseException) -> str:
    """What tells one fault from another: the exception, and where in moecast it came from."""
    inside = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/" not in frame.filename]
    ours = [frame for frame in inside if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    where = ours[-1] if ours else inside[-1] if inside else None
    return (
        f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno} {where.name}" if where else repr(error)
    )


def _check_line(line: str, path: Path) -> None:
    if path.name not in line and path.parent.name not in line:
        raise BrokenRuleError("a line that does not name the file", ascii(line))
    if not line.isprintable():
        raise BrokenRuleError("a line with characters that cannot be printed", ascii(line))
    if len(line) > MOST_CHARS + len(str(path)):
        raise BrokenRuleError(f"a line of more than {MOST_CHARS} characters", ascii(line))


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise _TooSlowError

    for number, timer, limit_s in (
        (signal.SIGPROF, signal.ITIMER_PROF, MOST_S),
        (signal.SIGALRM, signal.ITIMER_REAL, _WAIT_S),
    ):
        signal.signal(number, stop)
        signal.setitimer(timer, limit_s, 1.0)  # again: what runs in C or in a callback may lose the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _restart_peak() -> int:
    """Begin to measure a new peak, where the system can; bytes that are held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak << 10 if peak < 1 << 40 else peak


def limit_memory() -> None:
    """Let allocations far beyond what any reader may take fail, in this process."""
    with contextlib.suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def warm_up(target: Target, folder: Path) -> int:
    """Read a few good documents before anything is timed: loops are compiled by it; how many were read."""
    read = []

    few = max(2, round(10 * target.share))

    @settings(max_examples=few, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(document=target.documents())
    def drawn(document: Any) -> None:
        once(document)

    def once(document: Any) -> None:
        with contextlib.suppress(Exception):  # what is wrong with a reader is found later
            target.read(target.write(document, _Unchanged(0), empty(folder)))
            read.append(document)

    for document in target.first:
        once(document)
    drawn()
    return len(read)


class _Unchanged(Random):
    """Draws nothing that changes a document."""

    def random(self) -> float:
        return 0.999

    def choice(self, seq: Any) -> Any:
        return seq[0]


def empty(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def search(target: Target, folder: Path, *, inputs: int, seed_: int) -> Tally:
    """Try many inputs and keep the smallest of each kind of failure, beside the folder."""
    tally = Tally(target=target.name)
    warm_up(target, folder / "in")
    limit_memory()

    @seed(seed_)
    @settings(max_examples=inputs, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(document=target.documents(), rng=st.randoms(use_true_random=True))
    def one(document: Any, rng: Random) -> None:
        path = target.write(document, rng, empty(folder / "in"))
        try:
            attempt(target, path, tally)
        except BrokenRuleError as error:
            _keep(tally, folder, path, error)

    one()
    return tally


def _keep(tally: Tally, folder: Path, path: Path, error: BrokenRuleError) -> None:
    kind = error.kind
    count, kept = tally.failures.get(kind, (0, ""))
    size = sum(file.stat().st_size for file in (folder / "in").rglob("*") if file.is_file())
    place = folder / f"kept-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
    old = sum(file.stat().st_size for file in place.rglob("*") if file.is_file() and file.name != "traceback.txt")
    if not kept or size < old:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "in", place)
        text = "".join(traceback.format_exception(error))
        (place / "traceback.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        kept = str(place / path.relative_to(folder / "in"))
    tally.failures[kind] = count + 1, kept
