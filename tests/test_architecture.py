"""The rules of docs/design.md that hold the tree together, checked on the tree itself."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("topology", "traces", "kernels", "sim", "placement", "validate")

# docs/design.md, 3: what each folder may import besides itself and the shared base.
MAY_IMPORT = {
    "topology": set(),
    "traces": set(),
    "traces/capture": {"traces", "kernels"},
    "kernels": set(),
    "sim": {"topology", "traces"},
    "placement": {"sim", "topology", "traces"},
    "validate": {"sim", "topology", "traces", "kernels"},
}
BASE = {"arrays", "compiled", "errors", "files", "processes", "threads", "units", "yaml_text"}
TORCH_FOLDERS = ("kernels", "validate", "traces/capture")

# What other people's packages and NamedTuple call private, and we use all the same.
PRIVATE_ELSEWHERE = {"_Hash", "_cache", "_model_mapping", "_replace"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names a file imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@cache
def modules() -> dict[str, Path]:
    """Every module of the installed package, by its dotted name."""
    files = [path for folder in FOLDERS for path in sources(folder)]
    files += [path for folder in ("moecast/cli", "moecast/report") for path in sources(folder)]
    files += sorted((ROOT / "moecast").glob("*.py"))
    named = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "moecast" else ("moecast", *parts))
        named[name.removesuffix(".__init__")] = path
    return named


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that a file names: `from package import module` is the module, not the package."""
    named, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in named else str(node.module) for name in inner.values())
    return found & named.keys()


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Imports for type checkers and inside functions count: they, too, say that neither is read without the other."""
    graph = nx.DiGraph()
    for name, path in modules().items():
        graph.add_edges_from((name, other) for other in imported_modules(path))
    circles = [circle for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    assert circles == []


def bound_attributes(tree: ast.AST) -> set[str]:
    """Names that a file's own classes give themselves: methods, fields, `self._x`."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            names.add(node.attr)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_file_uses_what_is_private_to_another() -> None:
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = bound_attributes(tree) | PRIVATE_ELSEWHERE
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                # A module with an underscore is private to its package.
                inside = name.rpartition(".")[0] if path.name != "__init__.py" else name
                private = [part for part in node.module.split(".") if is_private(part)]
                assert not private or node.module.startswith(f"{inside}."), f"{path}: {node.module}"
                taken = [alias.name for alias in node.names if is_private(alias.name)]
                assert not taken or node.module == inside, f"{path}: {taken}"
            elif isinstance(node, ast.Attribute) and is_private(node.attr):
                assert node.attr in own, f"{path}: {ast.unparse(node)}"


def test_only_tables_of_names_and_numbers_are_laid_out_by_hand() -> None:
    """`fmt: skip` serves literals that read as a table; a statement that wants it wants a better shape."""
    for folder in (*FOLDERS, "moecast"):
        for path in sources(folder):
            text = path.read_text(encoding="utf-8")
            if "# fmt: skip" not in text:
                continue
            statements = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
            for number, line in enumerate(text.splitlines(), start=1):
                if line.rstrip().endswith("# fmt: skip"):
                    around = [node for node in statements if node.lineno <= number <= (node.end_lineno or 0)]
                    inner = min(around, key=lambda node: (node.end_lineno or 0) - node.lineno)
                    value = getattr(inner, "value", None)
                    literals = (ast.Dict, ast.List, ast.Tuple, ast.Set, ast.Call, ast.BinOp)
                    assert isinstance(value, literals), f"{path}:{number}"
                    called = {ast.unparse(node.func) for node in ast.walk(value) if isinstance(node, ast.Call)}
                    assert called <= {"frozenset", "np.array"}, f"{path}:{number}: {called}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_run_only_along_the_table(folder: str) -> None:
    for path in sources(folder):
        capture = "capture" in path.relative_to(ROOT).parts
        allowed = MAY_IMPORT["traces/capture" if capture else folder] | BASE | {folder}
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "moecast" and len(parts) > 1 and (parts[1] in FOLDERS or parts[1] in {"cli", "report"}):
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("folder", [*FOLDERS, "moecast/cli", "moecast/report"])
def test_torch_is_imported_only_where_allowed(folder: str) -> None:
    for path in sources(folder):
        relative = path.relative_to(ROOT).as_posix()
        if not relative.startswith(TORCH_FOLDERS):
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {"torch", "triton", "transformers"}, relative


def test_package_list_is_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tree = {"moecast", "moecast.cli", "moecast.report"}
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("__init__.py"):
            tree.add("moecast." + ".".join(file.parent.relative_to(ROOT).parts))
    assert set(settings["packages"]) == tree
    assert settings["package-dir"] == {"moecast": "moecast", **{f"moecast.{name}": name for name in FOLDERS}}


def test_every_folder_with_python_is_a_package() -> None:
    for folder in FOLDERS:
        for path in sources(folder):
            assert (path.parent / "__init__.py").exists(), path


def test_symlinks_serve_type_checkers() -> None:
    for folder in FOLDERS:
        link = ROOT / "moecast" / folder
        assert link.is_symlink()
        assert link.resolve() == ROOT / folder


def test_no_python_at_the_root() -> None:
    assert not list(ROOT.glob("*.py"))


@pytest.mark.parametrize("module", ["topology", "traces", "sim", "placement"])
def test_import_without_torch(module: str) -> None:
    code = f"import sys, moecast.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_exported_names_exist_and_are_documented() -> None:
    import importlib

    for folder in FOLDERS:
        module = importlib.import_module(f"moecast.{folder}")
        assert module.__doc__, folder
        assert module.__all__, folder
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                assert thing.__doc__, f"moecast.{folder}.{name} has no docstring"


def test_help_answers_at_once() -> None:
    """The command line imports nothing heavy before it knows which command runs (the time itself is a benchmark's)."""
    code = (
        "import sys, moecast.cli\n"
        "heavy = {'numpy', 'numba', 'torch', 'polars', 'pyarrow', 'networkx', 'plotly', 'ortools', 'scipy', 'pint'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done


PHASES = {"prefill", "decode", "mixed"}


def _asks_for_a_phase(node: ast.AST) -> bool:
    """Whether a value is compared with the name of a phase, or looked up by it."""
    if not isinstance(node, ast.Compare):
        return False
    return any(isinstance(side, ast.Constant) and side.value in PHASES for side in (node.left, *node.comparators))


def test_no_file_of_the_simulator_switches_on_a_phase() -> None:
    """What depends on the part that tokens are of is its method (`sim/parts.py`); kernels stand under their phase."""
    found = []
    for path in sources("sim"):
        file = str(path.relative_to(ROOT))
        if not file.startswith("sim/cost/"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{file}:{node.lineno}" for node in ast.walk(tree) if _asks_for_a_phase(node)]
    assert found == []


# Who is which rank is said in one file: degrees are divided, and axes of ranks cut, nowhere else.
DEGREES = {"tp", "cp", "dp", "pp", "ep", "etp", "ranks", "n_ranks"}
KNOWS_RANKS = {
    "sim/layout.py",
    "sim/degrees.py",
    "sim/plan.py",  # `Plan.contiguous`: how many groups a cluster's GPUs make
    "sim/replicas.py",  # compiled: slots and sources of an EP group
    "sim/schedules/pipeline/interleaved.py",  # microbatches in turns of pp
    "sim/schedules/pipeline/overlapped.py",
    "sim/training/shard.py",  # experts of a rank, whoever it is
    "placement/plan_shape.py",  # slots of a group dealt to its ranks
    "placement/eplb.py",  # EPLB's own packing
    "placement/certificates/fullest_rank.py",
    "placement/round_robin.py",
    "placement/engines/slots.py",  # slots of a rank in an engine's file
    "placement/layouts/serving_layout.py",  # degrees of an instance, before there is a plan
    "placement/layouts/space.py",  # all products of degrees
    "placement/layouts/training/layout.py",  # degrees of a job, before there is a plan
    "placement/layouts/training/space.py",
    "moecast/report/trace_figures.py",
    "traces/statistics/_parts.py",
}
TABLES = {  # arrays of slots or candidates reshaped with a degree among their axes, no ranks computed
    "sim/traffic.py", "sim/traffic_pass.py", "sim/replicas.py", "sim/serving_ranks.py", "placement/eplb.py",
    "placement/engines/slots.py", "placement/engines/vllm_ascend.py", "validate/served.py",
}  # fmt: skip


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _rounds_up(node: ast.BinOp) -> bool:
    """Whether it is ``-(-width // tp)``: what a rank has of a width, not who it is."""
    return isinstance(node.left, ast.UnaryOp) and isinstance(node.left.op, ast.USub)


def _divides_degrees(node: ast.AST) -> bool:
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, (ast.FloorDiv, ast.Mod)):
        return False
    plain = isinstance(node.left, (ast.Constant, ast.JoinedStr)) or isinstance(node.right, ast.Constant)
    return not plain and not _rounds_up(node) and bool({_name(node.left), _name(node.right)} & DEGREES)


def _cuts_ranks(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    args = node.args[_name(node.func.value) == "np" :]  # of a function, the first is what it cuts
    by_degree = any(_name(inner) in DEGREES - {"ranks", "n_ranks"} for arg in args for inner in ast.walk(arg))
    return node.func.attr in ("repeat", "reshape", "tile") and by_degree


def test_no_other_file_computes_who_is_which_rank() -> None:
    found = []
    for folder in (*FOLDERS, "moecast/cli", "moecast/report"):
        for path in sources(folder):
            file = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if _divides_degrees(node) and file not in KNOWS_RANKS:
                    found.append(f"{file}:{node.lineno}")
                if _cuts_ranks(node) and file not in {*KNOWS_RANKS, *TABLES}:
                    found.append(f"{file}:{node.lineno}")
    assert not found, "ask plan.layout instead"


def test_every_file_that_may_compute_ranks_does() -> None:
    tree_of = {file: ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in KNOWS_RANKS}
    assert [file for file, tree in tree_of.items() if not any(map(_divides_degrees, ast.walk(tree)))] == []
