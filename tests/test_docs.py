"""What the README and the docs show is run, and what they print is compared."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import run_command

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def test_readme_session() -> None:
    failed, tried = doctest.testfile(
        str(ROOT / "README.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert tried >= 5
    assert failed == 0


@pytest.mark.slow
def test_readme_question_comes_in_and_configuration_goes_out(tmp_path: Path) -> None:
    command, shown = re.findall(r"^\$ moecast (.*?)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL | re.M)[0]
    done = run_command(*shlex.split(command), cwd=tmp_path)
    assert done.stdout.split() == shown.split(), done.stderr


def test_readme_first_screen_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in LINK.findall(file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), f"{page}: {target}"


def commands(page: Path) -> list[str]:
    """The ``$ moecast …`` lines of a page's console blocks, continuation lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_recipes_run(tmp_path: Path) -> None:
    """Every command of the recipes, in order, in one folder."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    lines = commands(ROOT / "docs" / "recipes.md") + commands(ROOT / "docs" / "question.md")
    assert len(lines) >= 8
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in lines:
        program, *words = shlex.split(line)
        if program == "moecast":
            done = run_command(*words, cwd=tmp_path)
        else:
            done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("page", ["invariants.md", "bad-input.md"])
def test_pages_name_tests_that_exist(page: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(named) >= 10
    for file, function in named:
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{function}"
