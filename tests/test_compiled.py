"""The cache of compiled loops: kept between processes, and never older than what the loops are made of."""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CALLEE = """
from typing import NamedTuple
from moecast.compiled import njit

SCALE = 3

class Pair(NamedTuple):
    first: int
    second: int

@njit(cache=True)
def inside(value):
    return value + 10
"""
CALLER = """
from made import callee
from made.callee import SCALE, Pair, inside
from moecast.compiled import njit

OPTIONS = {"error_model": "numpy"}

@njit(cache=True)
def by_name(value):
    return inside(value)

@njit(cache=True)
def by_module(value):
    return callee.inside(value)

@njit(cache=True)
def constant(value):
    return SCALE * value

@njit(cache=True)
def first_of(pair):
    return pair.first

@njit(cache=True, **OPTIONS)
def divide(value):
    return 1.0 / (value - 1)
"""
MAIN = """
from made import caller
from made.callee import Pair
CASES = ("by_name", 1), ("by_module", 1), ("constant", 1), ("first_of", Pair(second=2, first=1)), ("divide", 1)
found = {}
for name, value in CASES:
    function = getattr(caller, name)
    try:
        result = function(value)
    except ZeroDivisionError:
        result = "refused"
    found[name] = result, sum(function.stats.cache_misses.values())
print(found)
"""


@pytest.fixture
def run(tmp_path):
    """Runs the made package in a process of its own: the result of each function, and how many were compiled anew."""
    package = tmp_path / "made"
    package.mkdir()
    for name, text in (("__init__", ""), ("callee", CALLEE), ("caller", CALLER), ("main", MAIN)):
        (package / f"{name}.py").write_text(text)

    def call(limits=None, **changes):
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | changes
        done = subprocess.run(
            [sys.executable, "-m", "made.main"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=limits,
        )
        assert done.returncode == 0, done.stderr
        call.said = done.stderr
        found = ast.literal_eval(done.stdout.replace("inf", "1e999"))
        return {name: value for name, (value, _) in found.items()}, {name for name, (_, new) in found.items() if new}

    def edit(name, old, new):
        path = package / f"{name}.py"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    call.edit = edit
    return call


def test_a_change_in_another_file_is_compiled_anew(run):
    want = {"by_name": 11, "by_module": 11, "constant": 3, "first_of": 1, "divide": float("inf")}
    assert run() == (want, set(want))
    assert run() == (want, set())  # a second process has all of it from disk
    run.edit("callee", "value + 10", "value + 20")
    run.edit("callee", "SCALE = 3", "SCALE = 4")
    run.edit("callee", "    first: int\n    second: int", "    second: int\n    first: int")
    run.edit("caller", '{"error_model": "numpy"}', '{"error_model": "python"}')
    want = {"by_name": 21, "by_module": 21, "constant": 4, "first_of": 1, "divide": "refused"}
    assert run()[0] == want


def test_each_level_of_optimisation_has_loops_of_its_own(run):
    assert run(NUMBA_OPT="1")[1]
    assert run(NUMBA_OPT="3")[1]
    assert not run(NUMBA_OPT="1")[1]
    assert not run(NUMBA_OPT="3")[1]


def test_without_a_folder_to_write_to_it_compiles_for_itself(run, tmp_path):
    (tmp_path / "made" / "__pycache__").write_text("no folder")
    nowhere = {"HOME": str(tmp_path / "made" / "main.py"), "XDG_CACHE_HOME": str(tmp_path / "made" / "main.py")}
    values, compiled = run(**nowhere)
    assert values["by_name"] == 11
    assert compiled == set(values)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def overwrite(path):
    path.write_bytes(b"no pickle" * 50)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_what_is_damaged_is_compiled_again_and_said_once(run, tmp_path, kind):
    want, new = run()
    assert run.said == ""
    ways = dict(zip(sorted(new), (cut, empty, overwrite, flip, make_folder), strict=True))
    for path in (tmp_path / "made" / "__pycache__").glob(f"caller.*.{kind}"):
        ways[path.name.split(".")[1].split("-")[0]](path)
    found = run()
    assert found[0] == want
    # a flipped bit of an index may stand where it does not matter
    assert found[1] >= {name for name, way in ways.items() if way is not flip or kind == "nbc"}
    assert run.said.count("\n") == 1
    assert f"{tmp_path / 'made' / '__pycache__'}: compiled loops kept there cannot be used" in run.said
    assert "NUMBA_CACHE_DIR" in run.said
    assert run() == (want, {name for name, way in ways.items() if way is make_folder})  # the others are mended


def test_without_room_for_the_cache_it_compiles_for_itself(run):
    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))

    want, new = run(no_room)
    assert want["by_name"] == 11
    assert run.said.count("\n") == 1
    assert run() == (want, new)


STAMPS = """
from moecast.placement import anneal, swaps
from moecast.sim import traffic_pass
from moecast.sim.network import events, maxmin
from moecast.traces import checks
from moecast.traces.statistics import _locality, counting
for module in (anneal, swaps, traffic_pass, events, maxmin, checks, counting, _locality):
    functions = [value for value in vars(module).values() if hasattr(value, "_cache")]
    own = [value for value in functions if value.__module__ == module.__name__]
    print(module.__name__.removeprefix("moecast."), *(value._cache.stamp for value in own))
"""


def test_stamps_of_the_real_loops_follow_their_callees(tmp_path):
    leave_out = shutil.ignore_patterns("__pycache__", "*.parquet", "published")
    copied = Path(shutil.copytree(ROOT / "moecast", tmp_path / "moecast", ignore=leave_out))

    def stamps():
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", STAMPS], env=environment, capture_output=True, text=True, cwd=copied
        )
        assert done.returncode == 0, done.stderr
        return dict(row.split(" ", 1) for row in done.stdout.splitlines())

    before = stamps()
    for file, line in (
        ("traces/statistics/counting.py", "# an edit"),
        ("sim/network/maxmin.py", "# an edit"),
        ("placement/swaps.py", "# an edit"),
        ("traces/meta.py", "NO_CHOICE = 65534"),
    ):
        (copied / file).write_text((copied / file).read_text() + f"\n{line}\n")
    after = stamps()
    assert {name for name in before if before[name] == after[name]} == {"traces.statistics._locality"}


def test_numba_is_asked_through_compiled_only():
    """`from moecast.compiled import njit`, whose cache is never stale."""
    asked = re.compile(r"^\s*(from|import) numba\b", re.MULTILINE)
    folders = ("kernels", "moecast", "placement", "sim", "topology", "traces", "validate")
    files = [path for folder in folders for path in (ROOT / folder).glob("**/*.py")]
    found = [path.relative_to(ROOT).as_posix() for path in files if asked.search(path.read_text(encoding="utf-8"))]
    assert found == ["moecast/compiled.py"]
