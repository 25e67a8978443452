"""The rules of docs/design.md that hold the tree together, checked on the tree itself."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

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
BASE = {"arrays", "compiled", "errors", "files", "threads", "units", "yaml_text"}
TORCH_FOLDERS = ("kernels", "validate", "traces/capture")


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
